import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metric_cases import linear, part, random_case
from salmask.boxes import mask_boxes
from salmask.classifier import Classifier
from salmask.metrics import METRICS, Case, check_maps, generator_for
from salmask.metrics.attention import ATTENTION
from salmask.metrics.localization import (
    LOCALIZATION,
    best_iou,
    crop,
    energy_inside,
    f1_of_boxes,
    pointing_game,
    saliency_terms,
)
from salmask.metrics.maps import MAPS, area_moments, mask_entropy, mask_mean, mask_std, mask_tv
from salmask.metrics.wsol import WSOL
from salmask.types import constant
from test_boxes import bump

TABLE = {**LOCALIZATION, **WSOL, **MAPS, **ATTENTION}


def numbers(name: str, case: Case) -> np.ndarray:
    return METRICS[name](case).numpy()


@pytest.fixture(scope="module")
def published(golden: Path) -> tuple[Case, dict, dict]:
    with np.load(golden / "inputs.npz") as file:
        arrays = dict(file)
    scores = json.loads((golden / "scores.json").read_text())
    labels = torch.from_numpy(arrays["labels"])
    case = Case(
        masks=torch.from_numpy(arrays["masks"].astype(np.float32))[:, None],
        targets=labels,
        ids=[str(i) for i in range(24)],
        boxes=[torch.tensor(boxes, dtype=torch.float32) for boxes in scores["boxes"]],
        images=torch.from_numpy(arrays["images"].astype(np.float32)),
        classifier=linear(torch.from_numpy(arrays["W"]), torch.from_numpy(arrays["b"])),
        correct=torch.from_numpy(arrays["logits"]).argmax(1) == labels,
    )
    return case, scores, arrays


@pytest.mark.parametrize(
    ("name", "key", "scale"),
    [
        ("f1", "F1", 1),
        ("f1_mean", "F1a", 1),
        ("le:as_released", "LE", 1),
        ("om:as_released", "OM", 1),
        ("sm:as_released", "SM", 1),
        ("sm_area:as_released", "SM1", 1),
        ("sm_logprob:as_released", "SM2", 1),
        ("sm_accuracy:as_released", "sm_acc", 100),
        ("mask_binarized", "binarized", 1),
        ("mask_mean", "avg_mask", 1),
        ("mask_std", "std_mask", 1),
        ("mask_entropy", "entropy", 1),
        ("mask_tv", "tv", 1),
    ],
)
def test_means_are_the_published_ones(published, name: str, key: str, scale: float) -> None:
    case, scores, _ = published
    compute = METRICS[name].compute or np.mean
    assert compute(numbers(name, case)) * scale == pytest.approx(scores["paper"][key], rel=1e-5)


def test_every_image_and_box_is_the_published_one(published) -> None:
    case, scores, arrays = published
    assert np.array_equal(mask_boxes(case.masks, legacy_box=True).numpy(), arrays["pred_box"])
    for name, key in (("sm", "sm"), ("sm_area", "sm1"), ("sm_logprob", "sm2")):
        np.testing.assert_allclose(numbers(f"{name}:as_released", case), arrays[key], rtol=1e-5, atol=1e-5)
    f1, owner = f1_of_boxes(case.masks, case.boxes)
    expected = [value for image in scores["per_image"]["f1"] for value in image]
    np.testing.assert_allclose(f1.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert owner.tolist() == [i for i, image in enumerate(scores["per_image"]["f1"]) for _ in image]
    hit = [max(image) for image in scores["per_image"]["hit"]]
    assert (1 - numbers("le:as_released", case)).tolist() == hit
    assert case.correct.int().tolist() == scores["per_image"]["correct"]


def test_fixed_boxes_differ_from_the_published_where_they_should(published) -> None:
    case, _, _ = published
    assert not np.array_equal(numbers("sm_area", case), numbers("sm_area:as_released", case))
    assert (numbers("sm_area", case) >= numbers("sm_area:as_released", case)).all()


def example(*boxes: list[float], masks: torch.Tensor | None = None, **more) -> Case:
    masks = bump() if masks is None else masks
    truth = [torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)] * len(masks)
    return Case(
        masks=masks,
        targets=torch.zeros(len(masks), dtype=torch.long),
        ids=[str(i) for i in range(len(masks))],
        boxes=truth,
        **more,
    )


