import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage as ndimage
import torch

from metric_cases import random_case
from salmask.metrics import METRICS, Case
from salmask.metrics.contours import all_contours, block_size, largest_contour, runs_and_singles, without_small
from salmask.metrics.wsol import (
    DELTAS,
    TAUS,
    box_hits,
    max_box_accuracy,
    minmax,
    pixel_histograms,
    pixel_precision,
)
from test_boxes import bump


@pytest.fixture(scope="module")
def published(golden: Path) -> tuple[Case, dict]:
    with np.load(golden / "inputs.npz") as file:
        masks = torch.from_numpy(file["masks"].astype(np.float32))[:, None]
        shape = (24, 224, 224)
        inside, ignored = (np.unpackbits(file[key]).reshape(shape) for key in ("segs", "ignore"))
    scores = json.loads((golden / "scores.json").read_text())
    pixels = np.where(ignored == 1, 255, inside).astype(np.uint8)
    case = Case(
        masks=masks,
        targets=torch.zeros(24, dtype=torch.long),
        ids=[str(i) for i in range(24)],
        boxes=[torch.tensor(boxes, dtype=torch.float32) for boxes in scores["boxes"]],
        pixels=list(torch.from_numpy(pixels)),
    )
    return case, scores["wsol"]


def test_hits_per_threshold_are_the_published_integers(published) -> None:
    case, scores = published
    maps = minmax(case.masks)
    for pick, key in ((largest_contour, "V1_num_correct"), (all_contours, "V2_num_correct")):
        hits = box_hits(maps, case.boxes, pick=pick).sum(0, dtype=torch.long)
        for row, delta in zip(hits, ("30", "50", "70"), strict=True):
            assert row[:-1].tolist() == scores[key][delta]
            assert row[-1] == 24


def test_scores_are_the_published_ones(published) -> None:
    case, scores = published
    for name, expected in (
        ("max_box_acc:wsol", scores["MaxBoxAcc"]["50"]),
        ("max_box_acc_v2:wsol", scores["MaxBoxAccV2"]["mean"]),
        ("pxap:wsol", scores["PxAP"]),
    ):
        metric = METRICS[name]
        assert 100 * metric.compute(metric(case).numpy()) == pytest.approx(expected, abs=1e-6)


# --- against the slow way, threshold by threshold --------------------------------------------------------------


