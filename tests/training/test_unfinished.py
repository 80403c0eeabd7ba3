"""Ctrl-C in the middle of a training: it waits for the end of the step, and what goes on ends with the same bits."""

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.cli import classifier as classifier_command
from salmask.cli import pooling as pooling_command
from salmask.cli import train as train_command
from salmask.cli.main import main
from salmask.data.synthetic import Synthetic, write_folder
from salmask.pooling import Pooled, QueryStream
from salmask.training import classifier as module_of_classifiers
from salmask.training.classifier import FitSettings, fit_classifier
from salmask.training.pooling import CroppedPictures, Maps, PoolingSettings, fit_stream
from salmask.training.unfinished import Unfinished, discard, interruptible

PICTURES = Synthetic(24, seed=0, size=16)
SETTINGS = FitSettings(epochs=2, batch_size=8, lr=0.05, precision="32-true")


def pressing(at: int) -> Callable[[Iterable[int]], Iterator[int]]:
    """Return a bar that presses Ctrl-C as step number `at` of this call begins."""

    def bar(steps: Iterable[int]) -> Iterator[int]:
        for number, step in enumerate(steps):
            if number == at:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    return bar


class Dropping(SmallNet):
    """A network that draws from torch's global generator in training."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.2, self.training))


def new_classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(Dropping(10), mean=(0.5,) * 3, std=(0.25,) * 3, layers=("stem", "deep"), image_size=16)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_ctrl_c_waits_once_and_the_handler_is_as_it_was(capsys) -> None:
    with interruptible() as stops:
        assert not stops()
        os.kill(os.getpid(), signal.SIGINT)
        assert stops() and "Ctrl-C again stops at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_was_forked_says_nothing_of_it(capfd) -> None:
    with interruptible():
        if not (child := os.fork()):
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr().err == ""


def test_somebody_else_s_handler_and_several_processes_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interruptible() as stops:
            os.kill(os.getpid(), signal.SIGINT)
        assert seen == [signal.SIGINT] and not stops()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started with & ignore the signal
        with interruptible(alone=False), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_classifier_that_goes_on_is_the_one_of_a_whole_training(tmp_path) -> None:
    whole = fit_classifier(new_classifier(), PICTURES, settings=SETTINGS)
    folder = tmp_path / "kept"
    for at in (1, 2):  # twice, the second time after it went on
        with pytest.raises(KeyboardInterrupt):
            fit_classifier(new_classifier(), PICTURES, settings=SETTINGS, unfinished=folder, progress=pressing(at))
    done: list[int] = []
    again = fit_classifier(
        new_classifier(),
        PICTURES,
        settings=SETTINGS,
        unfinished=folder,
        progress=lambda steps: (done.append(step) or step for step in steps),
    )
    assert done == [5] and same(weights(again.network), weights(whole.network))
    discard(folder)
    assert not folder.exists()


class Killed(BaseException):
    """The process is killed here."""


def killing(at: int, seen: list[int]) -> Callable[[Iterable[int]], Iterator[int]]:
    """Return a bar that kills the training as step `at` begins, and notes the steps."""

    def bar(steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            if step == at:
                raise Killed
            seen.append(step)
            yield step

    return bar


@pytest.mark.parametrize("every", [0.0, 300.0])
def test_a_classifier_that_was_killed_is_the_same_and_loses_what_was_not_kept(every, tmp_path, monkeypatch) -> None:
    whole = fit_classifier(new_classifier(), PICTURES, settings=SETTINGS)
    monkeypatch.setattr(module_of_classifiers, "Unfinished", partial(Unfinished, every=every))
    folder, seen = tmp_path / "kept", list[int]()
    for at in (2, 5, 6):
        with pytest.raises(Killed) if at < 6 else nullcontext():
            again = fit_classifier(
                new_classifier(), PICTURES, settings=SETTINGS, unfinished=folder, progress=killing(at, seen)
            )
    assert seen == ([0, 1, 2, 3, 4, 5] if every == 0 else [0, 1, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5])
    assert same(weights(again.network), weights(whole.network))


def test_a_training_of_other_settings_or_a_file_of_something_else_is_not_taken_up(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_classifier(new_classifier(), PICTURES, settings=SETTINGS, unfinished=tmp_path, progress=pressing(1))
    other = FitSettings(epochs=2, batch_size=8, lr=0.06, precision="32-true")
    with pytest.raises(ValueError, match=r"settings.lr is 0.05, asked for is 0.06; delete it"):
        fit_classifier(new_classifier(), PICTURES, settings=other, unfinished=tmp_path)
    with pytest.raises(ValueError, match=r"its data"):
        fit_classifier(new_classifier(), Synthetic(32, seed=0, size=16), settings=SETTINGS, unfinished=tmp_path)
    (tmp_path / "unfinished.pt").write_bytes(b"no state")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        fit_classifier(new_classifier(), PICTURES, settings=SETTINGS, unfinished=tmp_path)


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["maps", "crops"])
def test_a_stream_that_goes_on_is_the_one_of_a_whole_training(kind, recipe, tmp_path) -> None:
    settings = PoolingSettings(recipe=recipe, epochs=2, batch_size=8)

    def fitted(**options) -> dict[str, torch.Tensor]:
        classifier = Classifier(SmallNet(10), mean=(0.5,) * 3, std=(0.25,) * 3, layers=("stem", "deep"), image_size=16)
        stream = QueryStream.for_classifier(classifier, generator=torch.Generator().manual_seed(0))
        pooled = Pooled(classifier, stream)
        lessons = Maps.of(pooled, PICTURES) if kind == "maps" else CroppedPictures(PICTURES)
        return weights(fit_stream(pooled, lessons, settings=settings, **options).stream)

    torch.manual_seed(1)
    whole = fitted()
    with pytest.raises(KeyboardInterrupt):
        torch.manual_seed(1)
        fitted(unfinished=tmp_path, progress=pressing(3))
    torch.manual_seed(1)
    assert same(fitted(unfinished=tmp_path), whole)


# By command: interrupted, then the line that it printed


OWN = """
import torch
from torch import nn
def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
    return net, {"mean": (0.5,) * 3, "std": (0.25,) * 3, "image_size": 32}
