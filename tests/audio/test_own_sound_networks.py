"""Networks of one's own that take a spectrogram: named by the command, read where their maps lie, trained for."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from salmask.audio.front import Front, Magnitudes, MelBands
from salmask.audio.hearing import Hearing
from salmask.classifier import Classifier
from salmask.cli.main import main
from salmask.training.run import load_classifier, load_run

DOCS = Path(__file__).parents[2] / "docs" / "audio.md"
HEARING = Hearing(2000, 0.2, n_fft=64, window=64, hop=32)

OWN = """
import torch
from torch import nn
from salmask.audio import Hearing, Magnitudes, MelBands

HEARING = Hearing(2000, 0.2, n_fft=64, window=64, hop=32)
SETTINGS = {"sample_rate": 2000, "seconds": 0.2, "n_fft": 64, "window": 64, "hop": 32}


class Own(nn.Module):
    def __init__(self, front):
        super().__init__()
        self.front, self.conv, self.head = front, nn.Conv2d(1, 4, 3, 2, 1), nn.Linear(4, 2)

    def forward(self, pictures):
        return self.head(self.conv(self.front(pictures)).relu().mean((2, 3)))


def made(front):
    torch.manual_seed(0)
    return Own(front).eval()


def mel():
    return made(MelBands(HEARING, 12))


def plain():
    return made(nn.Identity()), {"hearing": SETTINGS, "classes": ["0", "1"]}


def unknown():
    return made(nn.Identity()), {"hearing": {"rate": 2000}}


def out_of_range():
    return made(nn.Identity()), {"hearing": {**SETTINGS, "domain": "mel"}}


def coloured():
    return made(nn.Identity()), {"hearing": SETTINGS, "mean": [0.5], "std": [0.5]}


def contradicting():
    return made(MelBands(HEARING, 12)), {"hearing": {**SETTINGS, "hop": 16}}