def slow_boxes(map_: np.ndarray, tau: float, *, multiple: bool) -> list[list[int]]:
    map8 = (map_ * 255).astype(np.uint8)
    height, width = map8.shape
    _, above = cv2.threshold(map8, int(tau * map8.max()), 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return [[0, 0, 0, 0]]
    if not multiple:
        contours = [max(contours, key=cv2.contourArea)]
    found = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        found.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
    return found


def slow_overlap(box: list[int], other: list[float]) -> float:
    low = [max(box[0], other[0]), max(box[1], other[1])]
    high = [min(box[2], other[2]), min(box[3], other[3])]
    meet = max(0, high[0] - low[0] + 1) * max(0, high[1] - low[1] + 1)
    area = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
    return meet / (sum(area) - meet)


def slow_hits(map_: np.ndarray, truth: np.ndarray, taus: np.ndarray, *, multiple: bool) -> np.ndarray:
    best = [
        max(slow_overlap(box, other) for box in slow_boxes(map_, tau, multiple=multiple) for other in truth.tolist())
        for tau in taus
    ]
    return np.array(best)[None] >= np.array(DELTAS)[:, None]


def noise(kind: str, draw: np.random.Generator) -> np.ndarray:
    height, width = (int(side) for side in draw.integers(6, 40, 2))
    values = draw.random((height, width))
    if kind == "smooth":
        values = ndimage.gaussian_filter(values, 3)
    elif kind == "blocks":
        values = np.kron(draw.random((7, 7)), np.ones((5, 5)))
    elif kind == "hard":
        values = (ndimage.gaussian_filter(values, 1) > 0.5).astype(float)
    elif kind == "dark":
        return 0.2 + 0.3 * values  # never 0 and never 1: no minmax
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


@pytest.mark.parametrize("kind", ["noise", "smooth", "blocks", "hard", "dark"])
@pytest.mark.parametrize("multiple", [True, False])
def test_hits_equal_one_contour_call_per_threshold(kind: str, multiple: bool) -> None:
    draw = np.random.default_rng(len(kind) + 10 * multiple)
    taus = np.arange(0, 1, 0.02)
    pick = all_contours if multiple else largest_contour
    for _ in range(12):
        map_ = noise(kind, draw)
        height, width = map_.shape
        corners = np.sort(draw.integers(-3, 43, (2, 2, 2)), axis=1)
        boxes = corners.transpose(0, 1, 2).reshape(2, 4).astype(np.float32)
        truth = np.clip(boxes, 0, [width - 1, height - 1] * 2)
        ours = box_hits(torch.from_numpy(map_)[None, None], [torch.from_numpy(boxes)], pick=pick, taus=taus)
        assert np.array_equal(ours[0, :, :-1].numpy(), slow_hits(map_, truth, taus, multiple=multiple))


def rectangles(picture: np.ndarray, pick) -> list[tuple[int, int, int, int]]:
    linked = cv2.findContoursLinkRuns(picture)[0]
    if not linked:
        return []
    found = pick.function(picture, linked, 1, 0)
    return sorted((x - e, y - e, w + 2 * e, h + 2 * e) for x, y, w, h, e in found)


@pytest.mark.parametrize("smooth", [0, 0.7, 1.5])
def test_run_linking_gives_the_rectangles_of_border_following(smooth: float) -> None:
    draw = np.random.default_rng(int(10 * smooth))
    for _ in range(500):
        shape = draw.integers(1, 40, 2)
        values = ndimage.gaussian_filter(draw.random(shape), smooth)
        picture = (values > np.quantile(values, draw.random())).astype(np.uint8) * 255
        slow, _ = cv2.findContours(picture, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        assert rectangles(picture, all_contours) == sorted(cv2.boundingRect(one) for one in slow)
        for contour in cv2.findContoursLinkRuns(picture)[0]:  # what the filter by points relies on
            assert len(contour) >= 2 * cv2.boundingRect(contour)[3]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 32])
def test_maps_of_blocks_give_the_same_hits(block: int) -> None:
    draw = np.random.default_rng(block)
    taus = np.arange(0, 1, 0.05)
    for _ in range(6):
        small = ndimage.gaussian_filter(draw.random((7, 9)), draw.choice([0, 0.8]))
        map_ = np.kron((small - small.min()) / np.ptp(small), np.ones((block, block)))
        assert block_size((map_ * 255).astype(np.uint8)) == block
        truth = np.sort(draw.integers(0, 7 * block, (2, 2)), axis=0).reshape(1, 4)
        ours = box_hits(torch.from_numpy(map_)[None, None], [torch.from_numpy(truth).float()], taus=taus)
        assert np.array_equal(ours[0, :, :-1].numpy(), slow_hits(map_, truth, taus, multiple=True))


def test_block_size_is_not_fooled() -> None:
    flat_corner = np.zeros((8, 8), np.uint8)
    flat_corner[5, 5] = 1
    assert block_size(flat_corner) == 1
    assert block_size(np.zeros((7, 8), np.uint8)) == 1
    assert block_size(np.zeros((1, 1), np.uint8)) == 1


@pytest.mark.parametrize("smooth", [0, 1, 3])
def test_levels_called_single_have_one_contour(smooth: float) -> None:
    draw, found = np.random.default_rng(0), 0
    for _ in range(40):
        values = ndimage.gaussian_filter(draw.random(draw.integers(1, 30, 2)), smooth)
        map8 = ((values - values.min()) / max(np.ptp(values), 1e-9) * 255).astype(np.uint8)
        _, single = runs_and_singles(map8)
        for level in range(0, 255, 3):
            above = cv2.threshold(map8, level, 255, cv2.THRESH_BINARY)[1]
            contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            assert not single[level] or len(contours) == 1
            found += bool(single[level])
    assert found > (50 if smooth else 5)


