"""docs/conventions.md, line by line: `test_convention_<number>_*` fails where that line is broken."""

import copy
import inspect
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from conftest import SmallNet
from salmask import terms
from salmask.boxes import boxes_of, iou, mask_boxes, paint
from salmask.classifier import Classifier
from salmask.data import Sample, Squash, collate, no_boxes
from salmask.data.tensors import TensorPictures
from salmask.explain import EXPLAINERS, Explanation
from salmask.explain.base import NORMALISERS, Passes
from salmask.explain.learned import Learned
from salmask.masker import Masker
from salmask.masking import Bank, Blur, MeanColour, Noise, RandomColour, keep, remove
from salmask.metrics import METRICS, Case
from salmask.objective import OBJECTIVES
from salmask.outcome import Outcome, play
from salmask.training.recipes import RECIPES
from salmask.training.run import Loaded, Sight, load_run
from salmask.training.settings import Settings
from salmask.training.train_run import train_run
from salmask.training.variant import stream_of

SIZE = 32
PLAIN = sorted(name for name in METRICS if ":" not in name)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pictures(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=seeded(1))


def soft(batch: int = 3) -> Tensor:
    coarse = torch.rand(batch, 1, 6, 6, generator=seeded(2))
    return F.interpolate(coarse, (SIZE, SIZE), mode="bilinear", align_corners=False)


@pytest.fixture
def classifier(small_net: SmallNet) -> Classifier:
    net = small_net.eval()
    return Classifier(
        net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), layers=("stem", "middle", "deep"), image_size=SIZE
    )


@pytest.fixture
def learned(classifier: Classifier) -> Learned:
    return Learned(Masker.for_classifier(classifier, layers=(1, 2), width=8, generator=seeded()))


def test_every_line_of_the_document_has_its_test() -> None:
    document = (Path(__file__).parents[1] / "docs" / "conventions.md").read_text()
    stated = {int(number) for number in re.findall(r"^(\d+)\. ", document, flags=re.M)}
    tested = {int(found[1]) for name in globals() if (found := re.match(r"test_convention_(\d+)_\w+", name))}
    assert stated == tested == set(range(1, 13))


# 1. Images


def test_convention_1_data_gives_float_rgb_in_0_1_and_only_the_classifier_normalises(classifier) -> None:
    red = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    red[0] = 255
    images = collate([Sample("red.png", red, 0, no_boxes())]).images
    assert images.shape == (1, 3, SIZE, SIZE) and images.dtype == torch.float32
    assert images.amax((0, 2, 3)).tolist() == [1.0, 0.0, 0.0]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    bare = classifier.network((images - mean) / std)
    torch.testing.assert_close(classifier.logits(images), bare)
    torch.testing.assert_close(classifier.features(images).logits, bare)
    with pytest.raises(ValueError, match="divide 8-bit pictures by 255"):
        classifier.logits(red[None])


# 2. Masks


def test_convention_2_masks_are_one_channel_in_0_1_and_one_is_evidence(classifier, learned) -> None:
    x = pictures()
    masks = learned(classifier, x).masks
    assert masks.shape == (3, 1, SIZE, SIZE) and masks.is_floating_point()
    assert masks.min() >= 0 and masks.max() <= 1
    evidence = torch.zeros(3, 1, SIZE, SIZE)
    evidence[..., 4:12, 4:12] = 1
    kept = keep(x, evidence, MeanColour())
    assert torch.equal(kept[..., 4:12, 4:12], x[..., 4:12, 4:12])
    assert not torch.equal(kept[..., 20:, 20:], x[..., 20:, 20:])


def test_convention_2_the_zero_fill_is_the_classifier_s_mean_colour(classifier) -> None:
    x = pictures()
    filled = keep(x, torch.zeros(3, 1, SIZE, SIZE), MeanColour.of(classifier))
    zeros = torch.zeros_like(x)
    torch.testing.assert_close(classifier.logits(filled), classifier.network(zeros), rtol=1e-4, atol=1e-5)


# 3. Keep and remove


@pytest.mark.parametrize("infill", [MeanColour(), Blur(), Blur(border=(0.5, 0.5, 0.5))])
def test_convention_3_keep_is_the_formula_and_remove_its_complement(infill) -> None:
    x, m = pictures(), soft()
    torch.testing.assert_close(keep(x, m, infill), m * x + (1 - m) * infill(x, 1 - m))
    assert torch.equal(remove(x, m, infill), keep(x, 1 - m, infill))


