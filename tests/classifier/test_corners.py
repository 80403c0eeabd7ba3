"""Layers lie on the picture as they are read, whatever their shapes allow; what lies otherwise is refused."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from salmask.classifier import Classifier
from salmask.classifier.corners import lies_elsewhere, lies_straight, lies_turned
from salmask.explain import EXPLAINERS

SIZE = 64
COLOURS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def read(network: nn.Module, layers=None, **options) -> Classifier:
    return Classifier(network.eval(), layers=layers, image_size=SIZE, **COLOURS, **options)


def moved_by(*corners: tuple[int, int], shape: tuple[int, int] = (4, 6)) -> Tensor:
    maps = torch.zeros(4, *shape)
    for index, (row, column) in enumerate(corners):
        maps[index, row, column] = 1.0
    return maps


CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
STRAIGHT = ((0, 0), (0, 5), (3, 0), (3, 5))


def test_corners_tell_straight_maps_from_turned_ones() -> None:
    straight = moved_by(*STRAIGHT)
    assert lies_straight(straight)
    assert not lies_turned(straight)
    for turned in (straight.flip(1), straight.flip(2), straight.flip(1, 2), straight.transpose(1, 2)):
        assert lies_turned(turned)
        assert not lies_straight(turned)
    for unclear in (torch.zeros(4, 4, 6), torch.ones(4, 4, 6), moved_by(*[(1, 2)] * 4)):
        assert not lies_turned(unclear)
        assert not lies_straight(unclear)


class Rectangular(nn.Module):
    """Rows are halved, columns are not: 16x32 of 32 channels is as well 32x16 of 32."""

    def __init__(self, channels: int, strides: tuple[int, int], last: bool = False) -> None:
        super().__init__()
        self.conv, self.mixed = nn.Conv2d(3, channels, strides, strides), nn.Linear(channels, channels)
        self.head, self.last = nn.Linear(channels, 3), last
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.last:
            return self.head(self.mixed(x.permute(0, 2, 3, 1)).mean((1, 2)))
        return self.head(x.mean((2, 3)))


def picture_and_changed(corner: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
    shown = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    changed = shown.clone()
    changed[:, :, corner[0], corner[1]] = 1 - changed[:, :, corner[0], corner[1]]
    return shown, changed


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("channels", "strides"), [(8, (8, 8)), (32, (8, 2)), (8, (8, 2)), (16, (2, 8)), (5, (4, 2))])
def test_maps_lie_right_whatever_channels_are_as_many_as_rows_or_columns(channels, strides, last) -> None:
    network = Rectangular(channels, strides, last)
    classifier = read(network, ["mixed"] if last else ["conv"])
    grid = (SIZE // strides[0], SIZE // strides[1])
    assert classifier.describe()[0].shape == (channels, *grid)
    assert classifier.describe()[0].stride == strides
    shown, changed = picture_and_changed((slice(0, 8), slice(-8, None)))
    one, other = classifier.features(shown).maps[0], classifier.features(changed).maps[0]
    moved = (one - other).abs().sum((0, 1)).nonzero()
    assert bool((moved[:, 0] < grid[0] // 4).all() and (moved[:, 1] >= grid[1] * 3 // 4).all())
    assert len(read(network).layers) == 1


def test_gradcam_of_a_rectangular_map_is_where_the_evidence_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, (8, 4), (8, 4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0, 0] = 1.0  # the first channel sees red
        network[3].weight.zero_()
        network[3].weight[:, 0] = torch.tensor([5.0, -5.0])
    classifier = read(network)
    assert classifier.describe()[0].shape == (16, 8, 16)
    shown = torch.full((1, 3, SIZE, SIZE), 0.5)
    shown[:, 0, 8:16, 48:60] = 1.0
    mask = EXPLAINERS["gradcam"]()(classifier, shown, torch.tensor([0])).masks[0, 0]
    assert mask[0:28, 40:64].sum() > 0.95 * mask.sum() > 0


class Tokens(nn.Module):
    """64 tokens of patches, in an order of their own; `lay` puts a map (B, C, 8, 8) into it."""

    def __init__(self, lay, channels: int = 16, parts: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.lay = nn.Conv2d(3, channels, 8, 8), lay
        self.blocks = nn.ModuleList(nn.Linear(channels, channels) for _ in range(parts))
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lay(self.patches(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def test_tokens_column_by_column_and_mirrored_pictures_are_refused() -> None:
    rows = Tokens(lambda x: x.flatten(2).transpose(1, 2))
    assert read(rows).describe()[-1].shape == (16, 8, 8)
    for order in (lambda x: x.mT.flatten(2).mT, lambda x: x.flip(3).flatten(2).mT):
        with pytest.raises(ValueError, match="mirrored or with its axes exchanged"):
            read(Tokens(order))


def back_and_forth(x: Tensor) -> Tensor:
    """Read every second row from its end."""
    return torch.stack([row if k % 2 == 0 else row.flip(2) for k, row in enumerate(x.unbind(2))], 2)


def in_windows(x: Tensor) -> Tensor:
    """Read 4x4 windows one after the other."""
    rows = [torch.cat([part.flatten(2) for part in row.split(4, 3)], 2) for row in x.split(4, 2)]
    return torch.cat(rows, 2).unflatten(2, (8, 8))


ORDERS = {
    "back and forth": back_and_forth,
    "in windows": in_windows,
    "rolled": lambda x: x.roll((4, 4), (2, 3)),
    "from the middle": lambda x: torch.cat([x[:, :, 4:], x[:, :, :4]], 2),
}


@pytest.mark.parametrize("order", ORDERS)
def test_tokens_and_maps_in_an_order_of_their_own_are_refused(order) -> None:
    lay = ORDERS[order]
    tokens = Tokens(lambda x: lay(x).flatten(2).mT)
    with pytest.raises(ValueError, match="in an order of its own: a corner of the picture moves it in another quarter"):
        read(tokens, ["blocks.3"], prefix=0, grid=(8, 8))
    assert read(tokens, []).layers == ()

    class Maps(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            self.laid = lay(self.patches(x))
            return self.head(self.after(self.laid).mean((2, 3)))

    maps = Maps(None)
    maps.after = nn.Conv2d(16, 16, 1)
    with pytest.raises(ValueError, match="in an order of its own"):
        read(maps, ["after"])


def test_mixed_maps_and_single_lines_are_no_order_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 2), (4, 6), (7, 7), (16, 16)):
        assert not lies_elsewhere(
            moved_by(*[(r * (shape[0] - 1), c * (shape[1] - 1)) for r, c in CORNERS], shape=shape)
        )
        assert not any(lies_elsewhere(torch.rand(4, *shape, generator=generator)) for _ in range(20) if shape != (2, 2))
        assert not lies_elsewhere(torch.zeros(4, *shape))
    assert not lies_elsewhere(torch.ones(4, 1, 8)) and not lies_elsewhere(moved_by(*[(3, 3)] * 4, shape=(7, 7)))


class ChannelsBeforeTokens(nn.Module):
    """(B, C, N) with C = N."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.block, self.head = nn.Conv2d(3, 64, 8, 8), nn.Conv1d(64, 64, 1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2)).mean(2))


