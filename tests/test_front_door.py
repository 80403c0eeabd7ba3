"""`import salmask`: what can be had from it, at what cost, and the three verbs."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import salmask
from salmask.data.tensors import TensorPictures
from salmask.explain import base
from salmask.explain.base import Passes


def _alone(code: str) -> str:
    """Run Python in a process of its own and return what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def classifier() -> salmask.Classifier:
    torch.manual_seed(0)
    return salmask.Classifier.from_timm("test_resnet", pretrained=False, num_classes=5, image_size=64)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_import_is_light_and_neither_torch_nor_timm_is_loaded() -> None:
    heavy = _alone(
        "import time; start = time.perf_counter(); import salmask, sys; seconds = time.perf_counter() - start\n"
        "print([name for name in ('torch', 'timm', 'numpy', 'tyro') if name in sys.modules], seconds < 1)"
    )
    assert heavy.split("]")[0] == "[" and heavy.strip().endswith("True")


def test_the_help_of_the_command_and_of_every_command_loads_no_torch() -> None:
    assert "False" in _alone(
        "import sys, contextlib, io\nfrom salmask.cli.main import COMMANDS, main\n"
        "for name in (None, *COMMANDS):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([*([name] if name else []), '--help'])\n"
        "print('torch' in sys.modules)"
    )


def test_every_name_is_there_and_another_one_is_refused() -> None:
    for name in salmask.__all__:
        assert getattr(salmask, name) is not None
    assert set(salmask.__all__) <= set(dir(salmask))
    contract = "Classifier Masker keep remove Outcome max_class_kept min_entropy_kept min_class_removed area area_to "
    contract += "max_entropy_removed area_if_kept_right area_if_removed_wrong total_variation EXPLAINERS METRICS "
    contract += "train explain evaluate play Objective RECIPES Learned MeanColour"
    assert set(contract.split()) <= set(salmask.__all__)
    assert salmask.EXPLAINERS is salmask.explain.EXPLAINERS and salmask.__version__
    with pytest.raises(AttributeError, match="no attribute 'explains'"):
        salmask.explains  # noqa: B018


FIRST = ["", "import salmask.explain.cam", "from salmask.explain import EXPLAINERS"]
ANEW = """
import sys
for first in {first}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "salmask"]:
        del sys.modules[name]
    exec(first)
    import salmask
    print(callable(salmask.explain), "gradcam" in salmask.explain.EXPLAINERS)
"""


def test_explain_is_a_folder_and_a_verb_whatever_was_imported_first() -> None:
    assert _alone(ANEW.format(first=FIRST)).split() == ["True", "True"] * len(FIRST)


def test_training_needs_no_labels_and_is_a_function_of_the_seed(classifier, images) -> None:
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    options = {"recipe": "fix", "steps": 2, "batch_size": 4}
    masker = salmask.train(classifier, images, **options)
    labelled = TensorPictures(images, [0, 1, 2, 3, 4, 0])
    assert _equal(masker, salmask.train(classifier, labelled, **options))  # which has labels, and they are not read
    assert not _equal(masker, salmask.train(classifier, images, targets=[0, 1, 2, 3, 4, 0], **options))
    assert not _equal(masker, salmask.train(classifier, images, seed=1, **options))
    assert all(torch.equal(value, before[name]) for name, value in classifier.network.state_dict().items())