def _contour_boxes(map8: np.ndarray, level: int) -> set[tuple[int, ...]]:
    above = cv2.threshold(map8, level, 255, cv2.THRESH_BINARY)[1]
    contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    return {tuple(cv2.boundingRect(contour)) for contour in contours}


@pytest.mark.parametrize("smooth", [0, 1, 2, 4])
@pytest.mark.parametrize("side", [3, 9, 17])
def test_taking_small_peaks_and_holes_away_changes_no_larger_contour(smooth: float, side: int) -> None:
    draw = np.random.default_rng(7)
    values = ndimage.gaussian_filter(draw.random((61, 44)), smooth)
    map8 = ((values - values.min()) / np.ptp(values) * 255).astype(np.uint8)
    fewer, removed = without_small(map8, side), 0
    for level in range(0, 255, 3):
        before, after = _contour_boxes(map8, level), _contour_boxes(fewer, level)
        assert {box for box in before if max(box[2:]) > side} == {box for box in after if max(box[2:]) > side}
        assert after <= before
        removed += len(before) - len(after)
    assert removed > 0


def test_a_smooth_bump_is_single_at_every_level() -> None:
    y, x = np.mgrid[:60, :50]
    bump = np.exp(-((x - 20) ** 2 + (y - 33) ** 2) / 200)
    assert runs_and_singles((255 * bump).astype(np.uint8))[1][:255].all()


def test_spec_example_boxes() -> None:
    map8 = (bump()[0, 0].numpy() * 255).astype(np.uint8)

    def found(tau: float, pick) -> list[list[int]]:
        _, above = cv2.threshold(map8, int(tau * map8.max()), 255, cv2.THRESH_BINARY)
        return [[x, y, min(x + w, 223), min(y + h, 223)] for x, y, w, h in rectangles(above, pick)]

    assert found(0.2, largest_contour) == [[49, 29, 192, 172]]
    assert found(0.2, all_contours) == [[23, 172, 59, 208], [49, 29, 192, 172]]
    assert found(0.5, all_contours) == [[33, 183, 48, 198], [74, 54, 167, 147]]
    assert found(0, largest_contour) == [[0, 0, 223, 223]]
    assert found(0.99, largest_contour) == [[115, 95, 126, 106]]


def test_a_ring_has_a_hole_with_a_box() -> None:
    ring = np.zeros((20, 20), np.uint8)
    ring[3:15, 3:15] = 255
    ring[6:11, 6:11] = 0
    assert rectangles(ring, all_contours) == [(3, 3, 12, 12), (5, 5, 7, 7)]


# --- degenerate maps and truth ---------------------------------------------------------------------------------


def test_empty_map_has_the_box_of_the_corner() -> None:
    boxes = [torch.tensor([[0.0, 0, 0, 0]]), torch.tensor([[5.0, 5, 9, 9]])]
    hits = box_hits(torch.zeros(2, 1, 10, 10), boxes)
    assert hits[0].all()  # two boxes of zero area that meet: inclusive IoU 1, as published
    assert not hits[1, :, :-1].any()
    assert hits[1, :, -1].all()


def test_full_map_finds_the_whole_picture() -> None:
    hits = box_hits(torch.ones(1, 1, 10, 10), [torch.tensor([[0.0, 0, 10, 10]])])
    assert hits.all()


def test_no_image_with_truth_has_no_score() -> None:
    case = random_case()
    none = box_hits(case.masks, [boxes[:0] for boxes in case.boxes])
    assert np.isnan(max_box_accuracy(none.numpy()))
    assert np.isnan(pixel_precision(pixel_histograms(case.masks, [None] * 5).numpy()))


