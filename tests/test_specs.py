"""From what a user types to objects: classifiers, runs, explainers, recipes, metrics; and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Generator
from torchvision.transforms import InterpolationMode

from salmask.classifier import Classifier, scores
from salmask.cli.main import main
from salmask.data import ShortSide, Squash
from salmask.explain import EXPLAINERS
from salmask.explain.gradient import SUM_OF_MAGNITUDES, TOTAL
from salmask.explain.knobs import knob_table, knobs_of
from salmask.explain.learned import Learned
from salmask.explain.optimise.methods import refined
from salmask.explain.perturb import Rise
from salmask.masker import Masker
from salmask.masking import Bank, Blur, MeanColour
from salmask.metrics import METRICS
from salmask.specs import load_explainer, load_metrics, load_recipe, named, parse
from salmask.training.recipes import RECIPES
from salmask.training.run import Loaded, Sight, load_classifier, load_run, save_classifier, save_run

NETWORK = "test_resnet"
COLOUR = (0.5, 0.5, 0.5)  # the mean of this network


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.manual_seed(0)
    classifier = Classifier.from_timm(NETWORK, pretrained=False, num_classes=3, image_size=64)
    return Loaded(classifier, NETWORK, Sight(64, "squash", "bicubic"), ("ant", "bee", "cat"))


@pytest.fixture
def masker(loaded) -> Masker:
    return Masker.for_classifier(loaded.classifier, width=4, generator=Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path, loaded, masker) -> Path:
    folder = tmp_path / "my run"
    folder.mkdir()
    save_run(folder, masker, loaded, {"note": "told"})
    return folder


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=Generator().manual_seed(1))


# Classifiers


def test_a_saved_classifier_comes_back_with_all_that_goes_with_it(tmp_path, loaded) -> None:
    save_classifier(tmp_path / "weights.safetensors", loaded)
    back = load_classifier(f"timm:{NETWORK}@{tmp_path / 'weights.safetensors'}")
    assert (back.network, back.view, back.classes) == (loaded.network, loaded.view, loaded.classes)
    assert back.classifier.fingerprint() == loaded.classifier.fingerprint()
    with loaded.classifier.frozen():
        torch.testing.assert_close(back.classifier.logits(pictures()), loaded.classifier.logits(pictures()))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_what_is_given_goes_before_what_the_file_says(tmp_path, loaded) -> None:
    save_classifier(tmp_path / "w.safetensors", loaded)
    spec = f"timm:{NETWORK}@{tmp_path / 'w.safetensors'}"
    other = load_classifier(spec, image_size=96, fit="crop", interpolation="bilinear", layers=["layer2", "layer3"])
    assert other.view == Sight(96, "crop", "bilinear")
    assert other.classifier.layers == ("layer2", "layer3")
    assert load_classifier(spec, image_size=96).view == replace(loaded.view, image_size=96)


def test_plain_weights_take_the_network_s_own_view(tmp_path) -> None:
    save_file(timm.create_model(NETWORK, num_classes=5).state_dict(), tmp_path / "plain.safetensors")
    back = load_classifier(f"timm:{NETWORK}@{tmp_path / 'plain.safetensors'}")
    config = timm.data.resolve_model_data_config(back.classifier.network)
    assert back.view == Sight(config["input_size"][-1], "crop", config["interpolation"], config["crop_pct"])
    assert back.classes is None and back.classifier.num_classes == 5


def test_a_run_is_a_classifier_too(run, loaded) -> None:
    back = load_classifier(str(run), image_size=96)
    assert back.classifier.fingerprint() == loaded.classifier.fingerprint()
    assert back.view == replace(loaded.view, image_size=96)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "'resnet18' is no classifier: expected timm:NAME, .* or the folder of a run"),
        ("/absent", "'/absent' is no classifier"),
        ("timm:resnet81@absent.pth", "timm has no network 'resnet81'"),
    ],
)
def test_specs_that_name_no_classifier_are_refused(spec, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_classifier(spec)


def test_weights_that_are_missing_or_of_another_network_are_refused(tmp_path, loaded) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent\.safetensors"):
        load_classifier(f"timm:{NETWORK}@{tmp_path / 'absent.safetensors'}")
    save_classifier(tmp_path / "w.safetensors", loaded)
    with pytest.raises(ValueError, match="holds the weights of test_resnet, asked for is test_efficientnet"):
        load_classifier(f"timm:test_efficientnet@{tmp_path / 'w.safetensors'}")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:99])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read as weights"):
        load_classifier(f"timm:{NETWORK}@{tmp_path / 'cut.safetensors'}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fit": "stretch"}, "fit is 'crop' .* or 'pad' .*, got 'stretch'"),
        ({"interpolation": "cubic"}, "interpolation is 'bilinear' or 'bicubic', got 'cubic'"),
        ({"image_size": 4}, "an image size is 8 to 4096 pixels, got 4"),
    ],
)
def test_views_that_make_no_sense_are_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        Sight(**{"image_size": 64, **wrong})


def test_a_view_makes_the_transforms_that_it_names() -> None:
    assert Sight(64, "squash", "bicubic").transform() == Squash(64, interpolation=InterpolationMode.BICUBIC)
    assert Sight(64).transform() == ShortSide(64, interpolation=InterpolationMode.BILINEAR)
    assert Sight(64, "squash", "bicubic").augmentation().interpolation == InterpolationMode.BICUBIC


# Runs


def test_a_run_comes_back_whole(run, masker, loaded) -> None:
    trained = load_run(run)
    back, own = trained.masker, trained.loaded
    assert trained.reader is None
    assert back.settings() == masker.settings()
    assert own.classifier.layers == loaded.classifier.layers
    assert (own.view, own.classes, own.network) == (loaded.view, loaded.classes, loaded.network)
    assert json.loads((run / "run.json").read_text())["note"] == "told"
    maps = loaded.classifier.eval().features(pictures()).maps
    assert torch.equal(back(maps, (64, 64)), masker.eval()(maps, (64, 64)))
    names = {"classifier.safetensors", "config.json", "model.safetensors", "run.json"}
    assert {path.name for path in run.iterdir()} == names


def test_folders_without_a_run_are_told_from_unfinished_ones(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run in .*: expected run\.json there"):
        load_run(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="it is unfinished, go on with `salmask train --resume`"):
        load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="it is unfinished"):
        load_explainer(str(tmp_path), loaded=None)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "{}", '{"format": "other"}', '{"format": "salmask run 1", "network": "resnet18"}']
)
def test_a_broken_run_json_is_one_clear_error(run, content) -> None:
    (run / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json.*not describe a salmask run"):
        load_run(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"taps": [1, 2]}, r"taps\[0\]: expected a text, got 1"),
        ({"taps": "layer1"}, "taps: expected a list"),
        ({"classes": "ant"}, "classes: expected a list"),
        ({"network": None}, "network: expected a text"),
        ({"reader": "../../other.safetensors"}, "reader: expected 'reader.safetensors', or null"),
        ({"view": {"image_size": 64.5}}, "view.image_size: expected a whole number, 8 to 4096, got 64.5"),
        ({"view": {"image_size": 10**9}}, "view.image_size: expected a whole number, 8 to 4096"),
        ({"view": {"image_size": 64, "fit": "stretch"}}, "view.fit: expected 'crop' or 'squash' or 'pad'"),
        ({"view": {"image_size": 64, "zoom": 2}}, "view: expected image_size, .* got 'zoom'"),
        ({"view": 64}, "view: expected a table"),
    ],
)
def test_a_run_json_that_was_changed_is_refused_by_its_field(run, change, words) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(ValueError, match=rf"run\.json.*{words}"):
        load_run(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": 3}, "classes: expected a list"),
        ({"image_size": "64"}, "image_size: expected a whole number"),
        ({"mean": [0.5, "red", 0.5]}, r"mean\[1\]: expected a number"),
        ({"std": [0.5, 0.0, 0.5]}, r"std\[1\]: expected a number, 1e-09 to"),
        ({"options": {"outputs": "louder"}}, "options.outputs: expected 'auto' or"),
        ({"options": {"grid": [10**9, 1]}}, r"options.grid\[0\]: expected a whole number"),
    ],
)
def test_metadata_of_weights_that_were_changed_are_refused_by_their_field(tmp_path, loaded, change, words) -> None:
    facts = {"network": NETWORK, "image_size": 64, **change}
    state = loaded.classifier.network.state_dict()
    save_file(state, tmp_path / "w.safetensors", metadata={"salmask": json.dumps(facts)})
    with pytest.raises(ValueError, match=words):
        load_classifier(f"timm:{NETWORK}@{tmp_path / 'w.safetensors'}")


def test_a_normalisation_of_one_s_own_stays_with_the_run(tmp_path, masker, loaded) -> None:
    save_classifier(tmp_path / "w.safetensors", loaded)
    other = load_classifier(f"timm:{NETWORK}@{tmp_path / 'w.safetensors'}", mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", masker, other, {})
    back = load_run(tmp_path / "run").loaded.classifier
    torch.testing.assert_close(back.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(back.std.flatten(), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="expected a std of 3 numbers above 0"):
        other.seen(std=(1, 0, 1))
    assert other.seen(mean=(0.1, 0.2, 0.3)) == other  # a run's own is only checked: its reader has it, too
    with pytest.raises(ValueError, match=r"normalised with a mean of 0\.1, 0\.2, 0\.3, asked for is 0, 0, 0"):
        load_classifier(str(tmp_path / "run"), mean=(0, 0, 0))
    with pytest.raises(ValueError, match="reads 3 channels, asked for are 4"):
        other.seen(channels=4)


@pytest.mark.parametrize("missing", ["classifier.safetensors", "config.json", "model.safetensors"])
def test_a_run_that_lacks_a_file_names_it(run, missing) -> None:
    (run / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing.replace(".", r"\.")):
        load_run(run)


# Explainers, recipes, metrics


def test_a_run_is_an_explainer_on_its_own_classifier(run, loaded, monkeypatch) -> None:
    name, method, own = load_explainer(str(run), loaded=None)
    assert name == "my run" and isinstance(method, Learned)
    assert own.classifier.fingerprint() == loaded.classifier.fingerprint()
    monkeypatch.chdir(run)
    assert load_explainer(".", loaded=None)[0] == "my run"


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("auto=runs/x", ("auto", "runs/x")),
        ("my best one = runs/x", ("my best one", " runs/x")),
        ("quick rise=rise:masks=500,seed=3", ("quick rise", "rise:masks=500,seed=3")),
        ("rise:masks=500", (None, "rise:masks=500")),
        ("runs/x:reads=timm:resnet18@a=b.safetensors", (None, "runs/x:reads=timm:resnet18@a=b.safetensors")),
        ("runs/lr=0.1", (None, "runs/lr=0.1")),
        ("tenth=runs/lr=0.1", ("tenth", "runs/lr=0.1")),
        ("gradcam", (None, "gradcam")),
    ],
)
def test_a_title_stands_before_the_first_equals_sign(spec, wanted) -> None:
    assert named(spec) == wanted


def test_explainers_take_a_title(run, loaded, monkeypatch) -> None:
    assert load_explainer(f"auto={run}", loaded=None)[0] == "auto"
    name, method, _ = load_explainer("quick=rise:masks=5", loaded=loaded)
    assert name == "quick" and method.masks == 5
    with pytest.raises(ValueError, match="expected a title before the equals sign, got '=gradcam'"):
        load_explainer("=gradcam", loaded=loaded)
    run.rename(run.parent / "lr=0.1")  # a folder of this name is meant, not a run `0.1` that is called lr
    monkeypatch.chdir(run.parent)
    assert load_explainer("lr=0.1", loaded=None)[0] == "lr=0.1"


def test_explainers_by_name_take_settings_after_a_colon(loaded) -> None:
    name, method, own = load_explainer("gradcam", loaded=loaded)
    assert name == "gradcam" and own is loaded
    name, method, _ = load_explainer("random:cells=7", loaded=loaded)
    assert name == "random:cells=7"
    x = pictures()
    with loaded.classifier.frozen():
        assert method(loaded.classifier, x).masks.shape == (2, 1, 64, 64)


def test_lists_and_seeds_reach_the_explainer(loaded) -> None:
    _, method, _ = load_explainer("extremal:areas=[0.05,0.2],iterations=100", loaded=loaded, seed=3)
    assert method.parametrisation.areas == (0.05, 0.2) and method.schedule.iterations == 100
    assert method.seed == 3
    assert load_explainer("random:seed=5", loaded=loaded, seed=3)[1].seed == 5
    assert load_explainer("gradcam", loaded=loaded, seed=3)[0] == "gradcam"  # draws nothing


def test_infills_go_by_name(loaded) -> None:
    assert load_explainer("rise:infill=blur,masks=9", loaded=loaded)[1] == Rise(9, infill=Blur(border=COLOUR))
    assert load_explainer("opticam:infill=mean", loaded=loaded)[1].infill == MeanColour(COLOUR)
    seen = []
    bank = lambda view: seen.append(view) or pictures()  # noqa: E731
    method = load_explainer("bank_masks:infill=bank,draws=3", loaded=loaded, bank=bank)[1]
    assert seen == [loaded] and method.draws == 3
    assert isinstance(method.infill, Bank) and torch.equal(method.infill.bank, pictures())
    load_explainer("rise:infill=noise", loaded=loaded, bank=bank)
    assert len(seen) == 1  # no picture is read that nobody asked for


def test_refined_starts_at_a_run_or_at_another_explainer(run, loaded) -> None:
    name, method, own = load_explainer(f"better=refined:iterations=2,lr=0.3,start={run}", loaded=None)
    assert name == "better" and isinstance(method.explainer, Learned)
    assert method.optimised.schedule.iterations == 2
    found = method(own.classifier, pictures())
    first = method.explainer(own.classifier, pictures())
    assert found.masks.shape == first.masks.shape and not torch.equal(found.masks, first.masks)
    name, method, own = load_explainer("refined:start=rise:masks=5,infill=blur", loaded=loaded, seed=4)
    assert name == "refined:start=rise:masks=5,infill=blur" and own is loaded
    assert method.explainer == Rise(5, infill=Blur(border=COLOUR), seed=4)
    assert method.optimised.schedule.iterations == 30


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rise:infill=nothing", "no infill 'nothing': expected mean, blur"),
        ("rise:infill=bank", "rise:infill=bank fills holes with training pictures, and this command has none"),
        ("gradcam:infill=blur", "explainer gradcam does not take 'infill=blur'"),
        ("refined", "name it last, refined:start=SPEC, got 'refined'"),
        ("refined:iterations=3", "name it last, refined:start=SPEC, got 'refined:iterations=3'"),
        ("refined:colour=3,start=gradcam", "explainer refined does not take 'colour=3'"),
        ("refined:start=nothing", "no explainer 'nothing'"),
        ("refined:iterations=0,start=gradcam", "refined: iterations is a whole number, 1 to 1000000, got '0'"),
        ("rise:", "expected settings .* got none in 'rise:'"),
        ("rise:masks=5,masks=6", "each once"),
        ("rise:score=loudness", "explainer rise: score is logit, probability, .*, got 'loudness'"),
        ("rise:chance=0", "chance is a number, above 0, up to 1, got '0'"),
        ("rise:chance=nan", "chance is a number, above 0, up to 1, got 'nan'"),
        ("rise:masks=1000000000000", "masks is a whole number, 1 to 1000000"),
        ("random:seed=x", "explainer random: seed is a whole number, 0 to 2147483647, got 'x'"),
        ("random:seed=-1", "seed is a whole number"),
        ("extremal:areas=[0.1,x]", r"areas is a number or a list \[a,b,...\] of numbers, 0 to 1, got '\[0.1,x\]'"),
        ("extremal:areas=[0.1,2]", "areas is a number or a list"),
        ("attribution_mask:per_channel=maybe", "per_channel is true or false"),
        ("gradient:channels=red", "channels is max, sum_abs, sum, got 'red'"),
        (
            "nothing",
            r"no explainer 'nothing': expected the folder of a run .* released checkpoint .* or one of ablationcam, ",
        ),
        ("gradcam:layer", r"expected settings as key=value,key=value after the colon, each once; got 'layer'"),
        ("gradcam:colour=red", r"explainer gradcam does not take 'colour=red'"),
    ],
)
def test_explainers_that_do_not_exist_or_do_not_take_a_setting_are_refused(loaded, name, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_explainer(name, loaded=loaded)


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        ("occlusion:score=logit", {"score": scores.logit}),
        ("rise:masks=50,score=log_odds", {"masks": 50, "score": scores.log_odds}),
        ("gradient:channels=sum", {"channels": TOTAL}),
        ("gradient_x_input:channels=sum_abs", {"channels": SUM_OF_MAGNITUDES}),
        ("attribution_mask:attribution=gradient_x_input,per_channel=false", {"per_channel": False}),
        ("gradcam:layer=layer2", {"layer": "layer2"}),
        ("gradcam:layer=-2", {"layer": -2}),
        ("random:cells=none,seed=4", {"cells": None, "seed": 4}),
        ("scorecam:infill=none", {"infill": None}),
    ],
)
def test_callables_and_other_values_go_by_the_names_of_their_tables(loaded, spec, changed) -> None:
    method = load_explainer(spec, loaded=loaded)[1]
    assert {name: getattr(method, name) for name in changed} == changed


def test_opticam_takes_its_parts_by_name(loaded) -> None:
    method = load_explainer(
        "opticam:score=margin,objective=iodiff,normaliser=max,rectify=identity,activation=relu", loaded=loaded
    )[1]
    assert method.objective.terms.keys() == {"change_kept", "change_removed"}
    assert method.parametrisation.activation is torch.nn.functional.relu


@pytest.mark.parametrize("name", EXPLAINERS)
def test_every_setting_of_every_explainer_can_be_typed(name) -> None:
    for knob in knobs_of(EXPLAINERS[name]).values():
        assert knob.expected()
        shown = knob.shown_default()
        if shown not in ("its own", "none") and not shown[0].isupper():  # an infill that is more than a name
            value = knob.read(shown)
            assert value == knob.default or (knob.table is not None and knob.table.get(knob.default) is value)


def test_the_documented_settings_are_those_of_the_constructors() -> None:
    page = (Path(__file__).parents[1] / "docs" / "explainers.md").read_text()
    assert knob_table(EXPLAINERS | {"refined": refined}) in page


def test_explain_lists_what_can_be_set(capsys) -> None:
    assert main(["explain", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name}\n" in shown for name in EXPLAINERS)
    assert f"    score: {', '.join(scores.SCORES)} [probability]" in shown


@pytest.mark.parametrize(
    ("text", "title", "name", "settings"),
    [
        ("rise:masks=5,score=logit", None, "rise", {"masks": "5", "score": "logit"}),
        ("a b=extremal:areas=[0.1,0.2],lr=1", "a b", "extremal", {"areas": "[0.1,0.2]", "lr": "1"}),
        ("refined:lr=1,start=rise:masks=5,seed=1", None, "refined", {"lr": "1", "start": "rise:masks=5,seed=1"}),
        ("refined:start=x=rise:masks=5", None, "refined", {"start": "x=rise:masks=5"}),
    ],
)
def test_a_spec_is_taken_apart(text, title, name, settings) -> None:
    spec = parse(text)
    assert (spec.title, spec.name, spec.settings, spec.run) == (title, name, settings, False)


def test_every_explainer_by_name_needs_a_classifier() -> None:
    for name in EXPLAINERS:
        with pytest.raises(ValueError, match=f"{name} explains a classifier: name one with --classifier"):
            load_explainer(name, loaded=None)


def test_recipes_by_name_with_other_area_weights() -> None:
    assert load_recipe("ca") is RECIPES["ca"]
    weights = load_recipe("fix", area_in=0.3, area_out=3.0).settings()["weights"]
    assert (weights["area_if_kept_right"], weights["area_if_removed_wrong"]) == (0.3, 3.0)
    with pytest.raises(ValueError, match="no recipe 'best': expected one of reader, "):
        load_recipe("best")
    with pytest.raises(ValueError, match="no term 'area_if_kept_right'"):
        load_recipe("casm_f", area_in=1.0)


def test_metrics_by_name_and_all_of_them() -> None:
    assert load_metrics(["le", "f1"]) == {"le": METRICS["le"], "f1": METRICS["f1"]}
    assert load_metrics(["all"]).keys() == {name for name in METRICS if ":" not in name}
    with pytest.raises(ValueError, match=r"no metric 'pointing_gam': expected `all` or names such as pointing_game"):
        load_metrics(["pointing_gam"])
    with pytest.raises(ValueError, match=r"no metric 'qqqqqq': expected `all` or names such as .*le"):
        load_metrics(["qqqqqq"])
