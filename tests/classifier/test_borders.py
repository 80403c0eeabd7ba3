"""Layers lie on the whole picture: a network that cuts it down or frames it is refused; strides and kernels are not."""

from contextlib import nullcontext

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS

SIZE = 64


def read(network: nn.Module, layers=None, size: int = SIZE) -> Classifier:
    return Classifier(network.eval(), mean=(0.5,) * 3, std=(0.25,) * 3, layers=layers, image_size=size)


class Stages(nn.Module):
    """Two convolutions, of all strides 4 and 8, behind something done to the picture."""

    def __init__(self, before=lambda x: x, padding: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = before
        self.fine, self.coarse = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 10, 3, 2, padding)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.coarse(self.fine(self.before(x))).relu().mean((2, 3)))


def within_a_circle(side: int) -> Tensor:
    place = torch.linspace(-1, 1, side).square()
    return place + place[:, None] < 1


CUTS = {
    "centre": lambda x: x[..., 16:-16, 16:-16],
    "centre, resized": lambda x: F.interpolate(x[..., 16:-16, 16:-16], SIZE, mode="bilinear"),
    "a sixteenth": lambda x: x[..., 4:-4, 4:-4],
    "left half": lambda x: x[..., : SIZE // 2],
    "upper three quarters": lambda x: x[..., : SIZE * 3 // 4, :],
    "shifted": lambda x: F.pad(x, (24, 0, 0, 0))[..., :SIZE],
}
KEEPS = {
    "nothing": lambda x: x,
    "resized": lambda x: F.interpolate(x, 48, mode="bilinear"),
    "resized by nearest cells": lambda x: F.interpolate(x, 32),
    "a pixel": lambda x: x[..., 1:-1, 1:-1],
    "padded by a pixel": lambda x: F.pad(x, (1, 1, 1, 1)),
    "strides without kernels": lambda x: F.interpolate(x[..., ::4, ::4], SIZE),
    "a round window": lambda x: x * within_a_circle(x.shape[-1]),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_network_that_cuts_its_pictures_is_refused_unless_nothing_is_read(cut) -> None:
    with pytest.raises(
        ValueError, match=r"layer '(fine|coarse)' does not see the whole picture.* at the \w+ .*layers=\[\]"
    ):
        read(Stages(CUTS[cut]))
    assert read(Stages(CUTS[cut]), []).layers == ()


@pytest.mark.parametrize("kept", KEEPS)
def test_what_moves_a_map_by_less_than_half_a_cell_is_no_border(kept) -> None:
    assert read(Stages(KEEPS[kept])).layers == ("fine", "coarse")
    assert read(Stages(KEEPS[kept], padding=0)).layers == ("fine", "coarse")


def test_a_frame_around_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 'fine' is larger than the picture: 4 of 24 lines of cells at the top"):
        read(Stages(lambda x: F.pad(x, (16, 16, 16, 16))))


def test_half_a_cell_is_the_border_of_a_layer_alone() -> None:
    """Of 64 pixels cut by c at each side a layer of stride 8 has 8 - c / 4 cells: half a cell is 4 pixels and a bit."""
    assert read(Stages(lambda x: x[..., 4:-4, 4:-4]), ["coarse"]).describe()[0].shape[1:] == (7, 7)
    with pytest.raises(ValueError, match="'coarse' does not see"):
        read(Stages(lambda x: x[..., 8:-8, 8:-8]), ["coarse"])


@pytest.mark.parametrize(("pixels", "accepted"), [(1, True), (-1, True), (4, False), (-4, False)])
def test_less_than_a_32nd_of_a_side_is_no_border_however_fine_the_layer(pixels, accepted) -> None:
    network = Stages(lambda x: F.pad(x, [-pixels] * 4))
    network.fine = nn.Conv2d(3, 6, 1)
    with nullcontext() if accepted else pytest.raises(ValueError, match="'fine'"):
        read(network)


@pytest.mark.parametrize("image_size", [SIZE, 48])
def test_a_part_of_a_fixed_size_is_seen_at_larger_pictures(image_size) -> None:
    def middle(x: Tensor) -> Tensor:
        top, left = ((side - 48) // 2 for side in x.shape[-2:])
        return x[..., top : top + 48, left : left + 48]

    with pytest.raises(ValueError, match="does not see the whole picture"):
        read(Stages(middle), size=image_size)
    assert len(read(Stages(lambda x: F.adaptive_avg_pool2d(x, 48)), size=48).layers) == 2  # which sees it all


def in_the_middle(x: Tensor, cut: int, side: int, frame: int) -> Tensor:
    """Cut some pixels off each edge, bring what is left to a side, and put a frame around it."""
    return F.pad(F.interpolate(x[..., cut:-cut, cut:-cut], side, mode="bilinear"), [frame] * 4)


def masked(x: Tensor) -> Tensor:
    inside = torch.zeros(SIZE, SIZE)
    inside[16:-8, 12:-20] = 1
    return x * inside


WINDOWS = {
    "multiplied by a mask": masked,
    "cut out and framed": lambda x: F.pad(x[..., 16:-16, 16:-16], [16] * 4),
    "the left half": lambda x: F.pad(x[..., : SIZE // 2], (0, SIZE // 2)),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_what_is_seen_through_a_window_is_read_where_it_is(window) -> None:
    """The network is the one without a window, shown pictures that are grey outside: so are its maps."""
    shown = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    seen = WINDOWS[window](shown - 0.5) + 0.5
    for name in ("gradcam", "gradient"):
        got = EXPLAINERS[name]()(read(Stages(WINDOWS[window])), shown, torch.tensor([0, 1])).masks
        wanted = EXPLAINERS[name]()(read(Stages()), seen, torch.tensor([0, 1])).masks
        if name == "gradient":  # which is none outside
            wanted = wanted * WINDOWS[window](torch.ones(1, 1, SIZE, SIZE))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("cut", "side", "frame"), [(16, 48, 8), (8, 32, 16), (24, 62, 1), (4, 64, 16)])
def test_a_window_through_which_the_picture_is_larger_or_smaller_is_refused(cut, side, frame) -> None:
    with pytest.raises(ValueError, match=r"does not see the whole picture|is larger than the picture"):
        read(Stages(lambda x: in_the_middle(x, cut, side, frame)))


class OneSize(Stages):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == SIZE, "another size"
        return super().forward(x)


class LyingWithin(Stages):
    """Says itself where its maps lie: within the half of the picture that it looks at."""

    def __init__(self) -> None:
        super().__init__(CUTS["centre"])

    def lay_out(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = (side // 2 for side in output.shape[-2:])
        return F.pad(output, (columns, columns, rows, rows))


def test_networks_of_one_size_and_those_that_say_where_they_look_are_read() -> None:
    assert len(read(OneSize()).layers) == 2
    classifier = read(LyingWithin())
    shown = torch.full((1, 3, SIZE, SIZE), 0.5)
    shown[:, :, 20:28, 36:44] = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = EXPLAINERS["gradcam"](layer="fine")(classifier, shown, torch.tensor([0])).masks[0, 0]
    assert not mask[:12].any() and not mask[:, 52:].any()


class Wrapped(nn.Module):
    """A wrapper of one's own, which nobody vouches for, around a network without padding."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inside = network

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_common_networks_are_no_false_alarm(name) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    size = network.pretrained_cfg["input_size"][-1]
    assert read(Wrapped(network), size=size).strides[-1] > 8


def test_a_wrapper_that_cuts_is_refused_around_a_known_network() -> None:
    torch.manual_seed(0)
    network = Wrapped(timm.create_model("test_resnet", num_classes=3))
    network.forward = lambda x: network.inside(F.interpolate(x[..., 16:-16, 16:-16], 64))
    with pytest.raises(ValueError, match="does not see the whole picture"):
        read(network)


def cropped_stem(network: nn.Module) -> None:
    network.conv1 = nn.Sequential(v2.CenterCrop(40), network.conv1)


def cropped_by_a_hook(network: nn.Module) -> None:
    network.register_forward_pre_hook(lambda module, given: (given[0][..., 12:-12, 12:-12],))


def another_forward(network: nn.Module) -> None:
    own = network.forward
    network.forward = lambda x: own(x[..., 12:-12, 12:-12])  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [cropped_stem, cropped_by_a_hook, another_forward])
def test_a_known_network_that_was_changed_is_looked_at_like_any_other(change) -> None:
    network = torchvision.models.resnet18(num_classes=3)
    assert read(network).layers[-1] == "layer4"
    change(network)
    with pytest.raises(ValueError, match="does not see the whole picture"):
        read(network)


NORMALISED = {
    "groups": nn.GroupNorm(2, 6),
    "all": nn.GroupNorm(1, 6),
    "each": nn.InstanceNorm2d(6, affine=True),
    "both axes": lambda x: F.layer_norm(x, x.shape[1:]),
}


class Normalised(Stages):
    """Normalised over the picture, which changes what stands around it, too."""

    def __init__(self, before, norm) -> None:
        super().__init__(before)
        self.normalise = norm

    def forward(self, x: Tensor) -> Tensor:
        fine = self.normalise(self.fine(self.before(x)))
        return self.head(self.coarse(fine).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", NORMALISED)
def test_frames_and_windows_are_seen_through_a_normalisation_over_the_picture(kind) -> None:
    norm = NORMALISED[kind]
    with pytest.raises(ValueError, match=r"is larger than the picture: 2 of 20 lines of cells at the top are the same"):
        read(Normalised(lambda x: F.pad(x, (8,) * 4), norm))
    with pytest.raises(ValueError, match=r"lines of cells at the left are the same"):
        read(Normalised(lambda x: F.pad(x, (8, 0, 0, 0)), norm))
    windowed = read(Normalised(lambda x: x * F.pad(torch.ones(SIZE - 16, SIZE - 16), (8,) * 4), norm))
    whole = read(Normalised(lambda x: x, norm))
    assert windowed.describe() == whole.describe()