def test_convention_3_an_infill_is_given_pictures_and_holes_and_no_side(classifier) -> None:
    seen: list[tuple[tuple, dict]] = []

    def infill(*arguments, **named) -> Tensor:
        seen.append((arguments, named))
        return torch.zeros(1, 3, 1, 1)

    x, m = pictures(), soft()
    play(classifier, x, m, torch.tensor([0, 1, 2]), infill=infill)
    assert len(seen) == 2
    for (arguments, named), holes in zip(seen, (1 - m, m), strict=True):
        assert len(arguments) == 2 and not named
        assert torch.equal(arguments[0], x)
        torch.testing.assert_close(arguments[1], holes)


# 4. Points and boxes


def test_convention_4_boxes_are_x_before_y_and_half_open() -> None:
    masks = torch.zeros(1, 1, 20, 30)
    masks[0, 0, 5:9, 12:25] = 1  # rows 5 ... 8, columns 12 ... 24
    box = mask_boxes(masks)
    assert box.tolist() == [[12, 5, 25, 9]]
    assert torch.equal(paint(box, (20, 30)).bool(), masks[0, 0].bool())
    assert boxes_of(masks[0, 0].to(torch.uint8)).tolist() == [[12, 5, 25, 9]]
    touching = torch.tensor([[25.0, 5, 28, 9]])
    assert float(iou(box, touching)[0]) == 0  # half-open: the edge that they share belongs to one of them
    assert float(iou(box, box)[0]) == 1


def test_convention_4_boxes_move_with_their_pictures_in_the_pixels_of_the_new_array() -> None:
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    sample = Sample("wide.png", image, 0, torch.tensor([[10.0, 5, 20, 15]]))
    assert Squash(80)(sample).boxes.tolist() == [[20, 20, 40, 60]]


# 5. Resizing


def test_convention_5_resizing_is_bilinear_between_pixel_centres(classifier) -> None:
    coarse = torch.arange(16.0).reshape(1, 1, 4, 4) / 15
    row = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])  # centres of 8 in 4, clamped at the border
    expected = (4 * row[:, None] + row[None]) / 15
    masker = Masker.for_classifier(classifier, layers=(1, 2), width=8, upsample="bilinear", stride=2)
    torch.testing.assert_close(masker.enlarge(coarse, (8, 8))[0, 0], expected)
    bank = Bank(coarse.expand(1, 3, 4, 4), seeded())
    torch.testing.assert_close(bank(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))[0, 0], expected)


def test_convention_5_no_other_way_of_resizing_is_asked_for_anywhere() -> None:
    source = Path(inspect.getfile(Classifier)).parent
    for path in source.rglob("*.py"):
        assert "align_corners=True" not in path.read_text(), path.name


# 6. Targets and logits


def test_convention_6_logits_are_not_normalised_and_targets_are_indices(classifier) -> None:
    logits = classifier.logits(pictures())
    with torch.no_grad():
        classifier.network.head.bias += 3
        shifted = classifier.logits(pictures())
    torch.testing.assert_close(shifted, logits + 3)  # any normalisation would take the shift away
    targets = EXPLAINERS["center"]()(classifier, pictures()).targets
    assert targets.shape == (3,) and not targets.is_floating_point()
    assert torch.equal(targets, logits.argmax(1))
    for wrong in (torch.tensor([0, 1]), torch.tensor([0.0, 1, 2]), torch.tensor([0, 1, 4])):
        with pytest.raises(ValueError, match="targets"):
            EXPLAINERS["center"]()(classifier, pictures(), wrong)


# 7. One value per image


def outcome(rows: slice = slice(None)) -> Outcome:
    g = seeded(4)
    logits = torch.randn(3, 6, 4, generator=g)
    masks, targets = torch.rand(6, 1, 8, 8, generator=g), torch.tensor([0, 1, 2, 3, 0, 1])
    images = torch.rand(6, 3, 8, 8, generator=g)
    return Outcome(masks[rows], targets[rows], *(side[rows] for side in logits), images=images[rows])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_convention_7_terms_give_one_value_per_image_whatever_stands_beside_it(name) -> None:
    score = OBJECTIVES[name](outcome())
    for values in (score.total, *score.terms.values()):
        assert values.shape == (6,)
    alone = torch.cat([OBJECTIVES[name](outcome(slice(k, k + 1))).total for k in range(6)])
    torch.testing.assert_close(score.total, alone)