def test_minmax_of_a_constant_map_is_zero() -> None:
    masks = torch.tensor([0.3, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert not minmax(masks).any()
    assert minmax(random_case().masks).flatten(1).amax(1).tolist() == [1] * 5


def test_accuracy_takes_the_best_threshold_after_the_sum() -> None:
    counts = np.zeros((2, 1, 4), dtype=np.uint8)
    counts[:, :, -1] = 1
    counts[0, 0, 0] = 1
    counts[1, 0, 2] = 1
    assert max_box_accuracy(counts) == 0.5  # each image has a threshold, no threshold has both
    counts[1, 0, 0] = 1
    assert max_box_accuracy(counts) == 1.0


# --- pixels ----------------------------------------------------------------------------------------------------


def truth_of_spec() -> torch.Tensor:
    pixels = torch.zeros(224, 224, dtype=torch.uint8)
    pixels[50:150, 60:170] = 1
    pixels[:20] = 255
    return pixels


def test_spec_example_pxap() -> None:
    few = np.arange(0, 1, 0.01)
    for masks, expected in (
        (bump(), 95.14678386),
        (torch.ones(1, 1, 224, 224), 24.07212885),
        (torch.zeros(1, 1, 224, 224), 24.07212885),
    ):
        counts = pixel_histograms(masks, [truth_of_spec()], taus=few)
        assert 100 * pixel_precision(counts.numpy()) == pytest.approx(expected, abs=1e-6)
    case = Case(bump(), torch.zeros(1, dtype=torch.long), ["a"], pixels=[truth_of_spec()])
    metric = METRICS["pxap:as_released"]
    assert 100 * metric.compute(metric(case).numpy()) == pytest.approx(95.14678386, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_histograms_equal_those_of_numpy(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 1, 40, 30, generator=draw, dtype=dtype)
    maps[0, 0, 0] = torch.from_numpy(TAUS[:30]).to(dtype)  # on the edges
    maps[1, 0, 0, :2] = torch.tensor([0.0, 1.0])
    pixels = torch.randint(0, 3, (3, 40, 30), generator=draw).to(torch.uint8)
    pixels[pixels == 2] = 255
    edges = np.append(TAUS, [1, 2, 3])
    counts = pixel_histograms(maps, list(pixels))
    for map_, truth, found in zip(maps[:, 0].numpy(), pixels.numpy(), counts.numpy(), strict=True):
        for value in (0, 1):
            assert np.array_equal(np.histogram(map_[truth == value].astype(np.float64), edges)[0], found[value])


def test_perfect_and_reversed_maps() -> None:
    truth = truth_of_spec()
    perfect = (truth == 1).float()[None, None]
    assert pixel_precision(pixel_histograms(perfect, [truth]).numpy()) == 1
    reversed_ = pixel_precision(pixel_histograms(1 - perfect, [truth]).numpy())
    assert reversed_ == pytest.approx(0.2407212885, abs=1e-6)


def test_boxes_as_pixel_truth() -> None:
    case = random_case()
    metric = METRICS["pxap:boxes"]
    by_boxes = metric(case)
    total = by_boxes.sum((1, 2))
    assert (total == case.size[0] * case.size[1]).all()


# --- counts that add up ----------------------------------------------------------------------------------------


def test_counts_of_parts_add_up_to_the_score_of_all() -> None:
    """Scores of a set are computed from the sum of the images' counts, however the images were shared out."""
    case = random_case(count=7)
    hits, pixels = box_hits(case.masks, case.boxes), pixel_histograms(case.masks, case.pixels)
    for count, compute in ((hits, max_box_accuracy), (pixels, pixel_precision)):
        shares = np.stack([part.sum(0) for part in np.array_split(count.numpy(), [3, 4])])
        assert compute(shares.sum(0, keepdims=True)) == pytest.approx(compute(count.numpy()), abs=1e-9)
