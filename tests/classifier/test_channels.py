"""Pictures of any number of channels: networks, infills and explainers."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import Generator, nn

from salmask.classifier import Classifier, inputs
from salmask.explain import EXPLAINERS
from salmask.explain.learned import Learned
from salmask.masker import Masker
from salmask.masking import Bank, Blur, MeanColour, Noise, RandomColour, keep


class Bands(nn.Module):
    """Class k counts what stands in band k % C, in two stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def of(channels: int) -> Classifier:
    torch.manual_seed(0)
    mean = [0.3 + 0.02 * k for k in range(channels)]
    return Classifier(Bands(channels), mean=mean, std=[0.25] * channels, layers=["first", "second"], image_size=32)


CHEAP = {
    "rise": {"masks": 8},
    "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
    "extremal": {"iterations": 2, "areas": [0.2]},
    "occlusion": {"window": 96, "stride": 96},
} | {name: {"iterations": 2} for name in ("meaningful", "fido", "opticam", "bank_masks")}
SERVED = sorted(set(EXPLAINERS) - {"ground_truth", "cam", "bank_masks"})


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("name", [*SERVED, "learned"])
def test_every_explainer_takes_any_number_of_channels(name, channels) -> None:
    classifier = of(channels)
    x = torch.rand(2, channels, 32, 32, generator=Generator().manual_seed(1))
    if name == "learned":
        explainer = Learned(Masker.for_classifier(classifier, generator=Generator().manual_seed(0)))
    else:
        explainer = EXPLAINERS[name](**CHEAP.get(name, {}))
    masks = explainer(classifier, x).masks
    assert masks.shape == (2, 1, 32, 32) and masks.isfinite().all()


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_every_infill_fills_any_number_of_channels(channels) -> None:
    x = torch.rand(2, channels, 16, 16, generator=Generator().manual_seed(1))
    colour = MeanColour.of(of(channels))
    infills = [
        colour,
        Blur(border=colour.colour),
        Noise(Generator().manual_seed(0)),
        RandomColour(Generator().manual_seed(0)),
        Bank(x.flip(0), Generator().manual_seed(0)),
    ]
    for infill in infills:
        shown = keep(x, torch.zeros(2, 1, 16, 16), infill)
        assert shown.shape == x.shape and shown.min() >= 0 and shown.max() <= 1
    assert torch.allclose(keep(x, torch.zeros(2, 1, 16, 16), colour)[0, :, 0, 0], of(channels).mean.flatten())


def test_a_bank_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="a bank of 3 channels does not fit pictures of 4"):
        Bank(torch.rand(2, 3, 8, 8), Generator())(torch.rand(1, 4, 8, 8), torch.ones(1, 1, 8, 8))


SAME = {
    "list": list,
    "array": np.array,
    "float32 array": lambda v: np.array(v, np.float32),
    "numpy scalars": lambda v: [np.float64(one) for one in v],
    "tensor": torch.tensor,
    "buffer": lambda v: torch.tensor(v).view(1, 3, 1, 1),
    "parameter": lambda v: nn.Parameter(torch.tensor(v).view(3, 1, 1)),
    "tensors": lambda v: [torch.tensor(one) for one in v],
}


@pytest.mark.parametrize("kind", SAME)
def test_mean_and_std_are_numbers_in_any_sequence(kind) -> None:
    """An array of doubles, or whole numbers, once made the pictures of another type than the network's."""
    colours = SAME[kind]((0.5, 0.25, 0.75))
    classifier = Classifier(Bands(3), mean=colours, std=colours, layers=["first"], image_size=32)
    assert classifier.reading()["mean"] == classifier.reading()["std"] == [0.5, 0.25, 0.75]
    assert classifier.mean.dtype == torch.float32
    assert Classifier(Bands(3), mean=[0] * 3, std=[1] * 3, layers=[], image_size=32).mean.dtype == torch.float32


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "value",
    [
        0.5,
        np.float32(0.5),
        torch.tensor(0.5),
        "0.5",
        ["0.5"] * 3,
        {0.5},
        None,
        [[0.5] * 3],
        torch.ones(2, 3),
        [None] * 3,
    ],
    ids=str,
)
def test_mean_and_std_that_are_no_numbers_by_channel_are_refused(name, value) -> None:
    """One number is refused, too: the length of the mean says how many channels a classifier reads."""
    colours = {"mean": (0.5,) * 3, "std": (0.25,) * 3, name: value}
    with pytest.raises(
        ValueError, match=rf"expected {name} as one number a channel, such as \(0.5, 0.5, 0.5\) of three"
    ):
        Classifier(Bands(3), **colours, layers=["first"], image_size=32)