"""


class FixedFrames(nn.Module):
    """Takes pictures of one size alone."""

    def __init__(self, front: nn.Module, rows: int) -> None:
        super().__init__()
        self.front, self.conv = front, nn.Conv2d(1, 4, 3, 2, 1)
        self.head = nn.Linear(4 * rows * 7, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.conv(self.front(pictures)).relu().flatten(1))


def _read(network: nn.Module, layers: list[str] | None = None) -> Classifier:
    torch.manual_seed(0)
    frames = HEARING.frames
    return Classifier(network, mean=[0.0], std=[1.0], layers=layers, image_size=HEARING.bins, image_width=frames)


@pytest.mark.parametrize("front", [Magnitudes(HEARING), MelBands(HEARING, 12)], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("hertz", [200, 500, 800])
def test_maps_behind_a_front_lie_at_their_frequencies(front: Front, hertz: int) -> None:
    classifier = _read(FixedFrames(front, 6 if isinstance(front, MelBands) else 17))
    assert classifier.layers == ("conv",)
    with torch.no_grad():
        classifier.network.conv.weight.fill_(1 / 9)
        classifier.network.conv.bias.zero_()
    tone = torch.sin(2 * math.pi * hertz * torch.arange(400) / 2000)
    picture = HEARING.hear(tone).picture[None]
    loudest = int(picture[0, 0, :, 6].argmax())
    rows = classifier.features(picture).maps[0][0, 0, :, 3]
    highest = (rows == rows.max()).nonzero().float().mean()  # beyond the highest band's centre all rows are its own
    assert (float(highest) + 0.5) * 33 / len(rows) == pytest.approx(loudest + 0.5, abs=4)  # two bands a row


def test_what_turns_its_rows_without_saying_so_is_refused() -> None:
    class Turned(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return HEARING.magnitudes(pictures)

    with pytest.raises(ValueError, match="lies mirrored"):
        _read(FixedFrames(Turned(), 17), ["conv"])

    class TimeFirst(FixedFrames):
        def forward(self, pictures: Tensor) -> Tensor:
            return self.head(self.conv(self.front(pictures).transpose(2, 3)).relu().flatten(1))

    with pytest.raises(ValueError, match="lies mirrored"):
        _read(TimeFirst(MelBands(HEARING, 12), 6), ["conv"])


def _of_the_docs() -> str:
    """The network of docs/audio.md, heard at the rate of the sounds of this test."""
    text = DOCS.read_text(encoding="utf-8").partition("# hears.py")[2].partition("```")[0]
    given = "sample_rate=8000, seconds=0.7, n_fft=256, window=256, hop=128"
    for part, smaller in ((given, "2000, 0.2, n_fft=64, window=64, hop=32"), ("(hearing, 40)", "(hearing, 12)")):
        assert part in text
        text = text.replace(part, smaller)
    return text.replace("def network", "def mel")


def test_the_command_trains_for_one_s_own_network_and_the_run_loads_again(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    own, data = tmp_path / "own.py", tmp_path / "data"
    own.write_text(OWN.partition("def mel")[0] + _of_the_docs() + "\n\ndef plain" + OWN.partition("def plain")[2])
    data.mkdir()
    for number in range(12):
        tone = torch.sin(2 * math.pi * (200 + 500 * (number % 2)) * torch.arange(440) / 2000)
        soundfile.write(data / f"{number % 2}_{'abc'[number % 3]}_{number}.wav", tone.numpy(), 2000)
    for name, domain in (("mel", "linear"), ("plain", None)):
        out, spec = tmp_path / name, f"{own}:{name}"
        extra = [] if domain is None else ["--domain", domain]
        arguments = ["train", "--data", str(data), "--classifier", spec, "--out", str(out), "--recipe", "lmac"]
        assert main([*arguments, "--epochs", "1", "--batch-size", "4", "--layers", "0", *extra]) == 0
        run = load_run(out)
        assert run.loaded.view == (HEARING if domain is None else load_classifier(spec, domain=domain).view)
        assert [front.hearing for front in run.loaded.classifier.modules() if isinstance(front, Front)] == (
            [run.loaded.view] if name == "mel" else []
        )
        sound = str(data / "0_a_0.wav")
        assert main(["explain", sound, "--explainer", str(out), "--out", str(tmp_path / "heard")]) == 0
        options = ["--metric", "average_drop", "--target", "predicted", "--no-baselines", "--out", str(out / "page")]
        assert main(["evaluate", "--data", str(data), "--explainer", str(out), "gradcam", *options]) == 0
    assert load_classifier(f"{own}:plain").classes == ("0", "1")
    facts = json.loads((tmp_path / "plain" / "run.json").read_text())
    assert facts["view"]["hearing"]["domain"] == "log" and facts["network"].endswith("own.py:plain")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown", "hearing with 'rate'"),
        ("out_of_range", "hearing, domain"),
        ("coloured", "leave one out"),
        ("contradicting", "is made for"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "own_wrong.py").write_text(OWN)
    with pytest.raises(ValueError, match=words):
        load_classifier(f"{tmp_path / 'own_wrong.py'}:{name}")


def test_the_domain_of_a_network_that_takes_pictures_as_they_are_does_not_change(tmp_path: Path) -> None:
    (tmp_path / "own_domain.py").write_text(OWN)
    spec = f"{tmp_path / 'own_domain.py'}"
    assert load_classifier(f"{spec}:plain", domain="log").view == HEARING
    with pytest.raises(ValueError, match="made for pictures of the log domain"):
        load_classifier(f"{spec}:plain", domain="linear")
    one, other = (load_classifier(f"{spec}:mel", domain=domain) for domain in ("log", "linear"))
    wave = torch.sin(torch.arange(400) / 3)
    logits = [loaded.classifier.logits(loaded.view.hear(wave).picture[None]) for loaded in (one, other)]
    assert torch.allclose(*logits, atol=1e-4)