def case(classifier: Classifier, rows: slice = slice(None)) -> Case:
    boxes = [torch.tensor([[3.0, 4, 20, 18]]), torch.tensor([[8.0, 8, 30, 30]]), torch.tensor([[0.0, 0, 9, 31]])]
    pixels = [paint(box, (SIZE, SIZE)) for box in boxes]
    x = pictures()
    return Case(
        masks=soft()[rows],
        targets=torch.tensor([0, 1, 2])[rows],
        ids=["a", "b", "c"][rows],
        seed=0,
        boxes=boxes[rows],
        pixels=pixels[rows],
        images=x[rows],
        classifier=classifier,
        correct=torch.tensor([True, False, True])[rows],
    )


@pytest.mark.parametrize("name", PLAIN)
def test_convention_7_metrics_give_one_value_or_count_per_image_whatever_the_batch(classifier, name) -> None:
    metric = METRICS[name]
    if metric.needs - {"boxes", "pixels", "images", "classifier", "correct"}:
        pytest.skip("needs ground truth that this case has not")
    with classifier.frozen():
        whole = np.asarray(metric.function(case(classifier)))
        alone = np.concatenate([np.asarray(metric.function(case(classifier, slice(k, k + 1)))) for k in range(3)])
    assert whole.shape[0] == 3 and (metric.compute is not None or whole.ndim == 1)
    np.testing.assert_allclose(whole, alone, rtol=1e-4, atol=1e-5)
    if metric.compute is not None:
        assert np.isfinite(metric.compute(whole))


# 8. The class explained, and raw maps


def test_convention_8_every_explainer_is_told_the_class_and_no_metric_has_one_of_its_own(classifier, learned) -> None:
    given = torch.tensor([3, 3, 0])
    for explainer in (learned, EXPLAINERS["center"](), EXPLAINERS["gradcam"]()):
        assert torch.equal(explainer(classifier, pictures(), given).targets, given)
    required = {field.name for field in fields(Case) if field.default is field.default_factory}
    assert {"masks", "targets", "ids"} <= required


def test_convention_8_another_class_gives_another_map_of_a_class_specific_explainer(classifier) -> None:
    gradcam = EXPLAINERS["gradcam"]()
    one, other = (gradcam(classifier, pictures(), torch.full((3,), k)).masks for k in (0, 1))
    assert not torch.allclose(one, other)


def test_convention_8_maps_are_raw_until_they_are_normalised(classifier) -> None:
    raw = torch.tensor([[[[-2.0, 0.0], [3.0, 8.0]]]])
    explanation = Explanation(raw, torch.tensor([0]), torch.zeros(1, 2), Passes(1), range=(-float("inf"), float("inf")))
    assert explanation.masks is raw and explanation.normalized("none").masks is raw
    assert explanation.normalized("minmax").masks.flatten().tolist() == pytest.approx([0, 0.2, 0.5, 1])
    assert explanation.normalized("max").masks.flatten().tolist() == pytest.approx([0, 0, 0.375, 1])
    assert explanation.normalized("rank").masks.flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert set(NORMALISERS) == {"none", "minmax", "max", "rank"}
    with pytest.raises(ValueError, match="unknown normalisation 'softmax'"):
        explanation.normalized("softmax")
    cam = EXPLAINERS["gradcam"]()(classifier, pictures())
    assert cam.range[1] == float("inf") and float(cam.masks.max()) != 1.0


# 9. Randomness


def drawn(seed: int) -> list[Tensor]:
    x, m = pictures(), soft()
    infills = (Noise(seeded(seed)), RandomColour(seeded(seed)), Bank(pictures(9), seeded(seed)))
    return [infill(x, m) for infill in infills]


def test_convention_9_the_same_seed_draws_the_same_and_the_global_generator_is_not_touched() -> None:
    torch.manual_seed(1)
    one = drawn(7)
    untouched = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(untouched, torch.rand(2))
    torch.manual_seed(2)
    assert all(map(torch.equal, one, drawn(7)))
    assert not any(map(torch.equal, one, drawn(8)))


