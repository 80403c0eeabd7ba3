"""Explaining files: which pictures, under which names, and maps that lie over the whole file."""

import json
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import salmask.specs
from salmask.classifier import Classifier
from salmask.cli.explain_files import Shown, explain_files, named_pictures, pictures_in
from salmask.cli.main import main
from salmask.data.pictures import read_image
from salmask.data.sight import Sight
from salmask.evaluation.panels import seen
from salmask.explain import EXPLAINERS, Explainer, Explanation, Passes
from salmask.explain.learned import Learned
from salmask.masker import Masker
from salmask.masking import MeanColour, keep, remove
from salmask.training.run import Loaded


@pytest.fixture
def loaded(small_net) -> Loaded:
    classifier = Classifier(small_net, mean=[0.5] * 3, std=[0.25] * 3, layers=["deep"], image_size=32)
    return Loaded(classifier, "own", Sight(32, "squash"))


class Ramp(Explainer):
    """A map that rises from 0 at the left edge to 1 at the right edge of what the classifier sees."""

    def __call__(self, classifier, images, targets=None) -> Explanation:
        logits = classifier.logits(images).detach()
        line = torch.linspace(0, 1, images.shape[-1])
        masks = line.expand(len(images), 1, images.shape[-2], -1).clone()
        return Explanation(masks, logits.argmax(1) if targets is None else targets, logits, Passes(1))


def explain(paths: list[Path], loaded: Loaded, out: Path, **options: object) -> list[Path]:
    done = explain_files(paths, "ramp", Ramp(), loaded, out=out, **options)  # type: ignore[arg-type]
    return [one.shown[0] for one in done]


