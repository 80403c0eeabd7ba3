"""What makes a training fast, and what it says of its speed: pictures decoded once, compiled passes, waiting."""

import json
import time
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import Dataset

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.data import Batch, CropFlip, Sample, no_boxes, training_batches
from salmask.masker import Masker
from salmask.training import log as log_module
from salmask.training import variant
from salmask.training.log import Log, in_words, speed, timed
from salmask.training.recipes import RECIPES
from salmask.training.settings import Settings
from salmask.training.train import train_masker
from salmask.training.variant import decoded_once


class Counted(Dataset):
    """Ten pictures in two classes; counts how often each is read."""

    def __init__(self) -> None:
        self.classes, self.targets = ["a", "b"], [0, 1] * 5
        self.ids = [f"{index}.png" for index in range(10)]
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        self.reads[index] += 1
        image = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        return Sample(self.ids[index], image, self.targets[index], no_boxes(), None)


def shown(data: Counted, settings: Settings, start: int = 0) -> list[Batch]:
    stream = decoded_once(data, settings, CropFlip(8))
    assert not data.reads  # nothing before the training has looked at what it was given
    return list(islice(stream(start), settings.steps(len(data)) - start))


def same(left: Batch, right: Batch) -> bool:
    return left.ids == right.ids and torch.equal(left.images, right.images) and torch.equal(left.targets, right.targets)


# Pictures


def test_pictures_that_are_shown_again_are_decoded_once_and_shown_as_ever() -> None:
    data, settings = Counted(), Settings(epochs=3, batch_size=5, seed=2)
    batches = shown(data, settings)
    assert set(data.reads.values()) == {1} and len(data.reads) == 10
    wanted = training_batches(Counted(), batch_size=5, seed=2, augment=CropFlip(8))
    assert len(batches) == 6 and all(map(same, batches, wanted))


def test_of_pictures_that_are_shown_once_none_is_decoded_that_is_not_shown() -> None:
    data = Counted()
    assert len(shown(data, Settings(epochs=0.4, batch_size=2))) == 2
    assert sum(data.reads.values()) == 4


def test_pictures_stay_on_the_device_where_they_fit(monkeypatch) -> None:
    data, settings = Counted(), Settings(epochs=3, batch_size=5, seed=2)
    monkeypatch.setattr(variant, "_room", lambda device: 10 * 3 * 12 * 12)
    kept = shown(data, settings)
    assert data.reads.total() == 11  # the first is looked at for its channels
    assert all(map(same, shown(Counted(), settings, start=2), kept[2:]))
    plain = list(islice(training_batches(Counted(), batch_size=5, seed=2, augment=CropFlip(8)), 6))
    assert [one.ids for one in kept] == [one.ids for one in plain] and not same(kept[0], plain[0])
    monkeypatch.setattr(variant, "_room", lambda device: 10 * 3 * 12 * 12 - 1)
    assert all(map(same, shown(Counted(), settings), plain))


# Passes


class Compiled(nn.Module):
    """Stands in for torch.compile: counts the pictures that pass, and changes nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner, self.passed = [network], []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passed.append(len(images))
        return self.inner[0](images)


def trained(out, recipe: str, **settings) -> Masker:
    torch.manual_seed(0)
    classifier = Classifier(
        SmallNet(), mean=(0.5,) * 3, std=(0.2,) * 3, layers=("stem", "middle", "deep"), image_size=16
    )
    masker = Masker.for_classifier(classifier, layers=(1, 2), width=8, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    batch = Batch([""] * 4, torch.rand(4, 3, 16, 16, generator=g), torch.arange(4), [no_boxes()] * 4, [None] * 4)
    given = Settings(epochs=3, batch_size=4, precision="32-true", **settings)
    return train_masker(
        masker, classifier, lambda start: [batch] * 3, 4, recipe=RECIPES[recipe], settings=given, out=out
    )


@pytest.mark.parametrize(("recipe", "passes"), [("reader", [4, 4] * 3), ("fix", [8] * 3)])
def test_masked_pictures_pass_the_compiled_network_and_nothing_else_changes(
    tmp_path, monkeypatch, recipe, passes
) -> None:
    made: list[Compiled] = []
    monkeypatch.setattr(torch, "compile", lambda network: made.append(Compiled(network)) or made[-1])
    compiled = trained(tmp_path / "compiled", recipe, compile=True)
    plain = trained(tmp_path / "plain", recipe)
    assert [one.passed for one in made] == [passes]
    assert all(map(torch.equal, compiled.state_dict().values(), plain.state_dict().values()))


# What is said


def test_waiting_is_the_time_between_asking_for_a_batch_and_getting_it(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(log_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow():
        for number in range(3):
            now[0] += 2.0
            yield number

    clock = log_module.Clock()
    for _ in timed(slow(), clock):
        now[0] += 6.0
    assert clock.lap() == (24.0, 6.0)
    now[0] += 1.0
    assert clock.lap() == (1.0, 0.0)


def test_the_log_says_steps_a_second_and_the_share_of_waiting_beside_what_can_be_repeated(tmp_path) -> None:
    numbers = {"loss": torch.tensor(1.0)}
    fabric = Fabric(accelerator="cpu", devices=1)
    with Log(tmp_path, 0, 8, fabric=fabric) as log:
        for step in range(1, 5):
            log.add(numbers)
            time.sleep(0.002)
            if step % 2 == 0:
                log.clock.waited = 0.001
                log.write(step)
    found = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"], line["waited"]) for line in found] == [(2, 2, 0.001), (4, 2, 0.001)]
    pace = speed(tmp_path / "speed.jsonl")
    seconds = sum(line["seconds"] for line in found)
    assert seconds >= 0.008 and pace["steps_a_second"] == pytest.approx(4 / seconds, abs=0.01)
    assert pace["waiting"] == pytest.approx(0.002 / seconds, abs=1e-4)
    assert "steps/s" in in_words(pace) and "of the time waiting for pictures" in in_words(pace)
    with Log(tmp_path, 2, 8, fabric=fabric):  # what a resumed run repeats is cut
        assert len((tmp_path / "speed.jsonl").read_text().splitlines()) == 1
    assert speed(tmp_path / "none.jsonl") is None and in_words(None) == ""
    assert all("waited" not in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
