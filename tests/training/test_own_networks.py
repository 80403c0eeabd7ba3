"""Networks of torchvision, Hugging Face and one's own functions by a SPEC; a run of any of them loads again."""

import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Generator

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.cli.main import main
from salmask.data.sight import Sight
from salmask.masker import Masker
from salmask.training.run import Loaded, load_classifier, load_run, save_run

OWN = """
import torch
from conftest import SmallNet

def build():
    torch.manual_seed(7)
    return SmallNet(), {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "image_size": 48, "classes": "abcd"}

def bare():
    return SmallNet()

made = SmallNet()

def labels():
    return SmallNet(), {"mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 48, "outputs": "multilabel"}

def odd():
    return SmallNet(), {"size": 48}

def number():
    return SmallNet(), 5

def words():
    return SmallNet(), {"mean": ("a", "b", "c"), "std": (1, 1, 1)}

def large():
    return SmallNet(), {"mean": (0, 0, 0), "std": (1, 1, 1), "image_size": 10**9}

def few():
    return SmallNet(), {"mean": (0, 0, 0), "std": (1, 1, 1), "image_size": 48, "classes": ("a",)}
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_net.py").write_text(OWN)
    return tmp_path / "own_net.py"


def saved(folder, loaded: Loaded) -> None:
    folder.mkdir()
    masker = Masker.for_classifier(loaded.classifier, generator=Generator().manual_seed(0))
    save_run(folder, masker, loaded, {})


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 48, 48, generator=Generator().manual_seed(0))


def test_a_run_of_ones_own_function_loads_again_from_any_folder(own, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_classifier("own_net.py:build")
    assert loaded.view.image_size == 48 and loaded.classes == ("a", "b", "c", "d")
    with torch.no_grad():
        loaded.classifier.network.head.bias += 1  # weights that the function alone does not give
    saved(tmp_path / "run", loaded)
    monkeypatch.chdir("/")
    run = load_run(tmp_path / "run")
    assert run.loaded.classifier.fingerprint() == loaded.classifier.fingerprint()
    torch.testing.assert_close(run.loaded.classifier.logits(pictures()), loaded.classifier.logits(pictures()))
    assert load_classifier(str(tmp_path / "run")).classes == loaded.classes


def test_a_run_loads_from_folders_with_an_at_sign_in_their_names(own, tmp_path) -> None:
    folder = tmp_path / "me@lab"
    folder.mkdir()
    own.rename(folder / "own_net.py")
    saved(folder / "run", load_classifier(f"{folder / 'own_net.py'}:build"))
    assert load_run(folder / "run").loaded.classifier.num_classes == 4


def test_a_function_of_a_package_is_found(own, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_classifier("own_net:build").classifier.num_classes == 4


def test_a_network_that_stands_in_a_module_is_taken_as_it_is(own) -> None:
    loaded = load_classifier(f"{own}:made", mean=(0, 0, 0), std=(1, 1, 1), image_size=48)
    assert loaded.classifier.num_classes == 4


def test_what_a_network_returns_is_kept_with_its_run(own, tmp_path) -> None:
    saved(tmp_path / "run", load_classifier(f"{own}:labels"))
    assert load_run(tmp_path / "run").loaded.classifier.multilabel


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bare", "does not say how its pictures are normalised: give mean and std"),
        ("absent", "has no function 'absent': it has .*build"),
        ("number", "returns int beside its network: expected a dictionary"),
        ("words", "a mean or a std that is no row of numbers"),
        ("large", "an image size is 8 to 4096 pixels"),
        ("few", "names 1 classes .*its network has 4"),
        ("odd", "returns 'size' beside its network: expected any of mean, std, image_size"),
    ],
)
def test_functions_that_say_too_little_are_refused(own, name, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_classifier(f"{own}:{name}")
    if name == "bare":
        loaded = load_classifier(f"{own}:bare", mean=(0, 0, 0), std=(1, 1, 1), image_size=48)
        assert loaded.classifier.mean.flatten().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:build", r"nowhere\.py cannot be imported .*no file"),
        ("no_such_module:build", "no_such_module cannot be imported"),
        ("torchvision:resnet81", "torchvision has no classifier 'resnet81'; near: .*resnet"),
        ("hf:/no/such/folder", "no image classifier of Hugging Face can be had"),
        ("plain", "'plain' is no classifier: expected timm:NAME, torchvision:NAME"),
    ],
)
def test_specs_that_lead_nowhere_are_refused(spec, message) -> None:
    if spec.startswith("hf:"):
        pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=message):
        load_classifier(spec)


def test_weights_of_a_torchvision_network_are_read_with_their_number_of_classes(tmp_path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = load_classifier(f"torchvision:resnet18@{tmp_path / 'w.safetensors'}", image_size=64)
    assert loaded.classifier.num_classes == 3 and loaded.network == "torchvision:resnet18"
    assert loaded.view.crop == pytest.approx(224 / 256)
    saved(tmp_path / "run", loaded)
    assert load_run(tmp_path / "run").loaded.classifier.fingerprint() == loaded.classifier.fingerprint()


def test_a_hugging_face_folder_is_read_with_its_pictures(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "embedding_size": 8, "layer_type": "basic"}
    network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=3))
    network.save_pretrained(tmp_path / "hf")
    facts = '{"do_normalize": true, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "size": 64}'
    (tmp_path / "hf" / "preprocessor_config.json").write_text(facts)
    loaded = load_classifier(f"hf:{tmp_path / 'hf'}")
    assert loaded.view == Sight(64, "squash")
    torch.testing.assert_close(loaded.classifier.mean.flatten(), torch.tensor([0.5, 0.4, 0.3]))
    saved(tmp_path / "run", loaded)
    assert load_run(tmp_path / "run").loaded.classifier.fingerprint() == loaded.classifier.fingerprint()


def test_a_run_that_was_made_in_python_takes_its_network_from_there(tmp_path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(SmallNet(), mean=[0.5] * 3, std=[0.2] * 3, layers=None, image_size=48)
    saved(tmp_path / "run", Loaded(classifier, "my_network", Sight(48)))
    with pytest.raises(ValueError, match="my_network"):
        load_run(tmp_path / "run")
    run = load_run(tmp_path / "run", network=SmallNet())
    torch.testing.assert_close(run.loaded.classifier.logits(pictures()), classifier.logits(pictures()))


def test_the_command_says_what_is_read(own, capsys) -> None:
    assert main(["layers", f"{own}:build"]) == 0
    said = capsys.readouterr().out
    for line in ("stem\t8x24x24\tstride 2", "middle\t12x12x12\tstride 4", "deep\t16x6x6\tstride 8", "4 classes"):
        assert line in said
    assert main(["layers", f"{own}:build", "--layers", "middle"]) == 0
    assert "stem" not in capsys.readouterr().out
