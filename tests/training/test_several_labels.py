"""Independent labels: each picture and label is a question with two answers, in training, optimising and measuring."""

import csv

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn

import salmask
from salmask.classifier import Classifier
from salmask.classifier.scores import SCORES
from salmask.cli.main import main
from salmask.data import LabelledPictures
from salmask.explain import EXPLAINERS
from salmask.masking import MeanColour
from salmask.metrics import METRICS
from salmask.metrics.case import Case
from salmask.objective import OBJECTIVES
from salmask.outcome import play, play_at_rest
from salmask.rows.read import ROWS, read_lines
from salmask.training.lessons import drawn_label, lesson, mistakes
from salmask.training.run import load_run

SIZE, LABELS = 24, 3


class Patches(nn.Module):
    """Label k is there where the corner of its own has its colour: red, green, blue."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.stage = nn.Conv2d(3, LABELS, 1), nn.AvgPool2d(4)
        self.scale = nn.Parameter(torch.tensor(40.0))
        with torch.no_grad():
            self.colour.weight.copy_((2 * torch.eye(3) - 1)[:, :, None, None])
            self.colour.bias.fill_(-0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (self.stage(self.colour(x).relu()).mean((2, 3)) - 0.03)


class OneLabel(nn.Module):
    def __init__(self, label: int) -> None:
        super().__init__()
        self.network, self.label = Patches(), label

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, self.label]


def of(network: nn.Module, outputs: str) -> Classifier:
    return Classifier(network, mean=[0.0] * 3, std=[1.0] * 3, layers=None, image_size=SIZE, outputs=outputs)


def scenes(count: int = 4) -> tuple[Tensor, list[list[int]]]:
    """Return grey pictures with a red, a green and a blue patch in some of the corners, and which are there."""
    pictures = torch.full((count, 3, SIZE, SIZE), 0.3) + 0.02 * torch.rand(
        count, 3, SIZE, SIZE, generator=Generator().manual_seed(0)
    )
    labels = [[k for k in range(LABELS) if (index + 1) >> k & 1] for index in range(count)]
    for picture, own in zip(pictures, labels, strict=True):
        for k in own:
            rows, columns = (
                (slice(2, 9), slice(15, 22)) if k == 0 else (slice(15, 22), slice(2 + 13 * (k == 2), 9 + 13 * (k == 2)))
            )
            picture[:, rows, columns] = torch.eye(3)[k, :, None, None]
    return pictures, labels


@pytest.mark.parametrize("label", range(LABELS))
def test_a_label_is_asked_as_a_question_with_two_answers(label) -> None:
    (pictures, _), masks = scenes(), torch.rand(4, 1, SIZE, SIZE, generator=Generator().manual_seed(1))
    several, one = of(Patches(), "multilabel"), of(OneLabel(label), "binary")
    targets, infill = torch.full((4,), label), MeanColour.of(several)
    for players in (play, play_at_rest):
        outcome = players(several, pictures, masks, targets, infill=infill)
        wanted = players(one, pictures, masks, torch.ones(4, dtype=torch.int64), infill=infill)
        for name, objective in OBJECTIVES.items():
            if name != "dabkowski_gal":
                torch.testing.assert_close(objective(outcome).total, objective(wanted).total, rtol=1e-4, atol=1e-5)
        for name, score in SCORES.items():
            got = score(outcome.kept_logits, outcome.targets)
            alone = score(wanted.kept_logits, wanted.targets)
            factor = 2 if name == "logit" else 1  # (-z/2, z/2) there, z here
            if name != "sigmoid":
                torch.testing.assert_close(got, factor * alone, rtol=1e-4, atol=1e-5)
    assert outcome.clean_right.tolist() == [bool((k + 1) >> label & 1) for k in range(4)]


@pytest.mark.parametrize("name", sorted(name for name, metric in METRICS.items() if "classifier" in metric.needs))
def test_metrics_read_the_label_alone(name) -> None:
    pictures, _ = scenes()
    masks = torch.rand(4, 1, SIZE, SIZE, generator=Generator().manual_seed(1))
    common = {
        "ids": list("abcd"),
        "images": pictures,
        "boxes": [torch.tensor([[2.0, 2, 12, 12]])] * 4,
        "pixels": [torch.ones(SIZE, SIZE, dtype=torch.uint8)] * 4,
        "correct": torch.ones(4, dtype=torch.bool),
    }
    if METRICS[name].needs - common.keys() - {"classifier"}:
        pytest.skip("of other truth")
    several = METRICS[name](Case(masks, torch.full((4,), 1), classifier=of(Patches(), "multilabel"), **common))
    alone = METRICS[name](Case(masks, torch.ones(4, dtype=torch.int64), classifier=of(OneLabel(1), "binary"), **common))
    if ":logit" in name or "logit" in str(METRICS[name].protocol.get("score", "")):
        pytest.skip("z here, z/2 there")
    torch.testing.assert_close(several, alone, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_a_masker_finds_each_label_of_a_picture() -> None:
    pictures, labels = scenes(7)
    classifier = of(Patches(), "multilabel")
    weights = [["area_if_kept_right", 0.3], ["area_if_removed_wrong", 3.0]]
    options = {
        "recipe": "fix",
        "weights": weights,
        "batch_size": 12,
        "lr": 0.01,
        "precision": "32-true",
        "decay_at": [],
        "class_condition": True,
        "layers": [0],
    }
    masker = salmask.train(classifier, pictures, targets=labels, steps=120, **options)
    picture = pictures[6:]  # all three are there
    corners = {0: (0, 1), 1: (1, 0), 2: (1, 1)}
    for label, (down, right) in corners.items():
        mask = salmask.explain(classifier, picture, explainer=masker, targets=[label]).masks[0, 0]
        half = SIZE // 2
        part = mask[down * half : (down + 1) * half, right * half : (right + 1) * half]
        assert part.sum() > 0.6 * mask.sum() > 0
    scores = salmask.evaluate(classifier, {"masker": masker, "empty": "empty"}, pictures, metrics=["average_drop"])
    assert scores["masker"]["average_drop"]["n"] == sum(map(len, labels))
    assert scores["masker"]["average_drop"]["mean"] < scores["empty"]["average_drop"]["mean"]


@pytest.mark.parametrize("name", ["opticam", "extremal", "meaningful", "fido"])
def test_optimised_masks_find_a_label(name) -> None:
    pictures, _ = scenes(7)
    settings = {"iterations": 30} | ({"areas": [0.15]} if name == "extremal" else {})
    settings |= {"layer": 0} if name == "opticam" else {}
    masks = EXPLAINERS[name](**settings)(of(Patches(), "multilabel"), pictures[6:], torch.tensor([2])).masks[0, 0]
    half = SIZE // 2
    assert masks[half:, half:].mean() == max(
        masks[a : a + half, b : b + half].mean() for a in (0, half) for b in (0, half)
    )


def test_what_is_explained_and_taught_without_labels() -> None:
    classifier = of(Patches(), "multilabel")
    logits = torch.tensor([[2.0, -1, 3], [-3, -1, -2]]).repeat(200, 1)
    drawn = drawn_label(classifier, logits, Generator().manual_seed(0))
    assert set(drawn[::2].tolist()) == {0, 2} and 60 < (drawn[::2] == 0).sum() < 140
    assert set(drawn[1::2].tolist()) == {1}
    taught = lesson(classifier, logits, drawn, labelled=False)
    assert taught[0].tolist() == [1, 0, 1] and taught[1].tolist() == [0, 0, 0]
    assert lesson(classifier, logits[1:2], torch.tensor([2]), labelled=True)[0].tolist() == [0, 0, 1]
    wanted = -(taught * logits.sigmoid().log() + (1 - taught) * (1 - logits.sigmoid()).log()).sum(1).mean()
    torch.testing.assert_close(mistakes(logits, taught), wanted)


NETWORK = """
from test_several_labels import Patches