def test_convention_9_a_masker_s_first_weights_are_those_of_its_generator() -> None:
    weights = []
    for noise, seed in enumerate((7, 7, 8)):
        torch.manual_seed(noise)
        weights.append(Masker((8, 12, 16), (2, 4, 8), layers=(1, 2), width=8, generator=seeded(seed)).final.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_convention_9_random_maps_are_keyed_by_seed_and_image(classifier) -> None:
    x, ids = pictures(), ["a", "b", "c"]
    draws = [EXPLAINERS["random"](seed=seed)(classifier, x, ids=ids).masks for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    turned = EXPLAINERS["random"](seed=0)(classifier, x.flip(0), ids=ids[::-1]).masks
    assert torch.equal(turned.flip(0), draws[0])  # the image decides, not its place in the batch
    assert not torch.equal(draws[0][0], draws[0][1])


# 10. The user's network


def test_convention_10_a_network_leaves_every_call_as_it_entered_also_when_it_fails(small_net, monkeypatch) -> None:
    small_net.train()
    small_net.middle.eval()
    small_net.head.weight.requires_grad_(False)
    small_net.deep.weight.grad = torch.ones_like(small_net.deep.weight)
    small_net.stem.register_forward_hook(lambda *_: None)

    def state() -> list[object]:
        return [
            [m.training for m in small_net.modules()],
            [(p.requires_grad, p.device, None if p.grad is None else p.grad.tolist()) for p in small_net.parameters()],
            [
                len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
                for m in small_net.modules()
            ],
            {key: value.tolist() for key, value in small_net.state_dict().items()},
        ]

    before = copy.deepcopy(state())
    classifier = Classifier(small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=("stem", "deep"), image_size=SIZE)
    masker = Masker.for_classifier(classifier, layers=(0, 1), width=8, generator=seeded())
    explainers = [Learned(masker), EXPLAINERS["gradcam"](), EXPLAINERS["center"]()]
    for explainer in explainers:
        explainer(classifier, pictures())
        assert state() == before, explainer

    def dies(x: Tensor) -> Tensor:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(small_net.head, "forward", dies)
    for explainer in explainers:
        with pytest.raises(RuntimeError, match="in the middle"):
            explainer(classifier, pictures())
        assert state() == before, explainer


def test_convention_10_objectives_leave_no_gradient_behind(classifier) -> None:
    masks = soft().requires_grad_()
    with classifier.frozen():
        o = play(classifier, pictures(), masks, torch.tensor([0, 1, 2]), infill=MeanColour())
        OBJECTIVES["fix"](o).total.sum().backward()
    assert masks.grad is not None
    assert all(p.grad is None and p.requires_grad for p in classifier.network.parameters())
    assert terms.area(o).shape == (3,)


# 11. The user's own classifier


def test_convention_11_a_classifier_that_was_trained_alongside_never_speaks_for_the_user_s_own(tmp_path) -> None:
    torch.manual_seed(0)
    own = Classifier.from_timm("test_resnet", pretrained=False, num_classes=3, image_size=64).eval()
    images = torch.rand(6, 3, 64, 64, generator=seeded())
    with torch.no_grad():
        said = own.logits(images)
    dataset = TensorPictures(images, [0, 1, 2, 0, 1, 2])
    settings = Settings(epochs=1, batch_size=3, classifier_lr=0.1, precision="32-true")
    train_run(
        dataset,
        Loaded(own, "test_resnet", Sight(64), ("a", "b", "c")),
        recipe=RECIPES["ca"],
        settings=settings,
        batches=stream_of(dataset, settings, None),
        masker_options={"layers": (3, 4)},
        out=tmp_path,
        facts={},
    )
    run = load_run(tmp_path)
    explanation = Learned(run.masker).read_by(run.reader)(run.loaded.classifier, images)
    with torch.no_grad():
        assert torch.equal(own.logits(images), said)  # the network that was handed in is as it was
        assert not torch.allclose(run.reader.logits(images), said)  # the one that learned is another
    assert torch.allclose(explanation.logits, said, atol=1e-6)


# 12. Gradients


class Cut(SmallNet):
    """A network through which no gradient comes back."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.middle(self.stem(x)))
        x = self.relu(self.deep(x))
        return self.head(x.mean((2, 3)).detach())


@pytest.mark.parametrize("name", ["gradcam", "layercam", "gradient", "meaningful"])
def test_convention_12_a_gradient_that_does_not_arrive_is_an_error(name) -> None:
    classifier = Classifier(Cut(), mean=(0.5,) * 3, std=(0.2,) * 3, layers=("stem", "deep"), image_size=SIZE)
    with pytest.raises(ValueError, match=r"gradient|do not depend on layer"):
        EXPLAINERS[name]()(classifier, pictures())
    EXPLAINERS["occlusion"](window=16, stride=16)(classifier, pictures())  # which needs none
