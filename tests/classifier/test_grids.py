"""Tokens: their grid is what the network, the caller or the picture's corners say, and never guessed from a count."""

import pytest
import torch
from torch import Generator, Tensor, nn

from salmask.classifier import Classifier
from salmask.classifier.grids import Tokens


class Patches(nn.Module):
    """Patches as tokens with others before and behind them, through a block that mixes all."""

    def __init__(self, before: int, behind: int, patch: tuple[int, int] = (8, 8)) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, patch, patch)
        self.before, self.behind = (nn.Parameter(torch.randn(1, n, 6)) for n in (before, behind))
        self.enter, self.block, self.head = (
            nn.Identity(),
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        parts = [self.before.expand(len(x), -1, -1), tokens, self.behind.expand(len(x), -1, -1)]
        return self.head(self.block(self.enter(torch.cat(parts, 1))).mean(1))


def around(network: nn.Module, layers=("enter",), **options) -> Classifier:
    torch.manual_seed(0)
    return Classifier(network, mean=[0.5] * 3, std=[0.25] * 3, layers=layers, image_size=48, **options)


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (1, 0), (0, 1), (5, 0), (3, 2), (13, 0)])
@pytest.mark.parametrize("patch", [(8, 8), (16, 4)])
@pytest.mark.parametrize("size", [(48, 48), (96, 48)])
def test_the_picture_itself_says_where_its_tokens_are(before, behind, patch, size) -> None:
    network = Patches(before, behind, patch)
    classifier = around(network)
    x = torch.rand(2, 3, *size, generator=Generator().manual_seed(0))
    wanted = network.patch((x - classifier.mean) / classifier.std)
    torch.testing.assert_close(classifier.features(x).maps[0], wanted)


def test_the_caller_says_it_where_nothing_else_does() -> None:
    class Mixed(Patches):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * x.mean((1, 2, 3), keepdim=True))  # every token changes with every pixel

    network = Mixed(2, 1)
    with pytest.raises(ValueError, match=r"layer 'enter' has no known grid.*39 tokens.*give prefix=.*grid="):
        around(network)
    classifier = around(network, prefix=2, grid=(6, 6))
    assert classifier.features(torch.rand(1, 3, 48, 48)).maps[0].shape == (1, 6, 6, 6)
    assert classifier.options() == {"prefix": 2, "grid": (6, 6)}
    with pytest.raises(ValueError, match="need more tokens than the 39"):
        around(network, prefix=4, grid=(6, 6))


def tokens(asked=lambda size: None) -> Tokens:
    return Tokens(1, (6, 6), 37, (96, 96), asked)


def test_a_count_that_several_grids_fit_is_refused() -> None:
    output = torch.arange(37.0).view(1, 37, 1)
    with pytest.raises(ValueError, match="36 tokens of a picture of 192x56 fit 6x6 or 12x3: give prefix="):
        tokens()(output, (192, 56))
    told = tokens(lambda size: (size[0] // 16, size[1] // 16))
    assert told(output, (192, 56)).shape == (1, 1, 12, 3)
    assert told(output, (192, 56)).flatten().tolist() == list(range(1, 37))


def test_other_sizes_have_the_one_grid_that_fits() -> None:
    assert tokens()(torch.zeros(1, 1 + 12 * 7, 4), (192, 112)).shape == (1, 4, 12, 7)
    with pytest.raises(ValueError, match="fit no grid"):
        tokens()(torch.zeros(1, 1 + 11 * 7, 4), (192, 112))
    assert tokens()(torch.zeros(1, 37, 4), (480, 480)).shape == (1, 4, 6, 6)  # one that resizes its pictures itself


class Mixing(nn.Module):
    """Every token hears of all others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x.mean(1, keepdim=True) + x)


class TwoStages(nn.Module):
    """Patches, tokens, patches again, tokens again, as Twins and CoaT; nothing says what grid the tokens are of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed1, self.block1 = nn.Conv2d(3, 8, 4, 4), Mixing(8)
        self.embed2, self.block2 = nn.Conv2d(8, 16, 2, 2), Mixing(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for embed, block in ((self.embed1, self.block1), (self.embed2, self.block2)):
            maps = embed(x)
            tokens = block(maps.flatten(2).transpose(1, 2))
            x = tokens.transpose(1, 2).reshape(maps.shape)
        return self.head(tokens.mean(1))


def test_layers_that_were_chosen_by_the_maps_before_them_are_read_by_the_same() -> None:
    torch.manual_seed(0)
    classifier = Classifier(TwoStages().eval(), mean=[0.5] * 3, std=[0.5] * 3, layers=None, image_size=64)
    assert classifier.layers == ("block1", "block2") and classifier.strides == (4, 8)
    x = torch.rand(1, 3, 64, 64)
    deepest = classifier.features(x).maps[-1]
    x[:, :, -8:, :8] = 0
    changed = (classifier.features(x).maps[-1] - deepest).abs().sum(1)[0]
    assert divmod(int(changed.argmax()), 8) == (7, 0)


def test_tokens_in_blocks_are_no_rows() -> None:
    """Hiera keeps the tokens of a block of patches beside one another: its row-major map would show another place."""

    class HieraBlock(Mixing):
        pass

    torch.manual_seed(0)
    network = TwoStages()
    network.block2 = HieraBlock(16)
    classifier = Classifier(network.eval(), mean=[0.5] * 3, std=[0.5] * 3, layers=None, image_size=64)
    assert "block2" not in classifier.layers
    with pytest.raises(ValueError, match="lie in blocks of the picture and not row by row"):
        Classifier(network, mean=[0.5] * 3, std=[0.5] * 3, layers=["block2"], image_size=64)
