"""Figures of one image: sizes, colours that follow the mask, refusals; nothing global is touched."""

import sys

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from salmask.report.pictures import overlay, picture, strip, to_uint8

PROBABILITIES = {
    "whole": [("a class with a name that is far too long for its bar", 0.9), ("$b_c$", 0.1)],
    "kept": [("cat", 0.8)],
    "removed": [("dog", 0.4)],
}


def scene(height: int = 64, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    return image, mask


@pytest.mark.parametrize("size", [(64, 64), (40, 96), (300, 200)])
def test_every_panel_can_be_read(size):
    image, mask = scene(*size)
    figure = picture(image, mask, image * mask, image * (1 - mask), PROBABILITIES, title="x_$1$.jpg, gradcam")
    assert figure.mode == "RGB"
    assert figure.width >= 4 * 224  # four panels side by side
    assert len(np.unique(np.asarray(figure).reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_degenerate_masks_are_drawn_without_outline(value):
    image, _ = scene()
    mask = torch.full((1, 64, 64), value)
    drawn = overlay(torch.zeros(3, 64, 64), mask)
    assert (drawn == drawn[0, 0]).all()
    assert isinstance(picture(image, mask, image, image, PROBABILITIES), Image.Image)


def test_overlay_is_brighter_where_the_mask_is_higher():
    mask = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    drawn = overlay(np.zeros((3, 64, 64)), mask, threshold=2.0).astype(float).mean((0, 2))
    assert drawn.shape == (64,)
    assert (np.diff(drawn) >= -1).all() and drawn[-1] > drawn[0] + 100


def test_overlay_outlines_what_exceeds_the_threshold():
    image, mask = scene()
    plain, outlined = overlay(image, mask, threshold=1.5), overlay(image, mask)
    changed = (plain != outlined).any(2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 31, 16, 31)
    assert not changed[20:28, 20:28].any()


def test_noise_is_not_hidden_under_its_outline():
    noise = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(overlay(scene()[0], noise), overlay(scene()[0], noise, threshold=1.5))


def test_strip_has_four_equal_panels_in_order():
    image, mask = scene()
    made = np.asarray(strip(image, mask, image * 0, image * 0 + 1))
    assert made.shape == (128, 512, 3)
    np.testing.assert_array_equal(made[::2, :128:2], to_uint8(image))
    assert (made[:, 256:384] == 0).all() and (made[:, 384:] == 255).all()


def test_bytes_and_floats_are_the_same_picture():
    image, _ = scene()
    as_bytes = (image * 255).round().to(torch.uint8)
    np.testing.assert_array_equal(to_uint8(image), to_uint8(as_bytes))
    np.testing.assert_array_equal(to_uint8(as_bytes), to_uint8(to_uint8(image)))


def test_nothing_of_matplotlib_is_left_behind():
    before = dict(matplotlib.rcParams)
    image, mask = scene()
    picture(image, mask, image, image, PROBABILITIES)
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_same_picture_has_the_same_bytes():
    image, mask = scene()
    first, again = (picture(image, mask, image, image, PROBABILITIES) for _ in range(2))
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 32, 32), "image's size"),
        (torch.full((1, 64, 64), 1.5), "in \\[0, 1\\]"),
        (torch.full((1, 64, 64), float("nan")), "in \\[0, 1\\]"),
        (torch.zeros(2, 64, 64), "one mask"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        overlay(scene()[0], mask)


def test_batches_and_unknown_pictures_are_refused():
    image, mask = scene()
    with pytest.raises(ValueError, match="images\\[i\\]"):
        to_uint8(image[None])
    with pytest.raises(ValueError, match="expected probabilities"):
        picture(image, mask, image, image, {"whole": []})
