"""The loop of per-image optimisation: laws over all builders, toys with a known answer, a slow Opti-CAM."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.scores import SCORES
from salmask.explain.base import Explainer, Explanation, Passes
from salmask.explain.optimise.loop import mean_probability
from salmask.explain.optimise.masks import CLAMPED, MAP_NORMALISERS, Grid, Scene
from salmask.explain.optimise.methods import (
    OPTI_CAM_OBJECTIVES,
    OPTIMISED,
    bank_masks,
    fido,
    meaningful,
    opticam,
    refined,
)
from salmask.explain.optimise.schedule import Adam, Momentum, Schedule, Shift
from salmask.masking import Bank, Blur, MeanColour, RandomColour
from salmask.objective import Objective
from salmask.outcome import Outcome
from salmask.terms import area, max_class_kept, softmax_twice
from salmask.types import Features

BLACK = MeanColour((0.0, 0.0, 0.0))
SIZE = 16


class Half(Explainer):
    """An explainer without a classifier: every pixel one half."""

    def __call__(self, classifier, images, targets=None):
        chosen = torch.zeros(len(images), dtype=torch.long) if targets is None else targets
        return Explanation(
            torch.full_like(images[:, :1], 0.5),
            chosen,
            torch.zeros(len(images), 2),
            Passes(3.0),
        )


class Quadrant(nn.Module):
    """Class 0 is the mean of the upper left quadrant: f = (gain * (mean - 0.25), 0)."""

    def __init__(self, gain: float = 20.0) -> None:
        super().__init__()
        self.gain = gain
        self.tap = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.tap(x)
        score = self.gain * (x[..., : x.shape[-2] // 2, : x.shape[-1] // 2].mean((1, 2, 3)) - 0.25)
        return torch.stack([score, torch.zeros_like(score)], 1)


def small(net: nn.Module) -> Classifier:
    return Classifier(net, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), layers=["stem", "middle", "deep"], image_size=32)


def toy(net: nn.Module) -> Classifier:
    return Classifier(net, mean=(0.0,) * 3, std=(1.0,) * 3, layers=["tap"], image_size=SIZE)


def quick(name: str, **settings: object):
    """Return a builder's explainer with few steps."""
    common = {"iterations": 4, **settings}
    if name == "refined":
        return refined(Half(), **common)
    return OPTIMISED[name](**common)


def loop_of(explainer):
    return getattr(explainer, "optimised", explainer)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=Generator().manual_seed(3))