def paint(path: Path, size: tuple[int, int] = (32, 32), colour: tuple[int, int, int] = (90, 120, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


# Which files


def test_a_folder_stands_for_the_pictures_in_it(loaded, tmp_path) -> None:
    for name in ("b.png", "a.jpg"):
        paint(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("none")
    written = explain([tmp_path / "in", tmp_path / "in" / "a.jpg"], loaded, tmp_path / "out")
    assert [path.name for path in written] == ["a.png", "b.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no pictures"):
        pictures_in([tmp_path / "empty"])
    (tmp_path / "in" / "drawing.svg").write_text("")
    with pytest.warns(UserWarning, match=r"1 \.svg"):
        assert len(pictures_in([tmp_path / "in"])) == 2


def test_a_pipe_is_refused_and_left_out_where_broken_files_are(loaded, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    good, nowhere = paint(tmp_path / "good.png"), tmp_path / "nowhere.png"
    nowhere.symlink_to(tmp_path / "none")
    with pytest.raises(ValueError, match="no regular file"):
        explain([tmp_path / "pipe.png", good], loaded, tmp_path / "out")
    with pytest.warns(UserWarning, match="left out") as caught:
        written = explain([tmp_path / "pipe.png", good, nowhere], loaded, tmp_path / "out", skip_broken=True)
    assert [path.name for path in written] == ["good.png"]
    assert len(caught) == 2


def test_fewer_than_one_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--top.*-3"):
        Shown(top=-3)


# Names


def test_no_file_of_anything_else_is_overwritten_and_ones_own_are(loaded, tmp_path) -> None:
    photo = paint(tmp_path / "photo.png")
    other = paint(tmp_path / "other.png")  # beside other.jpg, which is explained
    paint(tmp_path / "other.jpg")
    before = [path.read_bytes() for path in (photo, other)]
    for _ in range(2):
        written = explain([photo, tmp_path / "other.jpg"], loaded, tmp_path)
        assert [path.name for path in written] == ["photo.explained.png", "other.explained.png"]
    assert [path.read_bytes() for path in (photo, other)] == before
    out = tmp_path / "out"
    assert explain([photo], loaded, out) == explain([photo], loaded, out) == [out / "photo.png"]
    (out / "photo.png").write_bytes(before[0])
    paint(out / "photo.explained.png")
    with pytest.raises(ValueError, match=r"holds .*explain into another folder"):
        explain([photo], loaded, out)


def test_names_that_fold_to_one_stay_two(tmp_path) -> None:
    files = ["in/Photo.png", "in/photo.jpg", "more/photo.png", "a/x/photo.png", "b/x/photo.png", "in/Caf\u00e9.png"]
    paths = [tmp_path / name for name in [*files, "in/Cafe\u0301.png", "in/plain.png", "in/plain.whole.png"]]
    named = named_pictures(paths, tmp_path / "out")
    assert list(named.values()) == paths
    outputs = [f"{name}{end}" for name in named for end in (".png", ".whole.png")]
    outputs = [unicodedata.normalize("NFC", name).casefold() for name in outputs]
    assert len(set(outputs)) == len(outputs)
    assert "plain" in named


def test_a_long_name_is_shortened(loaded, tmp_path) -> None:
    paths = [paint(tmp_path / ("\u00e4" * 120 + f"{k}.png")) for k in range(2)]
    written = explain(paths, loaded, tmp_path / "out")
    assert len({path.name for path in written}) == 2
    assert all(path.is_file() and len(path.name.encode()) < 255 for path in written)


# The whole file


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_map_of_a_file_has_its_size_and_lies_where_the_classifier_has_looked(fit, loaded, tmp_path) -> None:
    wide = paint(tmp_path / "wide.png", (80, 40))
    seen = Loaded(loaded.classifier, "own", Sight(32, fit))
    lines: list[str] = []
    explain([wide], seen, tmp_path / "out", say=lines.append)
    whole = np.load(tmp_path / "out" / "wide.whole.npy")
    assert whole.shape == (40, 80)
    assert np.load(tmp_path / "out" / "wide.npy").shape == (32, 32)
    assert Image.open(tmp_path / "out" / "wide.whole.png").size == (80, 40)
    if fit == "crop":
        assert len(lines) == 1 and "50% of wide.png is cut off" in lines[0] and "--fit pad" in lines[0]
        assert np.isnan(whole[:, :20]).all() and np.isnan(whole[:, 60:]).all()
        expected = np.clip((np.arange(40) + 0.5) / 40 * 32 / 31 - 0.5 / 31, 0, 1)
        np.testing.assert_allclose(whole[0, 20:60], expected, atol=1e-5)
        overlaid = np.asarray(Image.open(tmp_path / "out" / "wide.whole.png"))
        assert (overlaid[:, :20] == (90, 120, 30)).all() and (overlaid[:, 25] != (90, 120, 30)).any()
    else:
        assert len(lines) == 1 and "nothing is cut off" in lines[0] and np.isfinite(whole).all()
        expected = np.clip((np.arange(80) + 0.5) / 80 * 32 / 31 - 0.5 / 31, 0, 1)
        np.testing.assert_allclose(whole[17], expected, atol=1e-5)


def test_a_map_by_name_of_a_grey_classifier_is_shown(tmp_path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.Flatten(), torch.nn.LazyLinear(3))
    net(torch.zeros(1, 1, 32, 32))
    try:
        classifier = Classifier(net, mean=[0.5], std=[0.25], layers=["0"], image_size=32)
    except (ValueError, RuntimeError) as error:
        pytest.skip(f"classifiers of one channel are not there yet: {error}")
    grey = Loaded(classifier, "own", Sight(32, "squash"))
    paint(tmp_path / "a.png", (40, 40))
    (done,) = explain_files([tmp_path / "a.png"], "gradcam", EXPLAINERS["gradcam"](), grey, out=tmp_path / "out")
    assert all(path.is_file() for path in (*done.shown, *done.beside))


# What --json holds


def test_json_has_class_probabilities_and_paths_of_each_picture(small_net, tmp_path, monkeypatch, capsys) -> None:
    """Two classes share a name, and the class asked for is not the likeliest: the probability is that of its index."""
    classifier = Classifier(small_net.eval(), mean=[0.5] * 3, std=[0.25] * 3, layers=["deep"], image_size=32)
    names = ("crane",) * classifier.num_classes
    loaded = Loaded(classifier, "own", Sight(32, "squash"), names)
    monkeypatch.setattr(salmask.specs, "load_explainer", lambda *a, **k: ("ramp", Ramp(), loaded))
    square, wide = paint(tmp_path / "a.png"), paint(tmp_path / "b.png", (64, 32), (200, 10, 90))
    out = tmp_path / "out"
    words = ["explain", str(square), str(wide), "--explainer", "ramp", "--out", str(out)]
    for target in (0, classifier.num_classes - 1):
        assert main([*words, "--json", "--target", str(target)]) == 0
        result = json.loads(capsys.readouterr().out)
        assert [one["file"] for one in result["pictures"]] == [str(square), str(wide)]
        for one, path in zip(result["pictures"], (square, wide), strict=True):
            image = seen(loaded, path.name, read_image(path))
            mask = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
            infill = MeanColour.of(classifier)
            for side, shown in (
                ("whole", image),
                ("kept", keep(image, mask, infill)),
                ("removed", remove(image, mask, infill)),
            ):
                expected = classifier.logits(shown).softmax(1)[0, target].item()
                assert one["probability"][side] == pytest.approx(expected, abs=1e-5)
            assert one["class"] == "crane" and one["class_agnostic"] is False
        for one in result["pictures"]:
            stem = Path(one["file"]).stem
            assert {Path(path) for path in one["written"]} == {*out.glob(f"{stem}.*")}
    assert len(result["pictures"][0]["written"]) == 2 and len(result["pictures"][1]["written"]) == 4
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out.split() == [str(out / "a.png"), str(out / "b.png")]


# What is said above the figure


def test_the_title_names_the_layers_that_the_map_was_made_from(small_net, tmp_path, monkeypatch) -> None:
    titles: list[str] = []
    module = sys.modules[explain_files.__module__]
    drawn = module.picture
    monkeypatch.setattr(module, "picture", lambda *a, title: (titles.append(title), drawn(*a, title=title))[1])
    layers = ["stem", "middle", "deep"]
    classifier = Classifier(small_net, mean=[0.5] * 3, std=[0.25] * 3, layers=layers, image_size=32)
    loaded = Loaded(classifier, "own", Sight(32, "squash"))
    masker = Masker.for_classifier(classifier, layers=(0, -1), generator=torch.Generator().manual_seed(0))
    file = paint(tmp_path / "a.png")
    methods = (EXPLAINERS["gradcam"](layer="middle"), Learned(masker), EXPLAINERS["rise"](masks=4))
    for method in methods:
        explain_files([file], "method", method, loaded, out=tmp_path / "out")
    assert titles[0].endswith(", read at layer middle")
    assert titles[1].endswith("the same for every class, read at layers stem, deep")
    assert "read at" not in titles[2]


def test_a_reader_of_its_own_names_its_layers(small_net) -> None:
    own, reader = (
        Classifier(small_net, mean=[0.5] * 3, std=[0.25] * 3, layers=layers, image_size=32)
        for layers in (["stem"], ["middle", "deep"])
    )
    masker = Masker.for_classifier(reader, generator=torch.Generator().manual_seed(0))
    assert Learned(masker).read_by(reader)(own, torch.rand(3, 3, 32, 32)).layers == ("middle", "deep")