def network():
    facts = {"mean": [0.0] * 3, "std": [1.0] * 3, "image_size": 24, "classes": ("red", "green", "blue")}
    return Patches(), {**facts, "outputs": "multilabel"}
"""


@pytest.fixture
def folder(tmp_path):
    pictures, labels = scenes(7)
    (tmp_path / "net.py").write_text(NETWORK)
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        lines = [["image", "class"]]
        for index, (picture, own) in enumerate(zip(pictures, labels, strict=True)):
            name = f"{split}/{index}.png"
            Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "data" / name)
            lines += [[name, ("red", "green", "blue")[k]] for k in own]
        with (tmp_path / "data" / f"{split}_labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    return tmp_path


@pytest.mark.parametrize("recipe", ["reader", "ca"])
def test_labels_of_a_table_are_trained_on_and_measured_by_command(folder, recipe) -> None:
    data, run = str(folder / "data"), str(folder / "run")
    spec = f"{folder / 'net.py'}:network"
    more = ["--epochs", "1", "--batch-size", "6", "--layers", "0"]
    assert main(["train", "--data", data, "--classifier", spec, "--out", run, "--recipe", recipe, *more]) == 0
    assert load_run(run).loaded.classifier.multilabel
    if recipe == "ca":
        return
    measured = [
        "evaluate",
        "--data",
        data,
        "--explainer",
        run,
        "gradient",
        "--metric",
        "average_drop",
        "--no-baselines",
    ]
    assert main([*measured, "--out", str(folder / "labels")]) == 0
    rows = [line for _, _, line in read_lines(folder / "labels" / ROWS)]
    assert {row["image"] for row in rows} >= {"val/6.png#red", "val/6.png#green", "val/6.png#blue", "val/0.png#red"}
    assert len({row["image"] for row in rows}) == 12
    assert {row["value"] for row in rows if row["metric"] == "acc_whole"} == {1.0}
    assert main([*measured, "--target", "predicted", "--out", str(folder / "decided")]) == 0
    decided_rows = [line for _, _, line in read_lines(folder / "decided" / ROWS)]
    assert {row["image"] for row in decided_rows} == {row["image"] for row in rows}  # what is there is what is decided
    predicted = ["--target", "predicted", "--out", str(folder / "without")]
    assert main(["train", "--data", data, "--classifier", spec, "--recipe", recipe, *more, *predicted]) == 0


def test_several_labels_are_no_exclusive_classes(folder, capsys) -> None:
    (folder / "plain.py").write_text(NETWORK.replace('"multilabel"', '"logits"'))
    arguments = ["train", "--data", str(folder / "data"), "--classifier", f"{folder / 'plain.py'}:network"]
    assert main([*arguments, "--out", str(folder / "run")]) == 1
    assert "several labels each" in capsys.readouterr().err and not (folder / "run").exists()
    data = LabelledPictures(folder / "data", "train", classes=("red", "green", "blue"))
    assert data.several and len(data) == 12