"""


def weights_in(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of every file of a run's folder, or of one file; {} where there are none."""
    files = [out] if out.is_file() else [*out.rglob("*.safetensors")]
    return {file.name.replace("cut", "whole"): load_file(file) for file in files}


def last_line(capsys) -> list[str]:
    return shlex.split(capsys.readouterr().err.splitlines()[-1].partition("go on with: salmask ")[2])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("unfinished") / "data"
    write_folder(root, train=20, val=10, seed=3, size=32)
    return root


@pytest.mark.filterwarnings("default:the training has collapsed")
def test_the_line_that_a_command_prints_goes_on_to_the_same_file(data, tmp_path, monkeypatch, capsys) -> None:
    small = ["--batch-size", "4", "--epochs", "1", "--data", str(data)]
    network = ["--network", "timm:test_resnet", "--image-size", "32"]
    (tmp_path / "mine.py").write_text(OWN)
    spec = ["--classifier", f"{tmp_path / 'mine.py'}:network"]
    cases = (
        (classifier_command, ["classifier", *network, *small], ".safetensors"),
        (pooling_command, ["pooling", *spec, *small, "--crops"], ""),
        (train_command, ["train", *spec, *small], ""),
    )
    for module, words, ending in cases:
        whole, cut = tmp_path / f"{words[0]}-whole{ending}", tmp_path / f"{words[0]}-cut{ending}"
        assert main([*words, "--out", str(whole)]) == 0
        with monkeypatch.context() as patch:
            patch.setattr(module, "progress_bar", lambda what: pressing(2))
            assert main([*words, "--out", str(cut)]) == 130
        assert not weights_in(cut)
        assert main(last_line(capsys)) == 0
        one, other = weights_in(whole), weights_in(cut)
        assert one.keys() == other.keys() != set() and all(same(one[name], other[name]) for name in one), words[0]
        assert not [*tmp_path.rglob("*unfinished*")]
