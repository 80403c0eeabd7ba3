"""Pictures that stay on the device: crops against torchvision's, draws by their laws, the stream."""

import math
from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from salmask.data import Batch, CropFlip, Sample, no_boxes, training_batches
from salmask.data.resident import bytes_kept, cut, draw_crops, resident
from salmask.data.streams import Share

HOST = torch.device("cpu")


class Plain(Dataset):
    """n pictures, each of one colour and a size of its own; counts how often each is read."""

    def __init__(self, n: int = 6) -> None:
        self.classes, self.targets = ["a", "b", "c"], [index % 3 for index in range(n)]
        self.ids = [f"{index}.png" for index in range(n)]
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        self.reads[index] += 1
        image = torch.full((3, 20 + index, 40 - index), 30 * index, dtype=torch.uint8)
        return Sample(self.ids[index], image, self.targets[index], torch.tensor([[1.0, 2, 9, 10]]), None)


class Noisy(Plain):
    """The same with pictures of noise, of one size."""

    def __getitem__(self, index: int) -> Sample:
        image = torch.randint(0, 256, (3, 24, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        return Sample(self.ids[index], image, self.targets[index], no_boxes(), None)


def noise(side: int = 24) -> Tensor:
    return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("box", [(0, 0, 24, 24), (3, 5, 20, 18), (0, 2, 7, 9), (11, 0, 12, 24)])
@pytest.mark.parametrize("size", [8, 16, 40])
def test_a_cut_is_the_crop_and_the_antialiased_resize_of_torchvision(box, size) -> None:
    picture = noise()
    shares = torch.tensor([box]) / 24
    x0, y0, x1, y1 = box
    whole = v2.functional.resized_crop(picture.float() / 255, y0, x0, y1 - y0, x1 - x0, [size, size], antialias=True)
    plain, flipped = (cut(picture, shares, torch.tensor([flip]), size) for flip in (False, True))
    assert torch.allclose(plain, whole, atol=2e-5)
    assert torch.allclose(flipped, whole.flip(3), atol=2e-5)


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    count, crop = 4000, CropFlip(8, scale=(0.25, 1.0))
    boxes, flips = draw_crops(torch.tensor([[30.0, 50.0]]).expand(count, 2), crop, torch.Generator().manual_seed(0))
    x0, y0, x1, y1 = boxes.unbind(1)
    assert boxes.min() >= 0 and boxes.max() <= 1 and (x1 > x0).all() and (y1 > y0).all()
    ratio = 50 * (x1 - x0) / (30 * (y1 - y0))
    assert ratio.min() > 0.69 and ratio.max() < 1.45  # of sides that were rounded
    assert 0.46 < float(flips.float().mean()) < 0.54
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(8, scale=(0.25, 1.0))
    drawn = [reference.make_params([torch.empty(3, 30, 50)]) for _ in range(count)]
    mine = {"left": 50 * x0, "top": 30 * y0, "width": 50 * (x1 - x0), "height": 30 * (y1 - y0)}
    for name, values in mine.items():
        theirs = torch.tensor([float(one[name]) for one in drawn])
        for share in (0.1, 0.5, 0.9):
            assert float(values.quantile(share)) == pytest.approx(float(theirs.quantile(share)), abs=1.01), name


def test_where_no_draw_fits_the_centre_is_taken() -> None:
    crop = CropFlip(8, scale=(0.9, 1.0))
    boxes, _ = draw_crops(torch.tensor([[10.0, 1000.0], [1000.0, 12.0]]), crop, torch.Generator().manual_seed(0))
    wide, tall = boxes.tolist()
    assert [wide[1], wide[3]] == [0, 1] and 1000 * (wide[2] - wide[0]) == pytest.approx(13, abs=0.01)
    assert abs(wide[0] + wide[2] - 1) < 0.002
    assert [tall[0], tall[2]] == [0, 1] and 1000 * (tall[3] - tall[1]) == pytest.approx(16, abs=0.01)


def stream(data: Plain, count: int, **settings) -> list[Batch]:
    kept = resident(data, size=8, device=HOST)
    given = {"batch_size": 4, "seed": 3, "crop": CropFlip(8)} | settings
    return list(islice(kept.batches(**given), count))


def test_pictures_are_read_once_and_shown_in_the_order_of_every_other_stream() -> None:
    data = Plain()
    batches = stream(data, 9)
    assert set(data.reads.values()) == {1}
    wanted = islice(training_batches(Plain(), batch_size=4, seed=3, augment=CropFlip(8)), 9)
    for batch, other in zip(batches, wanted, strict=True):
        assert batch.ids == other.ids and torch.equal(batch.targets, other.targets)
        assert batch.images.shape == other.images.shape == (4, 3, 8, 8)
        assert torch.allclose(batch.images, other.images, atol=1e-5)  # pictures of one colour, wherever they are cut
        assert all(not len(boxes) for boxes in batch.boxes) and batch.pixels == [None] * 4


def test_a_stream_goes_on_where_another_was_stopped_and_follows_its_seed() -> None:
    data = Noisy()
    whole = stream(data, 6)
    for batch, other in zip(stream(data, 4, start=2), whole[2:], strict=True):
        assert batch.ids == other.ids and torch.equal(batch.images, other.images)
    assert not torch.equal(whole[0].images, stream(data, 1, seed=4)[0].images)
    again = {name: image for batch in whole[:3] for name, image in zip(batch.ids, batch.images, strict=True)}
    assert any(not torch.equal(again[n], i) for b in whole[3:] for n, i in zip(b.ids, b.images, strict=True))


def test_what_is_kept_takes_the_bytes_that_were_said() -> None:
    kept = resident(Plain(), size=9, device=HOST)
    assert kept.pictures.nbytes == bytes_kept(6, 3, 9) == 6 * 3 * math.ceil(13.5) ** 2
    with pytest.raises(ValueError, match="data set is empty"):
        resident(Plain(0), size=8, device=HOST)


def test_processes_share_out_what_one_would_read() -> None:
    whole = stream(Noisy(), 3)
    parts = [stream(Noisy(), 3, share=Share(rank, 2)) for rank in (0, 1)]
    for k, batch in enumerate(whole):
        assert [parts[0][k].ids, parts[1][k].ids] == [batch.ids[0::2], batch.ids[1::2]]
