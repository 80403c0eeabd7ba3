import numpy as np
import pytest
import scipy.ndimage as ndimage
import torch

from salmask.boxes import (
    above_mean,
    area_matched,
    areas,
    boxes_of,
    clip,
    coverage,
    fixed,
    iou,
    largest_component,
    mask_boxes,
    paint,
    stack,
    top,
)


def bump() -> torch.Tensor:
    """The mask of spec 4.5, whose box and statistics are known."""
    i, j = np.mgrid[:224, :224].astype(np.float64)
    large = np.exp(-((i - 100) ** 2 + (j - 120) ** 2) / 3200)
    small = 0.6 * np.exp(-((i - 190) ** 2 + (j - 40) ** 2) / 288)
    return torch.from_numpy(np.clip(large + small, 0, 1).astype(np.float32))[None, None]


def picture(*rows: str) -> torch.Tensor:
    return torch.tensor([[float(c == "#") for c in row] for row in rows])[None, None]


def slow_largest(on: np.ndarray) -> tuple[int, ...]:
    labels, count = ndimage.label(on)
    if not count:
        return 0, 0, 0, 0, 0
    sizes = np.bincount(labels.reshape(-1))[1:]
    rows, columns = np.nonzero(labels == sizes.argmax() + 1)
    return (
        int(columns.min()),
        int(rows.min()),
        int(columns.max()) + 1,
        int(rows.max()) + 1,
        int(sizes.max()),
    )


def test_box_of_the_published_example() -> None:
    mask = bump()
    assert mask_boxes(mask).tolist() == [[50, 30, 191, 171]]
    assert mask_boxes(mask, legacy_box=True).tolist() == [[50, 30, 190, 170]]
    assert above_mean(mask).float().mean().item() == pytest.approx(0.33438298, abs=1e-7)
    assert largest_component(above_mean(mask)[0, 0].numpy().view(np.uint8))[4] == 15747


def test_component_is_four_connected_and_first_of_equals() -> None:
    mask = picture(
        "##..#.",
        "..##..",
        "..##..",
        "##....",
        "##....",
    )
    assert mask_boxes(mask).tolist() == [[2, 1, 4, 3]]  # touches both neighbours at corners only
    assert mask_boxes(mask.flip(2)).tolist() == [[0, 0, 2, 2]]


@pytest.mark.parametrize("density", [0.02, 0.3, 0.55, 0.62, 0.9])
@pytest.mark.parametrize("smooth", [0.0, 1.0, 2.5])
def test_largest_component_is_that_of_plain_labelling(density: float, smooth: float) -> None:
    draw = np.random.default_rng(int(100 * density + 10 * smooth))
    for _ in range(30):
        shape = draw.integers(1, 45, 2)
        noise = ndimage.gaussian_filter(draw.random(shape), smooth)
        on = (noise > np.quantile(noise, 1 - density)).astype(np.uint8)
        assert largest_component(on) == slow_largest(on)


def test_many_equal_components_take_the_first() -> None:
    on = np.zeros((40, 40), np.uint8)
    on[1::4, 3::4] = 1
    on[1::4, 4::4] = 1
    assert largest_component(on) == slow_largest(on) == (3, 1, 5, 2, 2)


def test_empty_and_uniform_masks() -> None:
    masks = torch.stack([torch.full((1, 9, 7), value) for value in (0.0, 0.3, 0.5, 0.7, 1.0)])
    whole, none = [0, 0, 7, 9], [0, 0, 0, 0]
    assert mask_boxes(masks).tolist() == [none, none, whole, whole, whole]
    assert mask_boxes(masks, rule=fixed(1.0)).tolist() == [none] * 5
    assert mask_boxes(masks, rule=fixed(1.0), legacy_box=True).tolist() == [none] * 5


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3, 0.188354492188])
def test_uniform_masks_do_not_depend_on_rounding(value: float) -> None:
    for size in (5, 56, 224):
        on = above_mean(torch.full((3, 1, size, size), value))
        assert on.float().mean().item() == (1.0 if value >= 0.5 else 0.0)


def test_one_pixel_component_has_no_legacy_area() -> None:
    mask = picture("...", ".#.")
    assert mask_boxes(mask).tolist() == [[1, 1, 2, 2]]
    assert mask_boxes(mask, legacy_box=True).tolist() == [[1, 1, 1, 1]]


