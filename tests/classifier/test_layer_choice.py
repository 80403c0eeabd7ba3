"""Of each resolution the last output of a whole block is read, and not what the next block works with inside."""

import pytest
import torch
from torch import Tensor, nn

from salmask.classifier import Classifier

COLOURS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def read(network: nn.Module, size: int = 64) -> Classifier:
    return Classifier(network.eval(), layers=None, image_size=size, **COLOURS)


class Expanding(nn.Module):
    """A block that widens its channels on the old grid before it goes to the new one."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.widen = nn.Sequential(nn.Conv2d(channels, 3 * channels, 1), nn.ReLU())
        self.narrow = nn.Conv2d(3 * channels, out, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.widen(x))


class Blocks(nn.Module):
    def __init__(self, *strides: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(Expanding(8, 8, stride) for stride in strides)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def test_what_a_block_works_with_before_it_strides_is_passed_over() -> None:
    assert read(Blocks(1, 2, 1, 2)).layers == ("blocks.0", "blocks.2", "blocks.3")
    assert read(Blocks(2, 2)).layers == ("stem", "blocks.0", "blocks.1")


def test_a_resolution_that_is_found_within_a_block_alone_is_read_there() -> None:
    network = Blocks(2, 2)
    del network.stem
    network.stem = torch.relu
    network.blocks[0].widen[0] = nn.Conv2d(3, 24, 4, 4)
    assert read(network).layers == ("blocks.0.widen", "blocks.0", "blocks.1")


def test_levit_and_mobilenet_of_hugging_face_are_read_after_whole_blocks() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [2, 2, 2], "key_dim": [8] * 3}
    operations = [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2]]
    levit = transformers.LevitConfig(image_size=128, num_labels=3, **sizes)
    levit.down_ops = operations
    layers = read(transformers.LevitForImageClassification(levit), 128).layers
    assert layers[-3:] == ("levit.encoder.stages.0.layers.3", "levit.encoder.stages.1.layers.3", "levit")
    small = {"depth_multiplier": 0.25, "image_size": 64, "num_labels": 3}
    layers = read(transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(**small))).layers
    assert all(name.split(".")[-2] == "layer" for name in layers[1:-1]), layers


def test_what_is_padded_before_a_convolution_is_no_resolution() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.EfficientNetConfig(
        num_labels=3, width_coefficient=0.25, depth_coefficient=0.1, image_size=64, hidden_dim=320
    )
    network = transformers.EfficientNetForImageClassification(config).eval()
    classifier = Classifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, layers=None, image_size=64)
    assert [layer.shape[1:] for layer in classifier.describe()] == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
