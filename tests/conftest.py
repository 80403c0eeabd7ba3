"""What every test shares: one torch thread, the places of data that may be absent, and a hand-written network."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (  # files by the time they take, longest first
    "test_study.py",
    "test_explainers.py",
    "test_cli.py",
    "test_processes.py",
    "test_blocks.py",
    "test_matrix.py",
    "test_train.py",
    "test_notebooks.py",
    "test_page.py",
    "test_released.py",
    "test_wrong_arguments.py",
    "test_quick.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: of processes that take whole files none is left with one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


SHARED = Path(os.environ.get("SALMASK_DATA", Path(__file__).resolve().parents[2] / "shared"))


def _folder(path: Path, what: str) -> Path:
    if not path.exists():
        pytest.skip(f"{what} is absent: set SALMASK_DATA to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the folder of published implementations' answers (inputs.npz, scores.json)."""
    return _folder(SHARED / "golden", "the folder of golden values")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images and speech (zip files)."""
    return _folder(SHARED / "data", "the folder of real data")


@pytest.fixture(scope="session")
def real_classifier() -> Path:
    """Return the weights of a resnet18 trained on the real images."""
    return _folder(SHARED / "models" / "resnet18-tiny-imagenet-50.safetensors", "the trained classifier")


class SmallNet(nn.Module):
    """A hand-written CNN: three stages of stride 2, 4 and 8, batch norm, in-place and reused ReLU."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12))
        self.deep = nn.Conv2d(12, 16, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.middle(self.stem(x)))
        x = self.relu(self.deep(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def small_net() -> SmallNet:
    torch.manual_seed(0)
    net = SmallNet()
    for module in net.modules():  # running statistics that are not the identity
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net