def test_area_matched_selects_the_mass() -> None:
    mask = torch.linspace(0, 1, 100).reshape(1, 1, 10, 10)
    assert int(area_matched(mask).sum()) == 50
    assert torch.equal(area_matched(mask), mask > mask.flatten().sort().values[49])
    sharp = picture("##..", "....")  # ties: nothing above the k-th value but the two
    assert int(area_matched(sharp).sum()) == 2
    assert int(area_matched(torch.ones(1, 1, 4, 4)).sum()) == 16
    assert int(area_matched(torch.zeros(1, 1, 4, 4)).sum()) == 0


def test_top_is_exact_with_ties_in_raster_order() -> None:
    mask = torch.zeros(1, 1, 4, 5)
    assert top(0.3)(mask).flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert int(top(1.0)(mask).sum()) == 20
    assert int(top(0.0)(mask).sum()) == 0
    with pytest.raises(ValueError, match="fraction"):
        top(1.2)


@pytest.mark.parametrize("rule", [above_mean, area_matched, top(0.2)])
def test_rules_see_only_the_order_and_scale(rule) -> None:
    mask = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(rule(mask.flip(3)), rule(mask).flip(3))
    one_by_one = torch.cat([rule(one[None]) for one in mask])
    assert torch.equal(rule(mask), one_by_one)
    if rule is above_mean:
        assert torch.equal(rule(0.5 * mask + 0.25), rule(mask))


def test_boxes_flip_with_the_mask() -> None:
    draw = np.random.default_rng(0)
    maps = torch.from_numpy(ndimage.gaussian_filter(draw.random((10, 1, 40, 56)), (0, 0, 4, 4)))
    x0, y0, x1, y1 = mask_boxes(maps).unbind(1)
    assert torch.equal(mask_boxes(maps.flip(3)), torch.stack([56 - x1, y0, 56 - x0, y1], 1))


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [3, 3, 3, 3], [0, 0, 4, 4]])
    b = torch.tensor([[5.0, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 3], [0, 0, 4, 4]])
    assert iou(a, b).tolist() == pytest.approx([50 / 150, 0, 0, 1])
    first, second = torch.tensor([[60.0, 50, 170, 150]]), torch.tensor([[50.0, 50, 160, 140]])
    assert iou(first, second, inclusive=True).item() == pytest.approx(0.75827077, abs=1e-7)
    assert iou(a[2:3], b[2:3], inclusive=True).item() == 1


def test_iou_equals_counting_pixels() -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(50):
        x = torch.randint(0, 30, (2, 2), generator=draw).sort(1).values.float()
        y = torch.randint(0, 30, (2, 2), generator=draw).sort(1).values.float()
        boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
        p, q = (paint(one[None], (30, 30)).bool() for one in boxes)
        union = int((p | q).sum())
        assert iou(boxes[:1], boxes[1:]).item() == pytest.approx(int((p & q).sum()) / max(1, union))


def test_coverage_of_a_box_between_pixels() -> None:
    columns, rows = coverage(torch.tensor([[0.25, -1, 2.5, 1.5]]), (3, 4))
    assert columns.tolist() == [[0.75, 1, 0.5, 0]]
    assert rows.tolist() == [[1, 0.5, 0]]


def test_paint_clip_areas_stack() -> None:
    boxes = torch.tensor([[-5.0, 1, 2, 3], [8, 8, 9, 9]])
    assert paint(boxes, (4, 5)).tolist() == [[0] * 5, [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5]
    assert areas(boxes).tolist() == [14, 1]
    assert areas(clip(boxes, (4, 5))).tolist() == [4, 0]
    together, owner = stack([boxes[:0], boxes, boxes[:1]])
    assert owner.tolist() == [1, 1, 2]
    assert torch.equal(together, torch.cat([boxes, boxes[:1]]))
    assert stack([boxes[:0]])[0].shape == (0, 4)


def test_boxes_of_pixels_is_the_inverse_of_paint() -> None:
    box = torch.tensor([[2.0, 1, 5, 4]])
    pixels = paint(box, (6, 7))
    pixels[0, 0] = 255
    assert torch.equal(boxes_of(pixels), box)
    assert boxes_of(torch.zeros(3, 3, dtype=torch.uint8)).shape == (0, 4)
