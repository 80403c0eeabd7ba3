"""Terms against slow float64 versions, the published golden values, marks of sides, weights, play."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from salmask import terms
from salmask.classifier import Classifier
from salmask.masking import MeanColour, keep, remove
from salmask.objective import OBJECTIVES, Objective
from salmask.outcome import KEPT, REMOVED, Outcome, play

BATCH, CLASSES = 12, 5
BOTH = frozenset({KEPT, REMOVED})


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def outcome(*, seed: int = 0, batch: int = BATCH, size: tuple[int, int] = (6, 7), **changes) -> Outcome:
    """Half of the images are right on each side, on average."""
    g = seeded(seed)
    targets = torch.randint(CLASSES, (batch,), generator=g)
    logits = torch.randn(3, batch, CLASSES, generator=g, dtype=torch.float64)
    for side in range(3):
        chosen = torch.rand(batch, generator=g) < 0.5
        logits[side, chosen, targets[chosen]] += 3
    masks = torch.rand(batch, 1, *size, generator=g, dtype=torch.float64)
    fields = {"masks": masks, "targets": targets, "clean": logits[0], "kept": logits[1], "removed": logits[2]}
    return Outcome(**{**fields, **changes})


# Slow rewritings, one image at a time, of spec 1.2 and 1.3


def softmax(row: Tensor) -> list[float]:
    z = [math.exp(v) for v in row.tolist()]
    return [v / sum(z) for v in z]


def entropy(row: Tensor) -> float:
    return -sum(p * math.log(p) for p in softmax(row))


def best(row: Tensor) -> int:
    return max(range(len(row)), key=lambda k: float(row[k]))


def mean(mask: Tensor) -> float:
    return sum(v for line in mask[0].tolist() for v in line) / mask[0].numel()


def variation(mask: Tensor) -> float:
    m, total = mask[0].tolist(), 0.0
    H, W = len(m), len(m[0])
    for r in range(H):
        for c in range(W):
            total += (m[r][c] - m[r][c - 1]) ** 2 if c else 0.0
            total += (m[r][c] - m[r - 1][c]) ** 2 if r else 0.0
            total += 0.3 * m[r][c] ** 2 * ((r == 0) + (r == H - 1) + (c == 0) + (c == W - 1))
    return total / 2


def margin(row: Tensor, target: int) -> float:
    return float(row[target]) - max(float(v) for k, v in enumerate(row) if k != target)


SLOW = {
    "max_class_kept": lambda m, y, c, i, o: -math.log(softmax(i)[y]),
    "min_entropy_kept": lambda m, y, c, i, o: entropy(i) if best(c) == y else 0.0,
    "min_class_removed": lambda m, y, c, i, o: math.log(softmax(o)[y]),
    "max_entropy_removed": lambda m, y, c, i, o: -entropy(o) if best(c) == y else 0.0,
    "area_if_kept_right": lambda m, y, c, i, o: -max(0.0, (best(i) == y) - mean(m)),
    "area_if_removed_wrong": lambda m, y, c, i, o: -max(0.0, (best(c) == y and best(o) != y) - mean(m)),
    "area": lambda m, y, c, i, o: mean(m),
    "area_root": lambda m, y, c, i, o: sum((v + 5e-4) ** 0.3 for r in m[0].tolist() for v in r) / m[0].numel(),
    "total_variation": lambda m, y, c, i, o: variation(m),
    "area_to .3": lambda m, y, c, i, o: abs(mean(m) - 0.3),
    "area_to .3 squared": lambda m, y, c, i, o: (mean(m) - 0.3) ** 2,
    "kept_confidence": lambda m, y, c, i, o: max(0.0, 1 - margin(i, y)),
    "removed_confidence": lambda m, y, c, i, o: max(0.0, 5 + margin(o, y)),
}
TERMS = {
    **{name: getattr(terms, name) for name in SLOW if hasattr(terms, name)},
    "area_to .3": terms.area_to(0.3),
    "area_to .3 squared": terms.area_to(0.3, power=2.0),
    "kept_confidence": terms.kept_confidence(1.0),
    "removed_confidence": terms.removed_confidence(5.0),
}


def slowly(name: str, o: Outcome) -> Tensor:
    rows = zip(o.masks, o.targets.tolist(), o.clean, o.kept, o.removed, strict=True)
    return torch.tensor([SLOW[name](*row) for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("name", SLOW)
def test_terms_equal_their_slow_formula_image_by_image(name) -> None:
    for seed in range(3):
        o = outcome(seed=seed)
        value = TERMS[name](o)
        assert value.shape == (BATCH,)
        torch.testing.assert_close(value, slowly(name, o), rtol=1e-10, atol=1e-12)


def test_every_case_of_the_indicators_occurs_in_these_outcomes() -> None:
    o = outcome()
    for flag in (o.clean_right, o.kept_right, o.removed_wrong, o.clean_right & ~o.removed_wrong):
        assert 0 < int(flag.sum()) < BATCH


@pytest.mark.parametrize("name", SLOW)
def test_terms_have_right_gradients_and_indicators_carry_none(name) -> None:
    o = outcome(batch=4)
    leaves = [o.masks.requires_grad_(), o.kept.requires_grad_(), o.removed.requires_grad_()]

    def total(masks: Tensor, kept: Tensor, removed: Tensor) -> Tensor:
        return TERMS[name](Outcome(masks, o.targets, o.clean, kept, removed)).sum()

    assert torch.autograd.gradcheck(total, leaves)
    grads = torch.autograd.grad(total(*leaves), leaves, allow_unused=True)
    if "area" in name or "variation" in name:
        assert grads[0] is not None and grads[1] is None and grads[2] is None


@pytest.mark.parametrize("name", SLOW)
def test_a_term_reads_the_sides_that_it_says_and_no_other(name) -> None:
    o, term = outcome(), TERMS[name]
    cut = Outcome(
        o.masks,
        o.targets,
        o.clean,
        o.kept if KEPT in term.sides else None,
        o.removed if REMOVED in term.sides else None,
    )
    assert torch.equal(term(cut), term(o))
    for side in term.sides:
        lacking = Outcome(
            o.masks, o.targets, o.clean, *(None if name == side else logits for name, logits in _sides(o))
        )
        with pytest.raises(ValueError, match=f"the {side} side was not played"):
            term(lacking)


def _sides(o: Outcome) -> list[tuple[str, Tensor | None]]:
    return [(KEPT, o.kept), (REMOVED, o.removed)]


def test_divergence_from_a_prior_both_ways_and_its_gate() -> None:
    o = outcome()
    prior = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15])
    q, pi = o.removed.softmax(1), prior.double()
    forward = (pi * (pi.log() - q.log())).sum(1)
    backward = (q * (q.log() - pi.log())).sum(1)
    term = terms.divergence_from_prior
    torch.testing.assert_close(term(prior, when_clean_right=False)(o), forward, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(term(prior, forward=False)(o), o.clean_right * backward, rtol=1e-6, atol=1e-7)
    kept = term(prior, side=KEPT, when_clean_right=False)
    assert kept.sides == {KEPT} and not torch.allclose(kept(o), forward)
    uniform = torch.full((CLASSES,), 1 / CLASSES)
    reverse = term(uniform, forward=False, when_clean_right=False)(o)
    torch.testing.assert_close(
        reverse,
        math.log(CLASSES) - torch.tensor([entropy(row) for row in o.removed], dtype=torch.float64),
        rtol=1e-5,
        atol=1e-6,
    )
    for wrong in (torch.tensor([0.5, 0.6]), torch.tensor([1.0, 0.0]), torch.ones(2, 2) / 4):
        with pytest.raises(ValueError, match="a prior is"):
            term(wrong)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_areas_of_p_conditioned_masks_count_the_distance_to_p(power) -> None:
    areas = torch.rand(BATCH, generator=seeded(4), dtype=torch.float64)
    o = outcome(areas=areas)
    distance = torch.tensor([abs(mean(m) - float(p)) ** power for m, p in zip(o.masks, areas, strict=True)]).double()
    inside = -(o.kept_right.double() - distance).clamp_min(0)
    outside = -(o.removed_wrong.double() - distance).clamp_min(0)
    torch.testing.assert_close(terms.area_if_kept_right(o, power=power), inside, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(terms.area_if_removed_wrong(o, power=power), outside, rtol=1e-6, atol=1e-7)


def test_confident_logits_give_finite_values_and_gradients() -> None:
    sure = torch.eye(4) * 1e4
    o = outcome(batch=4)
    kept, removed = sure.clone().requires_grad_(), sure.flip(0).clone().requires_grad_()
    o = Outcome(o.masks.float(), torch.arange(4), sure, kept, removed)
    total = OBJECTIVES["fix"](o).total
    grads = torch.autograd.grad(total.sum(), [kept, removed])
    assert total.isfinite().all() and all(g.isfinite().all() for g in grads)


# Values known by hand


def test_golden_case_of_the_paper() -> None:
    """Spec 1.3: its constants, to the digits that it gives."""
    clean = 5 * torch.eye(4)
    clean[3] = torch.tensor([9.0, 0, 0, 0])
    kept = 3 * torch.eye(4)
    kept[1] = torch.tensor([3.0, 0, 0, 0])
    removed = torch.tensor([[0.0, 2, 0, 0], [0, 2, 0, 0], [0.5, 0, 0, 0], [1, 0, 0, 0]])
    o = Outcome(torch.full((4, 1, 224, 224), 0.25), torch.arange(4), clean, kept, removed)
    means = {name: float(value.mean()) for name, value in OBJECTIVES["ca"](o).terms.items()}
    assert means["max_class_kept"] == pytest.approx(0.8892, abs=5e-5)
    assert means["max_entropy_removed"] == pytest.approx(-0.7990, abs=5e-5)
    assert means["area_if_kept_right"] == pytest.approx(-0.5625, abs=1e-6)
    assert 15 * means["area_if_removed_wrong"] == pytest.approx(-5.625, abs=1e-5)
    assert 0.001 * means["total_variation"] == pytest.approx(0.0084, abs=1e-6)
    assert float(OBJECTIVES["ca"](o).total.mean()) == pytest.approx(0.3351 - 6.4156, abs=1e-4)
    assert o.removed_wrong.tolist() == [True, False, True, False]


@pytest.mark.parametrize(("value", "expected"), [(0.25, 0.0084), (1.0, 0.1344)])
def test_variation_of_a_constant_mask_is_its_border(value, expected) -> None:
    o = Outcome(torch.full((3, 1, 224, 224), value), torch.zeros(3, dtype=torch.long), torch.zeros(3, 2), None, None)
    assert (0.001 * terms.total_variation(o)).tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_variation_of_one_pixel_by_hand() -> None:
    corner, middle = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    corner[..., 0, 0] = middle[..., 1, 1] = 2.0
    assert terms.variation(corner).tolist() == pytest.approx([(2 * 4 + 0.3 * 2 * 4) / 2])
    assert terms.variation(middle).tolist() == [4 * 4 / 2]
    assert terms.variation(middle, power=3.0).tolist() == [4 * 8 / 2]
    assert terms.variation(corner, border=0.0).tolist() == [2 * 4 / 2]


# Published values: ../golden


SIDES = {
    "mask_in/classification/maximize": ("max_class_kept", "area_if_kept_right"),
    "mask_in/entropy/minimize": ("min_entropy_kept", "area_if_kept_right"),
    "mask_out/classification/minimize": ("min_class_removed", "area_if_removed_wrong"),
    "mask_out/entropy/maximize": ("max_entropy_removed", "area_if_removed_wrong"),
}


@pytest.fixture(scope="module")
def published(golden):
    arrays = np.load(golden / "inputs.npz")
    picked = [torch.from_numpy(arrays[name][:16]) for name in ("masks", "labels", "logits", "masked_logits")]
    return picked, json.loads((golden / "scores.json").read_text())["criterion"]


def value(values: Tensor) -> float:
    return values.detach().mean().item()


@pytest.mark.parametrize("case", SIDES)
def test_criterion_gives_the_published_values_and_gradients(published, case) -> None:
    """The published area is F.avg_pool2d(mask, 224) in float32, whose running sum of 50,176 numbers is off the
    exact mean by up to 5e-5; ours is exact. So the area is compared twice: as they sum, with theirs; exactly, with
    float64."""
    (masks, labels, clean, masked), expected = published[0], published[1][case]
    masks = masks.float()[:, None].requires_grad_()
    masked = masked.clone().requires_grad_()
    o = Outcome(masks, labels, clean, masked, masked)
    term, conditional = SIDES[case]
    weighted = Objective(
        {
            term: (1.0, getattr(terms, term)),
            conditional: (expected["lambda_area"], getattr(terms, conditional)),
            "total_variation": (expected["lambda_tv"], terms.total_variation),
        }
    )
    score = weighted(o)
    assert value(score.terms[term]) == pytest.approx(expected["objective"], rel=1e-5)
    assert expected["lambda_tv"] * value(score.terms["total_variation"]) == pytest.approx(expected["tv_term"], rel=1e-5)
    indicator = o.kept_right if conditional == "area_if_kept_right" else o.removed_wrong
    as_they_sum = -F.relu(indicator.float() - F.avg_pool2d(masks, 224).flatten()).mean() * expected["lambda_area"]
    assert value(as_they_sum) == pytest.approx(expected["area_term"], rel=1e-6)
    exact = -F.relu(indicator.double() - masks.double().mean((1, 2, 3))).mean() * expected["lambda_area"]
    ours = expected["lambda_area"] * score.terms[conditional].mean()
    assert value(ours) == pytest.approx(value(exact), rel=1e-6)
    total = value(score.total)
    assert total == pytest.approx(expected["total"] - value(as_they_sum) + value(exact), rel=1e-5)
    assert total == pytest.approx(expected["total"], rel=1e-4)

    grad_mask, grad_logits = torch.autograd.grad(score.total.mean(), [masks, masked])
    assert float(grad_mask.double().abs().sum()) == pytest.approx(expected["grad_mask_l1"], rel=1e-5)
    assert float(grad_mask.double().sum()) == pytest.approx(expected["grad_mask_sum"], rel=1e-5)
    torch.testing.assert_close(grad_logits, torch.tensor(expected["grad_logits"]), rtol=1e-5, atol=1e-8)


# Objective


def test_an_objective_is_its_weighted_sum_with_every_term_by_name() -> None:
    o = outcome()
    score = OBJECTIVES["fix"](o)
    weights = {name: weight for name, (weight, _) in OBJECTIVES["fix"].terms.items()}
    assert weights == {
        "max_class_kept": 1.0,
        "max_entropy_removed": 1.0,
        "area_if_kept_right": 1.0,
        "area_if_removed_wrong": 10.0,
        "total_variation": 0.002,
    }
    assert score.terms.keys() == weights.keys()
    torch.testing.assert_close(score.total, sum(weights[name] * slowly(name, o) for name in weights))


@pytest.mark.parametrize(("name", "area_out"), [("casm_f", 2.5), ("casm_l", 14), ("casm_fl", 7.5), ("casm_l100", 10)])
def test_casm_plays_the_removed_side_alone_at_its_published_weights(name, area_out) -> None:
    casm = OBJECTIVES[name]
    assert casm.sides == {REMOVED}
    assert {n: w for n, (w, _) in casm.terms.items()} == {
        "max_entropy_removed": 1.0,
        "area_if_removed_wrong": area_out,
        "total_variation": 0.001,
    }


def test_dabkowski_and_gal_by_hand() -> None:
    o = outcome()
    expected = (
        slowly("removed_confidence", o)
        + 0.3 * slowly("kept_confidence", o)
        + 8 * slowly("area_root", o)
        + 0.005 * slowly("total_variation", o)
    )
    torch.testing.assert_close(OBJECTIVES["dabkowski_gal"](o).total, expected)


def test_ca_weighs_the_removed_area_by_15() -> None:
    assert OBJECTIVES["ca"].terms["area_if_removed_wrong"][0] == 15.0
    assert OBJECTIVES["ca"].sides == BOTH


def test_weights_can_be_set_and_nothing_else_changes() -> None:
    fix = OBJECTIVES["fix"]
    other = fix.with_weights(area_if_kept_right=0.3)
    assert other.terms["area_if_kept_right"] == (0.3, terms.area_if_kept_right)
    assert {k: v for k, v in other.terms.items() if k != "area_if_kept_right"} == {
        k: v for k, v in fix.terms.items() if k != "area_if_kept_right"
    }
    assert fix.terms["area_if_kept_right"][0] == 1.0
    with pytest.raises(ValueError, match=r"no term 'area_in'; the objective has max_class_kept, "):
        fix.with_weights(area_in=1.0)
    with pytest.raises(TypeError):
        fix.terms["area"] = (1.0, terms.area)
    with pytest.raises(ValueError, match="at least one term"):
        Objective({})


def test_an_unmarked_term_is_taken_to_read_both_sides() -> None:
    assert Objective({"own": (1.0, lambda o: o.masks.mean((1, 2, 3)))}).sides == BOTH
    assert Objective({"area": (1.0, terms.area)}).sides == frozenset()


# Play


class Counting(nn.Module):
    """The batch size of every pass is written down; logits are pooled pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.tap, self.passes = nn.Conv2d(3, 4, 3, 2, 1), []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append((len(x), torch.is_grad_enabled()))
        return self.tap(x).relu().mean((2, 3))