def inside(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the mask inside and outside the upper left quadrant."""
    where = torch.zeros_like(masks, dtype=torch.bool)
    where[..., : masks.shape[-2] // 2, : masks.shape[-1] // 2] = True
    return masks[where].mean(), masks[~where].mean()


# Laws over the table


@pytest.mark.parametrize("name", OPTIMISED)
def test_maps_are_finite_masks_with_passes(name: str, small_net: nn.Module, images: Tensor) -> None:
    explanation = quick(name)(small(small_net), images, torch.tensor([0, 1, 2]))
    assert explanation.masks.shape == (3, 1, 32, 32)
    assert explanation.masks.isfinite().all()
    assert 0 <= explanation.masks.min() < explanation.masks.max() <= 1
    assert not explanation.masks.requires_grad
    assert explanation.targets.tolist() == [0, 1, 2]
    sides = {"opticam": 1, "meaningful": 1, "extremal": 1, "bank_masks": 10, "fido": 4, "refined": 2}[name]
    first = 3 if name == "refined" else 0
    assert explanation.passes == Passes(1.0 + 4 * sides + first, 4.0 * sides)


@pytest.mark.parametrize("name", OPTIMISED)
def test_a_map_does_not_depend_on_the_batch(name: str, small_net: nn.Module, images: Tensor) -> None:
    classifier, targets = small(small_net), torch.tensor([0, 1, 2, 0])
    batch = torch.cat([images, images[:1]])
    together = quick(name)(classifier, batch, targets).masks
    torch.testing.assert_close(together[0], together[3], rtol=0, atol=1e-5)
    chunked = quick(name, max_batch=2)(classifier, batch, targets).masks
    torch.testing.assert_close(together, chunked, rtol=0, atol=1e-4)
    alone = quick(name)(classifier, batch[1:2], targets[1:2]).masks
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", OPTIMISED)
def test_the_same_call_gives_the_same_map(name: str, small_net: nn.Module, images: Tensor) -> None:
    explainer, classifier = quick(name), small(small_net)
    before = torch.get_rng_state()
    first, second = (explainer(classifier, images).masks for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["bank_masks", "fido", "meaningful"])
def test_another_seed_gives_another_map(name: str, small_net: nn.Module, images: Tensor) -> None:
    classifier = small(small_net)
    maps = [quick(name, seed=seed)(classifier, images).masks for seed in (0, 1)]
    assert not torch.equal(*maps)


@pytest.mark.parametrize("name", OPTIMISED)
@pytest.mark.parametrize("fails_at", [None, 1, 3])
def test_the_network_leaves_as_it_came(name: str, fails_at: int | None, small_net: nn.Module, images: Tensor) -> None:
    classifier = small(small_net)
    small_net.train()
    small_net.deep.eval()
    small_net.head.weight.requires_grad_(False)
    count = [0]

    def fail(module: nn.Module, inputs: object) -> None:
        count[0] += 1
        if count[0] == fails_at:
            raise RuntimeError("failed on purpose")

    handle = small_net.register_forward_pre_hook(fail)
    state = {key: value.clone() for key, value in small_net.state_dict().items()}
    if fails_at is None:
        quick(name)(classifier, images)
    else:
        with pytest.raises(RuntimeError, match="on purpose"):
            quick(name)(classifier, images)
    handle.remove()
    assert small_net.training and small_net.head.training and not small_net.deep.training
    wanted = {key for key, value in small_net.named_parameters() if not value.requires_grad}
    assert wanted == {"head.weight"}
    assert all(value.grad is None for value in small_net.parameters())
    assert all(torch.equal(value, state[key]) for key, value in small_net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in small_net.modules())


@pytest.mark.parametrize("name", OPTIMISED)
def test_callers_gradient_mode_does_not_matter(name: str, small_net: nn.Module, images: Tensor) -> None:
    classifier = small(small_net)
    expected = quick(name)(classifier, images).masks
    with torch.no_grad():
        assert torch.equal(quick(name)(classifier, images).masks, expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(quick(name)(classifier, images.clone()).masks, expected)
    wanting = images.clone().requires_grad_()
    assert torch.equal(quick(name)(classifier, wanting).masks, expected)
    assert wanting.grad is None


@pytest.mark.parametrize("name", OPTIMISED)
def test_bfloat16_weights(name: str, small_net: nn.Module, images: Tensor) -> None:
    explanation = quick(name)(small(small_net.bfloat16()), images)
    assert explanation.masks.dtype == torch.float32
    assert explanation.masks.isfinite().all()
    assert not explanation.degenerate.any()


@pytest.mark.parametrize("name", OPTIMISED)
def test_pictures_that_are_not_square(name: str, small_net: nn.Module) -> None:
    picture = torch.rand(1, 3, 24, 40, generator=Generator().manual_seed(0))
    masks = quick(name)(small(small_net), picture).masks
    assert masks.shape == (1, 1, 24, 40)
    assert masks.isfinite().all()


@pytest.mark.parametrize("name", OPTIMISED)
def test_flat_pictures_give_no_nan(name: str, small_net: nn.Module) -> None:
    masks = quick(name)(small(small_net), torch.zeros(2, 3, 32, 32)).masks
    assert masks.isfinite().all()


# The loop


class Counter(nn.Module):
    """f = (mean of the tap, 0); counts the pictures that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        score = self.tap(x).square().mean((1, 2, 3))
        return torch.stack([score, -score], 1)


def test_an_image_that_is_done_leaves_the_batch() -> None:
    net = Counter()
    classifier = toy(net)
    net.seen.clear()
    flat, rich = torch.full((1, 3, SIZE, SIZE), 0.5), torch.rand(1, 3, SIZE, SIZE)
    explainer = opticam(iterations=6, tolerance=1e-10)
    found = explainer.solve(classifier, torch.cat([rich, flat, rich]), torch.zeros(3, dtype=torch.long))
    assert found.steps.tolist() == [6, 2, 6]
    assert net.seen == [3, 3, 3, 2, 2, 2, 2]
    assert found.history[:2].isfinite().all()
    assert found.history[2:, 1].isnan().all()
    assert found.passes == Passes(1 + 14 / 3, 14 / 3)
    alone = explainer.solve(classifier, rich, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(found.masks[2:], alone.masks, rtol=0, atol=1e-6)


def test_all_done_stops_the_loop() -> None:
    classifier = toy(Counter())
    found = opticam(iterations=50).solve(classifier, torch.full((2, 3, SIZE, SIZE), 0.5))
    assert len(found.history) == 2
    assert found.steps.tolist() == [2, 2]


def test_chunks_with_histories_of_different_length_join() -> None:
    classifier = toy(Counter())
    pictures = torch.cat([torch.full((1, 3, SIZE, SIZE), 0.5), torch.rand(1, 3, SIZE, SIZE)])
    found = opticam(iterations=5, max_batch=1).solve(classifier, pictures)
    assert found.history.shape == (5, 2)
    assert found.steps.tolist() == [2, 5]
    assert found.passes == Passes(1 + 7 / 2, 7 / 2)


def test_best_returns_the_lowest_value_seen() -> None:
    classifier = toy(Quadrant())
    picture = torch.full((1, 3, SIZE, SIZE), 0.8)
    wild = Schedule(3, Adam(lr=8.0))  # overshoots
    base = replace(meaningful(infill=BLACK, jitter=0), schedule=wild)
    best = replace(base, schedule=replace(wild, best=True))
    found = best.solve(classifier, picture, torch.tensor([0]))
    low = int(found.history[:, 0].argmin())
    assert low < 2
    until = replace(base, schedule=replace(wild, iterations=max(low, 1)))
    expected = until.solve(classifier, picture, torch.tensor([0])).masks if low else torch.full((), 0.5)
    torch.testing.assert_close(found.masks, expected.expand_as(found.masks))


def test_momentum_follows_the_formula() -> None:
    """Theta after three steps of f = mean(theta), whose slope is constant, is -lr * g * (1 + 1.5 + 1.75)."""
    objective = Objective({"area": (1.0, area), "kept": (0.0, max_class_kept)})
    method = replace(
        meaningful(), parametrisation=Grid(stride=4, link=CLAMPED), objective=objective, view=None,
        schedule=Schedule(3, Momentum(lr=1.0, momentum=0.5)),
    )  # fmt: skip
    masks = method.solve(toy(Quadrant()), torch.rand(1, 3, SIZE, SIZE), torch.tensor([0])).masks
    expected = 0.5 - (1 + 1.5 + 1.75) / 16
    torch.testing.assert_close(masks.mean(), torch.tensor(expected))


def test_out_of_memory_halves_the_batch_and_says_so(small_net: nn.Module, images: Tensor) -> None:
    classifier = small(small_net)
    expected = quick("opticam")(classifier, images).masks

    def limited(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > 1:
            raise torch.OutOfMemoryError("no room")

    small_net.register_forward_pre_hook(limited)
    with pytest.warns(UserWarning, match="going on with 1 image a pass"):
        masks = quick("opticam", max_batch=3)(classifier, images).masks
    torch.testing.assert_close(masks, expected, rtol=0, atol=1e-5)


def test_out_of_memory_of_one_image_is_an_error(small_net: nn.Module, images: Tensor) -> None:
    classifier = small(small_net)

    def never(module: nn.Module, inputs: object) -> None:
        raise torch.OutOfMemoryError("no room")

    small_net.register_forward_pre_hook(never)
    with pytest.raises(torch.OutOfMemoryError):
        quick("opticam", max_batch=1)(classifier, images)


def test_the_infill_of_a_blur_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(Blur, "__call__", lambda self, x, holes: calls.append(1) or x * 0)
    meaningful(iterations=5)(toy(Quadrant()), torch.rand(2, 3, SIZE, SIZE))
    assert len(calls) == 1


def test_a_random_infill_restarts_and_is_shared_by_all_images(small_net: nn.Module, images: Tensor) -> None:
    generator = Generator().manual_seed(9)
    before = generator.get_state()
    explainer = meaningful(infill=RandomColour(generator), iterations=3)
    classifier, same = small(small_net), images[:1].repeat(2, 1, 1, 1)
    first = explainer(classifier, same).masks
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=1e-6)
    assert torch.equal(explainer(classifier, same).masks, first)
    assert torch.equal(generator.get_state(), before)


def test_shift_rolls_all_pictures_alike() -> None:
    pictures = torch.rand(2, 3, 8, 8)
    moved = Shift(2, at=8)(pictures, 0, Generator().manual_seed(1))
    offsets = torch.randint(-2, 3, (2,), generator=Generator().manual_seed(1)).tolist()
    assert offsets != [0, 0]
    assert torch.equal(moved, pictures.roll(offsets, (2, 3)))


# Opti-CAM


def slow_opticam(net: nn.Module, image: Tensor, target: int, steps: int, objective: str) -> tuple[Tensor, list[float]]:
    """Opti-CAM of one image as it stands in the paper, float64, nothing shared with the library."""
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.25], dtype=torch.float64).view(3, 1, 1)

    def f(picture: Tensor) -> Tensor:
        return net(((picture - mean) / std)[None])[0, target]

    with torch.no_grad():
        x = ((image - mean) / std)[None]
        maps = net.deep(net.middle(net.stem(x)).relu())[0].relu()
        clean = f(image)
    u = torch.full((len(maps),), 0.5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([u], lr=0.1)

    def saliency() -> Tensor:
        summed = sum(weight * a for weight, a in zip(u.exp() / u.exp().sum(), maps, strict=True))
        large = F.interpolate(summed[None, None], (32, 32), mode="bilinear", align_corners=False)[0, 0]
        return (large - large.min()) / (large.max() - large.min())

    values = []
    for _ in range(steps):
        s = saliency()
        kept, removed = f(image * s), f(image * (1 - s))
        loss = {
            "mask": -kept,
            "diff": (clean - kept).abs(),
            "iomask": removed - kept,
            "iodiff": (clean - kept).abs() - (clean - removed).abs(),
        }[objective]
        adam.zero_grad()
        loss.backward()
        adam.step()
        values.append(loss.item())
    return saliency().detach(), values


@pytest.mark.parametrize("objective", OPTI_CAM_OBJECTIVES)
def test_opticam_equals_a_slow_one(objective: str, small_net: nn.Module, images: Tensor) -> None:
    classifier, steps = small(small_net), 12
    found = opticam(objective=objective, iterations=steps).solve(classifier, images, torch.tensor([2, 0, 1]))
    slow_net = small_net.double().eval()
    for k, target in enumerate([2, 0, 1]):
        expected, values = slow_opticam(slow_net, images[k].double(), target, steps, objective)
        torch.testing.assert_close(found.history[:, k].double(), torch.tensor(values).double(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.masks[k, 0].double(), expected, rtol=0, atol=2e-3)


class Channels(nn.Module):
    """Four spots, one a channel, and a class that spot 2 speaks for and the others against."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = nn.AvgPool2d(4)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.tap(x.mean(1, keepdim=True))
        maps = torch.cat([cells * spot for spot in spots(cells)], 1)
        maps = self.out(maps)
        score = 2 * maps[:, 2].mean((1, 2)) - maps.mean((2, 3)).sum(1)
        return torch.stack([10 * score, torch.zeros_like(score)], 1)


def spots(cells: Tensor) -> list[Tensor]:
    found = []
    for row, column in ((0, 0), (0, 3), (3, 0), (3, 3)):
        spot = torch.zeros_like(cells[:1])
        spot[..., row, column] = 1
        found.append(spot)
    return found


def test_opticam_finds_the_decisive_channel() -> None:
    net = Channels()
    net.out = nn.Identity()
    classifier = Classifier(net, mean=(0.0,) * 3, std=(1.0,) * 3, layers=["out"], image_size=SIZE)
    explainer = opticam(iterations=60, layer="out")
    masks = explainer(classifier, torch.full((1, 3, SIZE, SIZE), 0.7), torch.tensor([0])).masks[0, 0]
    assert masks[-2:, :2].min() > 0.9
    assert masks[:4].max() < 0.1 and masks[-4:, -4:].max() < 0.1


@pytest.mark.parametrize("name", MAP_NORMALISERS)
def test_normalisers_on_flat_and_negative_maps(name: str) -> None:
    maps = torch.stack([torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])]).requires_grad_()
    masks = MAP_NORMALISERS[name](maps)
    masks.sum().backward()
    assert masks.isfinite().all() and maps.grad.isfinite().all()
    expected = {
        "range": [0, 0.25, 0.5, 1],
        "max": [0.2, 0.4, 0.6, 1],
        "sigmoid": [1 / (1 + math.exp(-v)) for v in (1, 2, 3, 5)],
    }[name]
    torch.testing.assert_close(masks[1].flatten().detach(), torch.tensor(expected))


def test_opticam_of_constant_maps_is_degenerate_not_nan() -> None:
    explanation = opticam(iterations=3)(toy(Quadrant()), torch.full((1, 3, SIZE, SIZE), 0.5))
    assert explanation.masks.isfinite().all()
    assert explanation.degenerate.all()


def test_layers_by_name_and_index_agree(small_net: nn.Module, images: Tensor) -> None:
    classifier = small(small_net)
    maps = [opticam(layer=layer, iterations=3)(classifier, images).masks for layer in (1, -2, "middle")]
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2])


# Cells


def test_meaningful_removes_the_quadrant_that_counts() -> None:
    explainer = meaningful(cells=8, infill=BLACK, jitter=0, iterations=120, l1=3e-3, tv=1e-3)
    masks = explainer(toy(Quadrant()), torch.full((1, 3, SIZE, SIZE), 0.8), torch.tensor([0])).masks
    within, without = inside(masks)
    assert within > 0.5 and without < 0.1


@pytest.mark.parametrize("variant", ["sufficient", "destroying"])
def test_fido_finds_the_quadrant_that_counts(variant: str) -> None:
    explainer = fido(variant=variant, cells=8, infill=BLACK, iterations=80, lr=0.1, price=2.0)
    masks = explainer(toy(Quadrant()), torch.full((1, 3, SIZE, SIZE), 0.8), torch.tensor([0])).masks
    within, without = inside(masks)
    assert within > 0.7 and without < 0.2


def test_fido_leaves_no_cell_undecided_by_default() -> None:
    picture = torch.full((1, 3, SIZE, SIZE), 0.8)
    masks = fido(infill=BLACK)(toy(Quadrant()), picture, torch.tensor([0])).masks
    within, without = inside(masks)
    assert within > 0.9 and without < 0.1
    assert ((masks < 0.15) | (masks > 0.85)).float().mean() > 0.85


@pytest.mark.parametrize("size", [16, 32])
def test_the_price_of_fido_is_that_of_the_picture_whatever_its_size(size: int) -> None:
    blank = toy(Quadrant(gain=1e-6))  # nothing to speak of but the price moves the cells
    found = [
        fido(cells=cells, iterations=20)(blank, torch.rand(1, 3, size, size), torch.tensor([0])).masks
        for cells in (4, 8)
    ]
    torch.testing.assert_close(found[0].mean(), found[1].mean(), rtol=1e-3, atol=1e-3)
    assert found[0].mean() < 0.2


def test_bank_masks_keep_the_quadrant_and_drop_the_rest() -> None:
    bank = Bank(torch.rand(6, 3, SIZE, SIZE, generator=Generator().manual_seed(0)) * 0.3, Generator())
    explainer = bank_masks(infill=bank, draws=3, stride=2, l1=2e-6, tv=1e-4, iterations=80, lr=0.2)
    masks = explainer(toy(Quadrant()), torch.full((1, 3, SIZE, SIZE), 0.8), torch.tensor([0])).masks
    within, without = inside(masks)
    assert within > 0.6 and without < 0.2


def test_maps_for_labels_are_the_maps_of_each_label(small_net: nn.Module, images: Tensor) -> None:
    classifier, explainer = small(small_net), quick("bank_masks", draws=2)
    maps = explainer.for_labels(classifier, images, torch.tensor([3, 1]))
    assert maps.shape == (3, 2, 32, 32)
    for k, label in enumerate([3, 1]):
        alone = explainer(classifier, images, torch.full((3,), label)).masks[:, 0]
        torch.testing.assert_close(maps[:, k], alone, rtol=0, atol=1e-4)
    each = explainer.for_labels(classifier, images, torch.tensor([[3, 1]] * 3))
    torch.testing.assert_close(each, maps)


def test_mean_probability_of_draws() -> None:
    logits = torch.randn(5, 2, 4, generator=Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(mean_probability(logits).softmax(1), logits.softmax(2).mean(0))


def test_scores_by_hand() -> None:
    logits, targets = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])
    p = math.exp(2) / (math.exp(2) + 1 + math.exp(1))
    expected = {
        "logit": 2.0,
        "probability": p,
        "log_probability": math.log(p),
        "margin": 1.0,
        "log_odds": math.log(p / (1 - p)),
        "sigmoid": 1 / (1 + math.exp(-2)),
    }
    assert expected.keys() == SCORES.keys()
    for name, score in SCORES.items():
        assert score(logits, targets).item() == pytest.approx(expected[name], rel=1e-5), name


def test_softmax_twice_by_hand() -> None:
    q = torch.tensor([[0.2, 0.7, 0.1]])
    outcome = Outcome(torch.ones(1, 1, 2, 2), torch.tensor([1]), q.log(), q.log(), None)
    expected = -0.7 + math.log(math.exp(0.2) + math.exp(0.7) + math.exp(0.1))
    assert softmax_twice(outcome).item() == pytest.approx(expected, rel=1e-5)


# Starts


def test_refining_lowers_the_objective_of_the_first_map(small_net: nn.Module, images: Tensor) -> None:
    explainer = refined(Half(), iterations=15)
    found = explainer.optimised.solve(small(small_net), images, start=torch.full_like(images[:, :1], 0.5))
    assert (found.history.amin(0) < found.history[0]).all()
    masks = explainer(small(small_net), images).masks
    torch.testing.assert_close(masks, found.masks)


def test_refining_starts_at_the_given_map() -> None:
    start = torch.zeros(1, 1, 8, 8)
    start[..., :4, :] = 1
    scene = Scene(torch.rand(1, 3, 8, 8), torch.tensor([0]), Features(torch.zeros(1, 2), []), start=start)
    for grid, edge in ((Grid(stride=4), 0.01), (Grid(stride=4, link=CLAMPED), 0.0)):
        cells = grid.link.forward(grid.begin(scene).parameters)
        torch.testing.assert_close(cells, torch.tensor([[[[1 - edge] * 2, [edge] * 2]]]))


def test_refined_passes_on_what_the_first_explainer_wants() -> None:
    class Wanting(Half):
        wants = frozenset({"ids"})

        def __call__(self, classifier, images, targets=None, *, ids=None):
            assert ids == ["a"]
            return super().__call__(classifier, images, targets)

    explainer = refined(Wanting(), iterations=1)
    assert explainer.wants == {"ids"}
    explainer(toy(Quadrant()), torch.rand(1, 3, SIZE, SIZE), ids=["a"])


# Failures


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: opticam(normaliser="rang"), "did you mean 'range'"),
        (lambda: opticam(objective="in"), "unknown objective"),
        (lambda: opticam(score="loss"), "unknown score"),
        (lambda: fido(variant="both"), "unknown variant"),
        (lambda: opticam(iterations=0), "iterations >= 1"),
        (lambda: opticam(tolerance=-1.0), "tolerance >= 0"),
        (lambda: opticam(max_batch=0), "max_batch >= 1"),
        (lambda: replace(opticam(), objective=Objective({"area": (1.0, area)})), "neither the kept"),
    ],
)
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("explainer", "count", "targets", "message"),
    [
        (opticam(layer="deeper"), 1, None, "does not read layer 'deeper'"),
        (opticam(layer=7), 1, None, "does not read layer 7"),
        (opticam(), 0, None, "at least one image"),
        (opticam(), 2, torch.tensor([0]), r"expected targets \(2,\)"),
        (opticam(), 2, torch.tensor([0, 9]), "targets run from 0 to 9"),
    ],
)
def test_bad_calls(explainer, count: int, targets: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explainer(toy(Quadrant()), torch.rand(count, 3, SIZE, SIZE), targets)


def test_a_start_of_the_wrong_size() -> None:
    with pytest.raises(ValueError, match="resize them first"):
        opticam().solve(toy(Quadrant()), torch.rand(1, 3, SIZE, SIZE), start=torch.rand(1, 1, 4, 4))
