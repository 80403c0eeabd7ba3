"""Built-in pictures: exact evidence, nothing but the outline tells the class, nothing easy tells the place."""

from collections import Counter
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from salmask.data import ImageFolder, Sample, Squash
from salmask.data.synthetic import SHAPES, Synthetic, write_folder


@cache
def drawn(n: int = 200) -> list[Sample]:
    data = Synthetic(n, seed=5)
    return [data[index] for index in range(n)]


def test_a_sample_has_a_picture_its_pixels_and_their_tight_box() -> None:
    for sample in drawn():
        assert sample.image.shape == (3, 64, 64)
        assert sample.image.dtype == torch.uint8
        rows, columns = torch.where(sample.pixels == 1)
        x0, y0, x1, y1 = sample.boxes[0].int().tolist()
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert set(sample.pixels.unique().tolist()) == {0, 1}


def test_classes_come_in_equal_shares() -> None:
    data = Synthetic(205, seed=5)
    assert data.classes == sorted(SHAPES)
    assert len(data.classes) == 10
    assert set(Counter(data.targets[:200]).values()) == {20}
    assert [sample.target for sample in drawn()] == data.targets[:200]
    assert data.targets[:10] != data.targets[10:20]
    assert len(set(data.ids)) == 205


def test_a_picture_depends_on_seed_and_index_alone() -> None:
    short, long = Synthetic(3, seed=5), Synthetic(50, seed=5)
    for index in (2, 0, 1):
        assert torch.equal(short[index].image, long[index].image)
        assert torch.equal(short[index].image, drawn()[index].image)
    assert short.ids == long.ids[:3]
    assert not torch.equal(Synthetic(1, seed=6)[0].image, short[0].image)
    assert not torch.equal(short[0].image, short[1].image)


def test_the_size_is_an_argument() -> None:
    sample = Synthetic(1, seed=0, size=128)[0]
    assert sample.image.shape == (3, 128, 128)
    assert sample.pixels.shape == (128, 128)
    assert Synthetic(1, seed=0, transform=Squash(32))[0].pixels.shape == (32, 32)


def test_objects_vary_in_size_within_bounds() -> None:
    share = torch.stack([sample.pixels.float().mean() for sample in drawn()])
    assert share.min() > 0.04
    assert share.max() < 0.35
    assert share.std() > 0.04


def test_objects_stand_out_from_the_ground() -> None:
    """A tenfold brighter object would be too easy, an invisible one none: look at a rim on either side."""
    gaps = []
    for sample in drawn(50):
        inside = sample.pixels == 1
        grown = torch.nn.functional.max_pool2d(inside[None].float(), 5, 1, 2)[0] > 0
        image = sample.image.float() / 255
        gaps.append((image[:, inside].mean(1) - image[:, grown & ~inside].mean(1)).norm())
    assert torch.stack(gaps).median() > 0.2


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (16, 16, 48, 48), (9.4, 9.4, 54.6, 54.6), (13, 13, 51, 51)])
def test_whole_and_centre_boxes_are_poor(box: tuple[float, ...]) -> None:
    boxes = torch.cat([sample.boxes for sample in drawn()])
    error = 1 - (box_iou(boxes, torch.tensor([box]).float()) > 0.5).float().mean()
    assert error > 0.5


def test_colour_and_texture_do_not_tell_the_class() -> None:
    """The nearest class mean, in what colour and contrast say of object and picture, guesses at chance."""
    features = torch.stack(
        [
            torch.cat(
                [
                    part(values.reshape(3, -1).float())
                    for values in (sample.image, sample.image[:, sample.pixels == 1])
                    for part in (lambda v: v.mean(1), lambda v: v.std(1))
                ]
            )
            for sample in drawn()
        ]
    )
    features = (features - features.mean(0)) / features.std(0)
    targets = torch.tensor([sample.target for sample in drawn()])
    means = torch.stack([features[:100][targets[:100] == label].mean(0) for label in range(10)])
    guesses = torch.cdist(features[100:], means).argmin(1)
    assert (guesses == targets[100:]).float().mean() < 0.25  # chance: .10, standard deviation .03


def test_distractors_are_as_bright_as_the_object() -> None:
    """What is brighter than the ground is not the object alone: a threshold on brightness has low precision."""
    bright = torch.stack([sample.image.float().mean(0) > 130 for sample in drawn()])
    inside = torch.stack([sample.pixels == 1 for sample in drawn()])
    assert 0.3 < inside[bright].float().mean() < 0.8
    assert bright[inside].float().mean() > 0.7


def test_size_does_not_tell_the_class() -> None:
    means = []
    for label in range(10):
        shares = [sample.pixels.float().mean() for sample in drawn() if sample.target == label]
        assert len(shares) == 20
        means.append(torch.stack(shares).mean())
    assert max(means) < 1.5 * min(means)


def test_outlines_differ_from_each_other() -> None:
    """Of one area and about one centre, no two upright outlines come close to covering each other."""
    masks = torch.stack([torch.from_numpy(_upright(label)) for label in SHAPES]).flatten(1)
    both = masks @ masks.T
    overlap = both / (masks.sum(1)[:, None] + masks.sum(1)[None] - both)
    assert (overlap - torch.eye(10)).max() < 0.85


def _upright(label: str) -> np.ndarray:
    contours = SHAPES[label]()
    for _ in range(2):  # draw, measure the area, draw again at an area of 1000
        canvas = np.zeros((96, 96), np.uint8)
        middle = (contours[0].max(0) + contours[0].min(0)) / 2
        points = [np.round((contour - middle) * 10 + 48).astype(np.int32) for contour in contours]
        cv2.fillPoly(canvas, points, 1)
        contours = [contour * np.sqrt(1000 / canvas.sum()) for contour in contours]
    return canvas.astype(np.float32)


def test_a_folder_reads_back_the_same(tmp_path: Path) -> None:
    write_folder(tmp_path, train=20, val=10, seed=3, size=32)
    for split, n, seed in (("train", 20, 6), ("val", 10, 7)):
        data, source = ImageFolder(tmp_path, split), Synthetic(n, seed=seed, size=32)
        assert data.classes == source.classes
        assert len(data) == n
        expected = {name.split("/", 1)[1]: source[index] for index, name in enumerate(source.ids)}
        for index in range(n):
            sample = data[index]
            other = expected[sample.id.split("/", 1)[1]]
            assert torch.equal(sample.image, other.image)
            assert torch.equal(sample.pixels, other.pixels)
            assert torch.equal(sample.boxes, other.boxes)
            assert sample.target == other.target


@pytest.mark.parametrize("settings", [{"n": 0, "seed": 0}, {"n": 1, "seed": -1}, {"n": 1, "seed": 0, "size": 8}])
def test_bad_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected n >= 1, size >= 16 and seed >= 0"):
        Synthetic(**settings)


def test_indices_beyond_the_end_are_refused() -> None:
    for index in (3, -1):
        with pytest.raises(IndexError):
            Synthetic(3, seed=0)[index]
