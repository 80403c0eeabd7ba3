"""From file to what the classifier sees, and back."""

import numpy as np
import pytest
import torch

from salmask.boxes import boxes_of
from salmask.data import Pad, Sample
from salmask.data.sight import Sight
from salmask.types import IGNORED


def marked(height: int, width: int, part: tuple[int, int, int, int]) -> Sample:
    x0, y0, x1, y1 = part
    pixels = torch.zeros(height, width, dtype=torch.uint8)
    pixels[y0:y1, x0:x1] = 1
    return Sample("a", (pixels * 255).expand(3, -1, -1).clone(), 0, boxes_of(pixels), pixels)


def test_padding_keeps_the_whole_picture_and_moves_boxes_and_pixels_along() -> None:
    sample = Pad(40)(marked(20, 80, (8, 4, 40, 16)))
    assert sample.image.shape == (3, 40, 40)
    assert sample.boxes.tolist() == [[4, 17, 20, 23]]
    pixels = sample.pixels
    assert pixels is not None
    assert (pixels[:15] == IGNORED).all() and (pixels[25:] == IGNORED).all()
    assert boxes_of(torch.where(pixels == IGNORED, 0, pixels)).tolist() == [[4, 17, 20, 23]]
    assert (sample.image[:, :15] == 115).all() and (sample.image[:, 20, 6:18] == 255).all()


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.5])
@pytest.mark.parametrize(("height", "width"), [(120, 200), (333, 111), (64, 64)])
def test_the_part_that_is_seen_is_that_of_the_transform(crop: float, height: int, width: int) -> None:
    sight = Sight(64, "crop", crop=crop)
    across, down = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    image = torch.stack([across * 255 / (width - 1), down * 255 / (height - 1), down * 0.0]).round().to(torch.uint8)
    seen = sight.transform()(Sample("a", image, 0, torch.zeros(0, 4))).image.float()
    part = sight.part(height, width)
    corners = [seen[0, 0, 0] / 255 * width, seen[1, 0, 0] / 255 * height, seen[0, 0, -1] / 255 * width]
    blur = max(height, width) / 64 / crop + 1
    np.testing.assert_allclose(corners, [part.x0, part.y0, part.x1], atol=blur)
    share = (part.x1 - part.x0) * (part.y1 - part.y0) / min(height, width) ** 2
    assert share == pytest.approx(crop**2, rel=0.06)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_maps_come_back_to_where_the_evidence_lies_in_the_file(fit: str) -> None:
    sample, sight = marked(60, 100, (40, 20, 60, 40)), Sight(64, fit)
    seen = sight.transform()(sample).image[None, :1].float() / 255
    whole = sight.to_file(seen if fit != "pad" else (seen - 115 / 255).clamp_min(0), 60, 100)[0, 0]
    assert whole.shape == (60, 100)
    assert bool(whole.isnan().any()) == (fit == "crop")
    assert boxes_of((whole.nan_to_num(0) > 0.25).to(torch.uint8)).sub(torch.tensor([40, 20, 60, 40])).abs().max() <= 1


@pytest.mark.parametrize(
    "given",
    [
        {"image_size": 0},
        {"image_size": -64},
        {"image_size": 100000},
        {"fit": "stretch"},
        {"interpolation": "nearest"},
        {"crop": 0.0},
        {"crop": 1.5},
        {"depth": 40},
        {"window": 1.0},
        {"bands": (-1, 0, 1)},
        {"colours": (0, 1)},
    ],
)
def test_values_out_of_range_are_refused_by_name(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="got"):
        Sight(**{"image_size": 64, **given})  # type: ignore[arg-type]