@pytest.fixture
def counting() -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier(Counting(), mean=(0.5,) * 3, std=(0.25,) * 3, layers=("tap",), image_size=16)
    classifier.network.passes.clear()
    return classifier


def scene() -> tuple[Tensor, Tensor, Tensor]:
    g = seeded()
    return torch.rand(3, 3, 16, 16, generator=g), torch.rand(3, 1, 16, 16, generator=g), torch.tensor([0, 1, 3])


def test_play_shows_the_kept_and_the_removed_picture(counting) -> None:
    x, m, y = scene()
    infill = MeanColour()
    o = play(counting, x, m, y, infill=infill)
    torch.testing.assert_close(o.clean, counting.logits(x))
    torch.testing.assert_close(o.kept, counting.logits(keep(x, m, infill)))
    torch.testing.assert_close(o.removed, counting.logits(remove(x, m, infill)))
    assert o.masks is m and o.targets is y


def test_one_batch_equals_two_batches_in_eval_mode_with_their_gradients(small_net) -> None:
    net = small_net.double().eval()
    classifier = Classifier(net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=("stem",), image_size=32)
    g = seeded(3)
    x, y = torch.rand(4, 3, 32, 32, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    m = torch.rand(4, 1, 32, 32, generator=g, dtype=torch.float64).requires_grad_()
    results = []
    for together in (True, False):
        o = play(classifier, x, m, y, infill=MeanColour(), together=together)
        (grad,) = torch.autograd.grad(OBJECTIVES["fix"](o).total.sum(), m)
        results.append((o.kept, o.removed, grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_play_makes_the_passes_that_are_asked_for_and_no_more(counting) -> None:
    x, m, y = scene()
    passes = counting.network.passes

    def made(**options) -> list[tuple[int, bool]]:
        passes.clear()
        play(counting, x, m, y, infill=MeanColour(), **options)
        return list(passes)

    clean = torch.zeros(3, 4)
    assert made() == [(3, False), (6, True)]
    assert made(clean=clean) == [(6, True)]
    assert made(clean=clean, together=False) == [(3, True), (3, True)]
    assert made(clean=clean, sides=frozenset({REMOVED})) == [(3, True)]
    assert made(clean=clean, sides=frozenset()) == []


def test_a_side_that_was_not_played_is_an_error_that_names_it(counting) -> None:
    x, m, y = scene()
    o = play(counting, x, m, y, infill=MeanColour(), sides=frozenset({REMOVED}))
    assert o.kept is None
    with pytest.raises(ValueError, match="the kept side was not played: name it in `sides`"):
        terms.max_class_kept(o)