def test_spec_example_of_f1_and_iou() -> None:
    case = example([60, 50, 170, 150], [-10, 130, 90, 240])
    f1, _ = f1_of_boxes(case.masks, case.boxes)
    assert f1.tolist() == pytest.approx([0.61090479, 0.09805096], rel=1e-5)
    legacy = mask_boxes(case.masks, legacy_box=True)
    overlaps = [best_iou(legacy, [box[None]]).item() for box in case.boxes[0]]
    assert overlaps == pytest.approx([0.56122449, 0.05517241], rel=1e-6)
    assert numbers("f1", case).item() == pytest.approx(0.61090479, rel=1e-5)
    assert numbers("f1_mean", case).item() == pytest.approx((0.61090479 + 0.09805096) / 2, rel=1e-5)


def test_spec_example_of_statistics() -> None:
    masks = torch.cat([bump(), 1 - bump()])
    assert mask_mean(masks).tolist()[0] == pytest.approx(0.20852163, rel=1e-6)
    assert mask_mean(masks).mean().item() == pytest.approx(0.5)
    assert mask_std(area_moments(masks).numpy()) == pytest.approx(0.4122127295, rel=1e-5)
    assert mask_entropy(masks).mean().item() == pytest.approx(0.24228828, rel=1e-5)
    assert mask_tv(masks).mean().item() == pytest.approx(8.41887e-5, rel=1e-4)


def test_hit_needs_more_than_half() -> None:
    masks = torch.zeros(1, 1, 8, 8)
    masks[..., 0:4, 0:4] = 1
    half = example([0, 0, 8, 4], masks=masks)  # IoU exactly one half
    more = example([0, 0, 7, 4], masks=masks)
    assert numbers("le", half).item() == 1
    assert numbers("le", more).item() == 0
    assert numbers("le:opti_cam", half).item() == pytest.approx(0.5)


def test_om_is_le_only_where_the_model_is_right() -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., 2:5, 2:5] = 1
    case = example([2, 2, 5, 5], masks=masks, correct=torch.tensor([True, False]))
    assert numbers("le", case).tolist() == [0, 0]
    assert numbers("om", case).tolist() == [0, 1]


def test_degenerate_truth_and_masks() -> None:
    masks = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    point = example([3, 3, 3, 3], masks=masks)
    assert numbers("f1", point).tolist() == [0, 0]
    assert numbers("le", point).tolist() == [1, 1]
    whole = example([0, 0, 8, 8], masks=masks)
    assert numbers("le", whole).tolist() == [1, 0]
    assert numbers("f1", whole).tolist() == pytest.approx([0, 1], abs=1e-5)
    assert numbers("energy_inside", whole).tolist() == [0, 1]
    assert constant(torch.cat([masks, masks.new_zeros(1, 1, 8, 8)])).tolist() == [True] * 3
    assert not constant(bump()).item()


def test_images_without_boxes_have_no_value_but_do_not_spoil_others() -> None:
    case = random_case()
    none = replace(case, boxes=[case.boxes[0][:0], *case.boxes[1:]], memo={})
    for name, metric in TABLE.items():
        if "boxes" not in metric.needs:
            continue
        value, whole = metric(none), metric(case)
        if metric.set_level:
            assert not value[0].any(), name
        else:
            assert math.isnan(value[0]), name
        assert torch.equal(value[1:], whole[1:]), name


def test_full_recall_is_of_the_whole_box_also_outside() -> None:
    case = example([0, 0, 16, 8], masks=torch.ones(1, 1, 8, 8))
    precision, recall = 1, 0.5
    assert numbers("f1", case).item() == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-5)


