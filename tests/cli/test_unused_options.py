"""An option that what was asked for makes no use of is refused in one line, before anything is made."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from salmask.cli.main import main
from salmask.cli.options import given_options, refuse_unused


@dataclass
class Options:
    data: str
    size: int | None = None
    names: tuple[str, ...] = ()
    more: list[int] = field(default_factory=list)


def test_what_is_at_its_default_is_not_given() -> None:
    assert given_options(Options("a")) == ["data"]
    assert given_options(Options("a", 3, ("b",), [1])) == ["data", "size", "names", "more"]
    assert given_options(Options("a", 3, ("b",)), ["names", "more"]) == ["names"]
    refuse_unused(Options("a"), ("size", "names"), "for others")
    with pytest.raises(ValueError, match=r"^--size is for others: leave it out$"):
        refuse_unused(Options("a", 3), ("size", "names"), "for others")
    with pytest.raises(ValueError, match=r"^--size, --names are for others: leave them out$"):
        refuse_unused(Options("a", 3, ("b",)), ("names", "size"), "for others")


CONNECT = ["study", "connectivity"]
LINES = [
    (CONNECT, ["--seeds", "2", "--threads", "1"], "--seeds, --threads are of no use to the study connectivity"),
    (CONNECT, ["--jobs", "elsewhere"], "--jobs is of no use"),
    (CONNECT, ["--as-released"], "--as-released is of no use"),
    (CONNECT, ["--inpainter", "a.safetensors"], "--inpainter is of no use"),
    (CONNECT, ["--fit", "pad"], "--fit is of pictures of --data"),
    (CONNECT, ["--data", "d", "--cue", "texture"], "--cue is of built-in pictures"),
    (["study", "table1"], ["--points", "5"], "--points is of the study connectivity alone, asked for is table1"),
    (["study", "layers"], ["--explainer", "gradcam"], "--explainer is of the study connectivity"),
    (["study", "layers"], ["--size", "32"], "--image-size is of pictures of --data"),
    (["study", "layers"], ["--inpainter", "a.safetensors"], "--inpainter is for the study infilling"),
    (["study", "layers"], ["--slurm", "a=b", "--threads", "2"], "--threads is of this machine"),
    (["classifier", "--data", "d", "--network", "timm:test_resnet"], ["--n-fft", "64"], "--n-fft is of sounds"),
    (["explain", "a.png"], ["--form", "array"], "--form is of a whole data set"),
    (["explain", "a.png"], ["--batch-size", "3", "--devices", "2"], "--devices, --batch-size are of a whole data set"),
    (["explain", "--data", "d"], ["--top", "5"], "--top is of the figures of single files"),
    (["score", "m.npz"], ["--size", "64"], "--image-size is for a classifier that scores"),
    (["score", "m.npz"], ["--target", "predicted"], "--target is a column of --labels"),
    (["share", "run"], ["--private"], "--private is of a place on the hub"),
    (
        ["pooling", "--data", "d", "--classifier", "c", "--crops"],
        ["--memory", "2"],
        "--memory is for maps that are kept",
    ),
    (["pooling", "--data", "d", "--classifier", "c"], ["--mix", "white:3"], "--mix is for `train`"),
    (["sanity", "--data", "d", "--explainer", "gradcam"], ["--mix", "white:3"], "--mix is for `train`"),
]


@pytest.mark.parametrize(("command", "more", "words"), LINES, ids=[" ".join([*a[:2], *b]) for a, b, _ in LINES])
def test_options_without_use_are_refused_by_name(command, more, words, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, *more, "--out", str(tmp_path / "out.safetensors")]) == 1
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1
    assert not any(tmp_path.iterdir())
