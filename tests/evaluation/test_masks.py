"""The masks of a whole data set: every picture once, in both forms, also after a kill and by several processes."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from PIL import Image
from torch import Tensor

from salmask import Classifier, Masker
from salmask.cli.main import main
from salmask.data.tensors import TensorPictures
from salmask.evaluation.masks import INDEX, Throughput, explain_data
from salmask.explain.base import Explainer, Explanation, Passes
from salmask.explain.learned import Learned
from salmask.rows.read import read_lines

HOW = {"class": None, "normalize": None}


@pytest.fixture
def classifier(small_net: torch.nn.Module) -> Classifier:
    return Classifier(small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=None, image_size=16)


@pytest.fixture
def learned(classifier: Classifier) -> Learned:
    return Learned(Masker.for_classifier(classifier, generator=torch.Generator().manual_seed(0)).eval())


@pytest.fixture
def pictures() -> TensorPictures:
    return TensorPictures(torch.rand(11, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


class Counted(Explainer):
    """Another explainer, with what it was asked for; fails at a call, or where more pictures come than fit."""

    def __init__(self, inner: Learned, *, dies: int = -1, fits: int = 99) -> None:
        self.inner, self.dies, self.fits, self.calls = inner, dies, fits, list[int]()

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def __call__(self, classifier: Classifier, images: Tensor, targets: Tensor | None = None) -> Explanation:
        if len(self.calls) == self.dies:
            raise KeyboardInterrupt
        self.calls.append(len(images))
        return self.inner(classifier, images, targets)


def run(explainer: Explainer, classifier: Classifier, pictures: TensorPictures, out: Path, **options) -> Throughput:
    fabric = Fabric(accelerator="cpu", devices=1)
    options = {"how": HOW, "about": {}, "batch_size": 3} | options
    return explain_data(explainer, classifier, pictures, out=out, fabric=fabric, **options)


@pytest.mark.parametrize("form", ["png", "array"])
def test_every_mask_is_that_of_the_explainer_also_after_a_kill(form, learned, classifier, pictures, tmp_path) -> None:
    expected = learned(classifier, pictures.images.float() / 255)
    with pytest.raises(KeyboardInterrupt):
        run(Counted(learned, dies=2), classifier, pictures, tmp_path, form=form)
    with (tmp_path / "index-0.jsonl").open("a") as file:
        file.write('{"row": 6, "im')  # cut by the kill
    again = Counted(learned)
    done = run(again, classifier, pictures, tmp_path, form=form)
    assert (done.pictures, done.before) == (5, 6) and again.calls == [3, 2]
    assert str(done).startswith("explained 5 pictures (6 were there)") and "waiting for pictures" in str(done)
    lines = [line for _, _, line in read_lines(tmp_path / INDEX)]
    assert [line["row"] for line in lines] == list(range(11)) and [line["image"] for line in lines] == pictures.ids
    assert [line["class"] for line in lines] == expected.targets.tolist()
    if form == "array":
        masks = np.load(tmp_path / "masks.npy", mmap_mode="r")
    else:
        masks = np.stack([np.asarray(Image.open(tmp_path / line["file"])) for line in lines])
    assert masks.dtype == np.uint8 and np.array_equal(masks, (expected.masks[:, 0] * 255).round().byte().numpy())
    assert sorted(path.name for path in tmp_path.glob("index*")) == [INDEX]
    whole = Counted(learned)
    assert run(whole, classifier, pictures, tmp_path, form=form).pictures == 0 and whole.calls == []


@pytest.mark.parametrize("form", ["png", "array"])
def test_a_kill_as_the_index_is_joined_counts_nothing_twice(form, learned, classifier, pictures, tmp_path) -> None:
    run(learned, classifier, pictures, tmp_path, form=form)
    text = (tmp_path / INDEX).read_text()
    (tmp_path / "index-0.jsonl").write_text("".join(text.splitlines(keepends=True)[3:8]))  # joined, not yet deleted
    assert run(learned, classifier, pictures, tmp_path, form=form).pictures == 0
    assert (tmp_path / INDEX).read_text() == text
    assert sorted(path.name for path in tmp_path.glob("index*")) == [INDEX]


def test_masks_that_were_lost_are_made_again_or_missed(learned, classifier, pictures, tmp_path) -> None:
    run(learned, classifier, pictures, tmp_path / "png")
    text, lost = (tmp_path / "png" / INDEX).read_text(), sorted((tmp_path / "png").rglob("*.png"))[4]
    content = lost.read_bytes()
    lost.unlink()
    assert run(learned, classifier, pictures, tmp_path / "png").pictures == 1
    assert lost.read_bytes() == content and (tmp_path / "png" / INDEX).read_text() == text
    run(learned, classifier, pictures, tmp_path / "array", form="array")
    array = tmp_path / "array" / "masks.npy"
    whole = array.read_bytes()
    for broken in (whole[:-5], b"hello"):
        array.write_bytes(broken)
        with pytest.raises(ValueError, match=r"masks\.npy: expected the 2816 bytes of masks .* got \d"):
            run(learned, classifier, pictures, tmp_path / "array", form="array")
    array.unlink()
    with pytest.raises(ValueError, match="got no file"):
        run(learned, classifier, pictures, tmp_path / "array", form="array")
    (tmp_path / "array" / INDEX).unlink()
    run(learned, classifier, pictures, tmp_path / "array", form="array")
    assert array.read_bytes() == whole


@pytest.mark.parametrize("line", ['{"row": 11', '{"row": -1', '{"row": true', '{"row": "1"', '{"place": 1'])
def test_an_index_of_something_else_is_refused_by_line(line, learned, classifier, pictures, tmp_path) -> None:
    run(learned, classifier, pictures, tmp_path)
    with (tmp_path / INDEX).open("a") as file:
        file.write(line + ', "image": "a", "class": 1, "mean": 0.5}\n')
    with pytest.raises(ValueError, match=r"index\.jsonl, line 12"):
        run(learned, classifier, pictures, tmp_path)


def test_another_run_is_refused(learned, classifier, pictures, tmp_path) -> None:
    run(learned, classifier, pictures, tmp_path)
    with pytest.raises(ValueError, match="form"):
        run(learned, classifier, pictures, tmp_path, form="array")
    with pytest.raises(ValueError, match="class"):
        run(learned, classifier, pictures, tmp_path, how={"class": 1, "normalize": None})


def test_a_batch_that_does_not_fit_is_halved_once(learned, classifier, pictures, tmp_path, monkeypatch) -> None:
    asked: list[int] = []
    explain = Learned._explain

    def narrow(self: Learned, classifier: Classifier, images: Tensor, targets: Tensor | None) -> Explanation:
        asked.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return explain(self, classifier, images, targets)

    monkeypatch.setattr(Learned, "_explain", narrow)
    with pytest.warns(UserWarning, match="out of memory: going on with 2 images") as said:
        run(learned, classifier, pictures, tmp_path, batch_size=5)
    assert len(said) == 1 and asked == [5, 2, 2, 1, 2, 2, 1, 1]


def test_maps_that_are_no_masks_are_scaled_as_asked(classifier, pictures, tmp_path) -> None:
    class Signed(Explainer):
        def __call__(self, classifier: Classifier, images: Tensor, targets: Tensor | None = None) -> Explanation:
            logits = classifier.logits(images)
            return Explanation(images[:, :1] * 4 - 2, logits.argmax(1), logits, Passes(1), range=(-2.0, 2.0))

    run(Signed(), classifier, pictures, tmp_path / "a", form="array")
    assert np.load(tmp_path / "a" / "masks.npy").max() == 255
    with pytest.raises(ValueError, match="leaves"):
        run(Signed(), classifier, pictures, tmp_path / "b", how={"class": None, "normalize": "none"})


def test_the_command_explains_shards(tmp_path: Path, capsys) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for number in range(3):
                buffer = io.BytesIO()
                pixels = np.random.default_rng(3 * shard + number).integers(0, 255, (20, 16, 3), np.uint8)
                Image.fromarray(pixels).save(buffer, "PNG")
                entry = tarfile.TarInfo(f"{shard}{number}.png")
                entry.size = len(buffer.getvalue())
                archive.addfile(entry, io.BytesIO(buffer.getvalue()))
    (tmp_path / "net.py").write_text(
        f"import sys, torch\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\nfrom conftest import SmallNet\n"
        "def build():\n    torch.manual_seed(0)\n    return SmallNet()\n"
    )
    command = ["explain", "--data", f"wds:{tmp_path}/*.tar", "--classifier", f"{tmp_path / 'net.py'}:build"]
    command += ["--mean", "0", "0", "0", "--std", "1", "1", "1", "--size", "16", "--explainer", "gradcam"]
    command += ["--out", str(tmp_path / "masks"), "--target", "2"]
    assert main(command) == 0
    assert "explained 6 pictures in " in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "masks" / INDEX).read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"{s}/{s}{n}.png" for s in range(2) for n in range(3)]
    assert {line["class"] for line in lines} == {2}
    assert main([*command[:2], f"wds:{tmp_path}/x*.tar", *command[3:]]) == 1
    assert "no shard matches" in capsys.readouterr().err