def test_f1_is_exact_for_boxes_between_pixels() -> None:
    masks = torch.zeros(1, 1, 4, 4)
    masks[0, 0, 1, 1] = 1
    f1, _ = f1_of_boxes(masks, [torch.tensor([[1.5, 1.0, 2.0, 2.0]])])
    assert f1.item() == pytest.approx(2 * 0.5 * 1 / 1.5, rel=1e-5)  # half of the mass, the whole box


# --- SM --------------------------------------------------------------------------------------------------------


def test_sm_by_hand() -> None:
    """A picture whose left half is red: the crop of the left half has mean colour red, whatever the resampling."""
    images = torch.zeros(1, 3, 8, 8)
    images[:, 0, :, :4] = 1
    classifier = linear(torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), torch.zeros(2))
    terms = saliency_terms(images, torch.tensor([[0.0, 0, 4, 8]]), torch.tensor([0]), classifier)
    assert terms.area.item() == pytest.approx(math.log(0.5))
    assert terms.logprob.item() == pytest.approx(-math.log1p(math.exp(-2)), rel=1e-5)
    assert terms.right.item() == 1
    missed = saliency_terms(images, torch.tensor([[4.0, 0, 8, 8]]), torch.tensor([0]), classifier)
    assert missed.logprob.item() == pytest.approx(-math.log(2), rel=1e-5)


def test_sm_of_no_box_is_the_mean_colour_and_the_smallest_area() -> None:
    classifier = linear(torch.eye(3), torch.tensor([1.0, 0.0, 0.0]))  # the mean comes back: logits are the colour
    classifier.mean = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    images = torch.rand(1, 3, 8, 8)
    terms = saliency_terms(images, torch.zeros(1, 4), torch.tensor([0]), classifier)
    assert terms.area.item() == pytest.approx(-2.9957, abs=1e-4)
    assert terms.logprob.item() == pytest.approx(math.log(math.e / (math.e + 2)), rel=1e-5)


def test_crop_of_the_whole_picture_is_the_picture() -> None:
    images = torch.rand(2, 3, 6, 9)
    whole = torch.tensor([[0.0, 0, 9, 6], [-4, -4, 20, 20]])
    assert torch.allclose(crop(images, whole, torch.zeros(1, 3, 1, 1)), images, atol=1e-6)


def test_crop_commutes_with_normalisation() -> None:
    images = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.4, 0.5, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.1, 0.3]).view(1, 3, 1, 1)
    boxes = torch.tensor([[2.0, 3, 9, 17], [0, 0, 0, 0], [5, 5, 6, 6]])
    before = crop((images - mean) / std, boxes, torch.zeros(1, 3, 1, 1))
    after = (crop(images, boxes, mean) - mean) / std
    assert torch.allclose(before, after, atol=1e-5)
    assert before.abs().max() > ((images - mean) / std)[0].min().abs()  # overshoot is kept