def test_a_mean_of_another_number_of_channels_than_the_network_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="the network's first convolution reads 13: give mean and std"):
        Classifier(Bands(13), mean=[0.5] * 3, std=[0.2] * 3, layers=["first"], image_size=32)
    with pytest.raises(ValueError, match="one number a channel, got 3 and 1"):
        Classifier(Bands(3), mean=[0.5] * 3, std=[0.2], layers=["first"], image_size=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x - 0.5) / 0.2, "from -2.5 to 2.5: they seem to be normalised already"),
        (lambda x: 255 * x, "from 0 to 255: divide by 255"),
        (lambda x: x.where(x < 0.99, torch.nan), "got NaN in them"),
    ],
)
def test_values_outside_0_and_1_are_refused_with_the_remedy(change, message) -> None:
    x = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    names = ("gradcam", "gradient", "smoothgrad", "integrated_gradients", "occlusion", "rise", "meaningful", "center")
    calls = [of(3).logits, of(3).features, *(partial(EXPLAINERS[name](), of(3)) for name in names)]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(change(x))
    assert of(3).unbounded(2 * x).shape == (1, 4)


def test_pictures_on_an_accelerator_are_looked_at_once_at_the_entry(monkeypatch) -> None:
    looks: list[int] = []
    check = inputs.check_images
    monkeypatch.setattr(inputs, "_waits", lambda images: True)  # as for pictures that lie on a GPU
    monkeypatch.setattr(inputs, "check_images", lambda images, channels: (looks.append(1), check(images, channels)))
    classifier, x = of(3), torch.rand(2, 3, 32, 32)

    def count(name: str, **settings: object) -> int:
        looks.clear()
        EXPLAINERS[name](**settings)(classifier, x)
        return len(looks)

    assert count("gradcam") == 1
    assert count("meaningful", iterations=3) == 1
    assert count("rise", masks=64, max_batch=1) == count("rise", masks=128, max_batch=1) <= 5  # four try a faster twin
    with pytest.raises(ValueError, match="divide by 255"):
        classifier.logits(255 * x)
    with pytest.raises(ValueError, match="divide by 255"), inputs.checked(255 * x, 3):
        pass
    with inputs.checked(x, 3):
        classifier.logits(255 * x)  # not looked at again
    with pytest.raises(ValueError, match="divide by 255"):  # what was entered was left
        classifier.features(255 * x)


def test_pictures_on_a_cpu_are_looked_at_in_every_pass() -> None:
    with inputs.checked(torch.rand(1, 3, 32, 32), 3), pytest.raises(ValueError, match="divide by 255"):
        of(3).logits(torch.full((1, 3, 32, 32), 9.0))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 0, 4), "expected images with pixels"),
        (torch.zeros(1, 3, 4, 4).to_sparse(), r"expected images as a dense tensor, got torch\.sparse_coo"),
    ],
)
def test_what_holds_no_pixels_is_refused(images, message) -> None:
    with pytest.raises(ValueError, match=message):
        of(3).logits(images)


def test_pictures_that_were_divided_by_255_twice_are_told_of() -> None:
    classifier, pictures = of(3), torch.rand(1, 3, 32, 32)
    with pytest.warns(UserWarning, match="divided by 255 twice"):
        EXPLAINERS["gradient"]()(classifier, pictures / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EXPLAINERS["gradient"]()(classifier, pictures / 25)
        EXPLAINERS["occlusion"](window=16, stride=16)(classifier, pictures * 0)