def test_channels_before_as_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="channels before its tokens"):
        read(ChannelsBeforeTokens())


class Turned(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.flip(3))


def test_a_network_that_mirrors_its_pictures_is_refused_unless_nothing_is_read() -> None:
    network = Turned(Rectangular(6, (4, 4)))
    with pytest.raises(ValueError, match=r"layers=\[\]"):
        read(network)
    assert read(network, []).layers == ()


def test_a_forward_under_inference_mode_has_no_gradient_and_no_traceback() -> None:
    class Inferring(Rectangular):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    classifier = read(Inferring(6, (4, 4)))
    with pytest.raises(ValueError, match="needs gradients"):
        EXPLAINERS["gradcam"]()(classifier, torch.rand(1, 3, SIZE, SIZE))


class Reshaped(nn.Module):
    """A vector of the whole picture that is reshaped to a map, or the map of a convolution gated by such a vector."""

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vector = nn.Sequential(nn.Flatten(1), nn.Linear(3 * SIZE * SIZE, 16 * 16))
        self.convolution, self.gated = nn.Conv2d(3, 16, 16, 16), gated
        self.map, self.head = nn.Identity(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        vector = self.vector(x)
        own = self.convolution(x)
        mixed = own * vector[:, :16, None, None].sigmoid() if self.gated else vector.view(-1, 16, *own.shape[2:])
        return self.head(self.map(mixed).relu().mean((2, 3)))


def test_a_vector_that_is_reshaped_to_a_map_is_told_of() -> None:
    with pytest.warns(UserWarning, match="layer 'map', which comes after a vector, .* nothing of places"):
        read(Reshaped(gated=False), ["map"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(Reshaped(gated=True), ["map"])
        read(Reshaped(gated=False), ["convolution"])