def test_sm_is_scored_at_rest_and_leaves_the_network_as_it_was() -> None:
    """A network in train mode, whose batch normalisation would mix the images, is read in eval mode."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    classifier = Classifier(network, mean=(0.5,) * 3, std=(0.2,) * 3, layers=("0",), image_size=16)
    images, boxes = torch.rand(3, 3, 16, 16), torch.tensor([[2.0, 2, 9, 9]] * 3)
    network.eval()
    expected = saliency_terms(images, boxes, torch.tensor([0, 1, 2]), classifier).logprob
    network.train()
    before = network[1].running_mean.clone()
    torch.testing.assert_close(saliency_terms(images, boxes, torch.tensor([0, 1, 2]), classifier).logprob, expected)
    assert network.training and torch.equal(network[1].running_mean, before)


# --- games -----------------------------------------------------------------------------------------------------


def counts(size: int, box: tuple[int, int, int, int]) -> torch.Tensor:
    found = torch.zeros(1, 1, size, size)
    found[..., box[1] : box[3], box[0] : box[2]] = 1
    return found


def test_pointing_game_counts_distance_to_the_object() -> None:
    masks = torch.zeros(1, 1, 64, 64)
    masks[0, 0, 10, 30] = 1
    truth = counts(64, (0, 0, 16, 64))  # last column 15: the maximum is 15 pixels away
    assert pointing_game(masks, truth, tolerance=15).item() == 1
    assert pointing_game(masks, truth, tolerance=14.9).item() == 0
    assert pointing_game(masks, truth, tolerance=0).item() == 0
    diagonal = counts(64, (0, 0, 21, 1))  # nearest pixel (20, 0) from (30, 10): sqrt 200 = 14.14
    assert pointing_game(masks, diagonal, tolerance=14.2).item() == 1
    assert pointing_game(masks, diagonal, tolerance=14.1).item() == 0


def test_pointing_game_ties() -> None:
    masks, truth = torch.ones(1, 1, 10, 10), counts(10, (0, 2, 10, 5))
    assert pointing_game(masks, truth, tolerance=0).item() == pytest.approx(0.3)
    assert pointing_game(masks, truth, tolerance=0, ties="first").item() == 0
    assert pointing_game(masks, truth, tolerance=0, ties="any").item() == 1
    with pytest.raises(ValueError, match="ties"):
        pointing_game(masks, truth, ties="last")


def test_energy_leaves_ignored_pixels_out() -> None:
    masks = torch.tensor([[[[0.5, 0.25], [0.25, 1.0]]]])
    truth = torch.tensor([[[[1, 0], [0, 255]]]])
    assert energy_inside(masks, truth).item() == pytest.approx(0.5)
    assert energy_inside(torch.zeros_like(masks), truth).item() == 0


def test_energy_of_overlapping_boxes_counts_once() -> None:
    case = example([0, 0, 4, 8], [2, 0, 6, 8], masks=torch.ones(1, 1, 8, 8))
    assert numbers("energy_inside", case).item() == pytest.approx(6 / 8)


def test_pointing_game_agrees_with_quantus() -> None:
    """At its setting (no tolerance, any of the maxima) on every map, no normalisation on either side."""
    quantus = pytest.importorskip("quantus")
    case = random_case(count=6)
    segments = torch.stack(case.pixels)[:, None].eq(1).float()
    pixels = [(one[0] == 1).to(torch.uint8) for one in segments]
    ours = numbers("pointing_game:quantus", replace(case, pixels=pixels, memo={}))
    metric = quantus.PointingGame(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)
    theirs = metric(
        model=torch.nn.Identity(),
        x_batch=case.images.numpy(),
        y_batch=case.targets.numpy(),
        a_batch=case.masks.numpy(),
        s_batch=segments.numpy(),
    )
    assert ours.tolist() == [float(value) for value in theirs]


# --- the contract of every metric ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_contract_range_shape_and_names(name: str) -> None:
    metric = METRICS[name]
    values = metric(random_case())
    low, high = metric.range
    assert metric.name == name
    assert metric.direction in {"up", "down", "none"}
    assert metric.source
    assert json.loads(json.dumps(metric.describe(), default=str))["set_level"] == metric.set_level
    assert len(values) == 5
    if metric.set_level:
        assert not values.is_floating_point()
        assert low <= metric.compute(values.numpy()) <= high
    else:
        assert values.shape == (5,)
        assert ((values >= low) & (values <= high)).all()


@pytest.mark.parametrize("name", TABLE)
def test_contract_batches_change_nothing(name: str) -> None:
    case, metric = random_case(), METRICS[name]
    whole = metric(case)
    order = [[3], [0, 4], [2, 1]]
    parts = torch.cat([metric(part(case, index)) for index in order])
    expected = whole[[3, 0, 4, 2, 1]]
    if metric.set_level:
        assert torch.equal(parts, expected)
        summed = np.stack([metric(part(case, index)).numpy().sum(0) for index in order])
        assert metric.compute(summed) == metric.compute(whole.numpy())
    else:
        assert torch.allclose(parts, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, m in TABLE.items() if not m.needs & {"classifier", "gaze"}])
def test_contract_flips_change_nothing(name: str) -> None:
    if name.startswith("max_box") or name.endswith(":first"):
        pytest.skip("its box convention (inclusive edges clipped at one side), or its tie rule, is not symmetric")
    case = random_case(count=8)
    width = case.size[1]
    turned = [torch.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], 1) for b in case.boxes]
    flipped = Case(
        case.masks.flip(3),
        case.targets,
        case.ids,
        boxes=turned,
        pixels=[p.flip(1) for p in case.pixels],
        correct=case.correct,
    )
    if METRICS[name].set_level:
        assert torch.equal(METRICS[name](case), METRICS[name](flipped))
    else:
        assert torch.allclose(METRICS[name](case), METRICS[name](flipped), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in TABLE if n.startswith("pointing_game")])
def test_contract_pointing_game_sees_the_maximum_only(name: str) -> None:
    case = random_case()
    assert torch.equal(METRICS[name](case), METRICS[name](replace(case, masks=case.masks**3, memo={})))


@pytest.mark.parametrize("name", [n for n in TABLE if n.startswith(("max_box", "pxap")) and n.endswith("wsol")])
def test_contract_minmax_protocols_do_not_see_scale(name: str) -> None:
    case = random_case()
    scaled = replace(case, masks=case.masks.double() * 0.5 + 0.25, memo={})
    wide = replace(case, masks=case.masks.double(), memo={})
    compute = METRICS[name].compute
    assert compute(METRICS[name](wide).numpy()) == pytest.approx(compute(METRICS[name](scaled).numpy()), abs=0.02)


@pytest.mark.parametrize("name", [n for n, m in TABLE.items() if m.needs])
def test_contract_missing_needs_are_named(name: str) -> None:
    bare = Case(torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.long), ["a"])
    with pytest.raises(ValueError, match=sorted(METRICS[name].needs)[0]):
        METRICS[name](bare)


# --- cases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_maps_that_are_not_finite_are_refused_by_name(value: float) -> None:
    masks = torch.rand(3, 1, 4, 4)
    masks[1, 0, 2, 2] = value
    with pytest.raises(ValueError, match=r"'b'.*NaN or infinite"):
        check_maps(masks, ["a", "b", "c"])
    with pytest.raises(ValueError, match="'b'"):
        Case(masks, torch.zeros(3, dtype=torch.long), ["a", "b", "c"])


@pytest.mark.parametrize("change", [1.5, -0.25])
def test_maps_outside_the_range_are_refused_with_the_remedy(change: float) -> None:
    masks = torch.rand(2, 1, 4, 4)
    masks[1, 0, 0, 0] = change
    with pytest.raises(ValueError, match=r"'b'.*--normalize minmax\|max\|rank"):
        check_maps(masks, ["a", "b"])


def test_cases_that_do_not_fit_are_refused() -> None:
    case = random_case()
    for change, words in (
        ({"targets": torch.tensor([0, 1])}, "targets.*expected 5, got 2"),
        ({"targets": torch.tensor([0, 1, 2, 3, 0])}, r"class indices in \[0, 2\]"),
        ({"targets": torch.tensor([0, 1, 2, -1, 0])}, "class indices"),
        ({"boxes": case.boxes[:2]}, "boxes"),
        ({"images": torch.rand(5, 3, 8, 8)}, "resize"),
        ({"pixels": [torch.zeros(3, 3, dtype=torch.uint8)] * 5}, "pixels of 'a/0'"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(case, **change)


def test_generator_belongs_to_seed_image_and_purpose() -> None:
    def draw(*key) -> list[float]:
        return torch.rand(4, generator=generator_for(*key)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(*key)) for key in ((0, "a"), (1, "a"), (0, "b"), (0, "a", "x"))}) == 4
    assert generator_for(0, "a").initial_seed() == 3641334685724028737  # the same on every machine
    assert generator_for(3, "n01/x.jpg").initial_seed() == 8635920828793087690


def test_memo_computes_once() -> None:
    calls = []
    case = random_case()
    assert [case.once("k", lambda: calls.append(1) or 7) for _ in range(3)] == [7, 7, 7]
    assert len(calls) == 1