def test_a_trained_masker_is_saved_where_it_is_asked_for_and_explains(classifier, images, tmp_path) -> None:
    masker = salmask.train(classifier, images, recipe="fix", steps=2, head="concrete", out=tmp_path / "run")
    assert _equal(masker, salmask.Masker.from_pretrained(tmp_path / "run"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    explanation = salmask.explain(classifier, images[:2], explainer=masker, targets=[3, 1])
    assert explanation.masks.shape == (2, 1, 64, 64) and explanation.targets.tolist() == [3, 1]
    assert ((explanation.masks == 0) | (explanation.masks == 1)).all()
    resumed = salmask.train(
        classifier, images, recipe="fix", steps=2, head="concrete", out=tmp_path / "run", resume=True
    )
    assert _equal(masker, resumed)


def test_pictures_are_a_folder_a_data_set_or_a_tensor(classifier, images, tmp_path) -> None:
    from salmask.data.synthetic import write_folder

    options = {"recipe": "fix", "steps": 1, "batch_size": 4}
    tensor = salmask.train(classifier, images, **options)
    assert _equal(tensor, salmask.train(classifier, TensorPictures(images), **options))
    write_folder(tmp_path, train=12, val=5, seed=0, size=64)
    folder = salmask.train(classifier, tmp_path, **options)
    assert _equal(folder, salmask.train(classifier, salmask.open_data(str(tmp_path), "train"), **options))
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, file in enumerate(sorted((tmp_path / "train").rglob("*.png"))):
        file.rename(flat / f"{index:03d}.png")
    assert isinstance(salmask.train(classifier, flat, **options), salmask.Masker)
    scores = salmask.evaluate(classifier, ["full"], flat, metrics=("mask_mean",))
    assert scores["full"]["acc_whole"]["mean"] == 1  # decisions are explained where there are no labels


def test_images_are_explained_by_name_by_masker_and_by_any_explainer(classifier, images) -> None:
    by_name = salmask.explain(classifier, images, explainer="occlusion:window=32,stride=16")
    by_object = salmask.explain(classifier, images, explainer=salmask.EXPLAINERS["occlusion"](window=32, stride=16))
    assert torch.equal(by_name.masks, by_object.masks)
    assert torch.equal(
        salmask.explain(classifier, images).masks, salmask.explain(classifier, images, explainer="gradcam").masks
    )
    assert torch.equal(by_name.targets, classifier.logits(images).argmax(1))

    def bare(classifier, images, targets=None):
        return salmask.EXPLAINERS["full"]()(classifier, images, targets)

    assert salmask.explain(classifier, images, explainer=bare).masks.eq(1).all()
    assert (
        salmask.evaluate(classifier, {"bare": bare}, images, metrics=("mask_mean",))["bare"]["mask_mean"]["mean"] == 1
    )


def test_explainers_are_measured_side_by_side(classifier, images, tmp_path) -> None:
    full, empty = salmask.EXPLAINERS["full"](), "empty"
    scores = salmask.evaluate(classifier, {"all": full, "none": empty}, images, metrics=("mask_mean",), out=tmp_path)
    assert scores["all"]["mask_mean"]["mean"] == 1 and scores["none"]["mask_mean"]["mean"] == 0
    assert [line.split() for line in str(scores).splitlines()] == [
        ["explainer", "mask_mean"],
        ["all", "1.000"],
        ["none", "0.000"],
    ]
    mine = [row for row in scores.rows if row["metric"] == "mask_mean"]
    assert len(mine) == 12 and (tmp_path / "index.html").is_file()
    assert scores["all"]["acc_whole"]["mean"] == 1  # the decisions are explained where no class is given
    other = (classifier.logits(images).argmax(1) + 1) % 5
    told = salmask.evaluate(classifier, ["full"], images, metrics=("mask_mean",), targets=other)
    assert told["full"]["acc_whole"]["mean"] == 0 and list(told) == ["full"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pictures": torch.full((2, 3, 64, 64), 255.0)}, r"in \[0, 1\], got values from 255 to 255: divide"),
        ({"pictures": torch.zeros(3, 64, 64)}, r"float images \(N, C, H, W\), got \(3, 64, 64\)"),
        ({"pictures": torch.zeros(2, 3, 64, 64, dtype=torch.uint8)}, "of torch.uint8"),
        ({"pictures": torch.zeros(0, 3, 64, 64)}, "at least one image"),
        ({"targets": [0, 1]}, "one target an image: 6, got 2"),
        ({"targets": [0, 1, 2, 3, 4, 5]}, "targets from 0 to 4, the classes of the classifier, got 0 to 5"),
        ({"steps": 0}, "steps of train: expected a whole number, 1 to "),
        ({"recipe": "best"}, "no recipe 'best'"),
        ({"hat": 1}, "no setting 'hat'"),
        ({"recipe": "ca"}, "recipe ca retrains a copy of the classifier.*use `salmask train`"),
        ({"top": 0.5}, "top is no part of a training"),
        ({"epochs": float("inf")}, "epochs must be positive and finite"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(change, words, classifier, images) -> None:
    with pytest.raises(ValueError, match=words):
        salmask.train(classifier, change.pop("pictures", images), **{"recipe": "fix", "steps": 1, **change})


def test_labels_of_other_classes_than_the_network_s_are_refused(classifier, images, tmp_path) -> None:
    for name in "acde":  # of five; b has no picture in val
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (250, 0, 0)).save(tmp_path / "val" / name / "0.png")
    with pytest.raises(ValueError, match="the data has 4 classes, the classifier tells 5 apart"):
        salmask.evaluate(classifier, ["center"], str(tmp_path), metrics=["average_drop"])
    with pytest.raises(ValueError, match="the data has 4 classes"):
        salmask.train(classifier, salmask.open_data(tmp_path, "val"), steps=1, target="label")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    scores = salmask.evaluate(classifier, ["center"], str(tmp_path), metrics=["average_drop"])
    given = salmask.evaluate(classifier, ["center"], str(tmp_path), metrics=["average_drop"], targets=[0, 2, 3, 4])
    first, second = ([r["value"] for r in one.rows if r["metric"] == "average_drop"] for one in (scores, given))
    assert first == second and len(set(first)) > 1


def test_a_masker_beside_other_weights_than_its_own_is_told_of(images) -> None:
    own, other = (
        salmask.Classifier.from_timm("test_resnet", pretrained=False, num_classes=3, image_size=64) for _ in range(2)
    )
    masker = salmask.train(own, images, steps=1, batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            salmask.explain(own, images, explainer=masker)
    with pytest.warns(UserWarning, match="beside a network of other weights"):
        salmask.explain(other, images, explainer=masker)
    with torch.no_grad():
        next(own.network.parameters()).mul_(2)
    with pytest.warns(UserWarning, match="beside a network of other weights"):
        salmask.evaluate(own, {"masker": masker}, images, metrics=["mask_mean"])


def test_a_network_with_another_head_than_it_was_built_with_is_refused(images) -> None:
    classifier = salmask.Classifier.from_timm("test_resnet", pretrained=False, num_classes=3, image_size=64)
    classifier.network.reset_classifier(4)  # type: ignore[operator]
    with pytest.raises(ValueError, match="tells 4 classes apart, and did 3 when its Classifier was built"):
        salmask.explain(classifier, images)


@pytest.mark.parametrize(
    ("masks", "got"),
    [
        (lambda x: x[:, :1, ::2], r"\(6, 1, 32, 64\)"),
        (lambda x: x[:, 0], r"\(6, 64, 64\)"),
        (lambda x: x[:1, :1], r"\(1, 1, 64, 64\)"),
        (lambda x: x[:, :1].numpy(), "ndarray"),
    ],
)
def test_maps_of_a_function_that_are_none_are_refused(classifier, images, masks, got) -> None:
    def function(network, pictures, targets=None):
        logits = network.logits(pictures).detach()
        return SimpleNamespace(masks=masks(pictures), targets=logits.argmax(1), logits=logits, passes=Passes(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "Explanation", SimpleNamespace)  # whose own check of types users do not have
        with pytest.raises(ValueError, match=rf"from the function function, got {got}"):
            salmask.explain(classifier, images, explainer=function)


def test_a_function_that_returns_no_explanation_is_refused(classifier, images) -> None:
    with pytest.raises(ValueError, match="expected an Explanation from the function <lambda>, got Tensor"):
        salmask.explain(classifier, images, explainer=lambda network, pictures, targets: pictures[:, :1])
