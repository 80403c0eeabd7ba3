"""Runs that travel: through the hub and through copies, with a classifier inside or named; and hostile ones."""

import json
import os
import pickle
import struct
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from salmask.classifier import Classifier, reach
from salmask.classifier.weights import weights_digest
from salmask.cli.main import main
from salmask.data import Sight
from salmask.data.synthetic import Synthetic
from salmask.masker import Masker
from salmask.report.card import card_text
from salmask.specs import load_explainer, parse
from salmask.training.provenance import hub_folder
from salmask.training.run import Loaded, load_classifier, load_run, save_run
from salmask.training.sharing import reference_to, run_facts, share_run

NETWORK = "test_resnet"
CLASSES = tuple(Synthetic(10, seed=0).classes)


def make_run(folder: Path, *, reference: bool = False, network: str = NETWORK, **facts: object) -> Loaded:
    torch.manual_seed(0)
    classifier = Classifier.from_timm(NETWORK, pretrained=False, num_classes=10, image_size=32)
    loaded = Loaded(classifier, network, Sight(32, "squash"), CLASSES)
    masker = Masker.for_classifier(classifier, width=4, generator=torch.Generator().manual_seed(1)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    named = {"mean": [0.5] * 3, "std": [0.2] * 3} if reference else None
    save_run(folder, masker, loaded, dict(facts), reference=named)
    return loaded


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def run(tmp_path) -> Path:
    make_run(tmp_path / "run")
    return tmp_path / "run"


class Place:
    """A hub that is a folder, OWNER/NAME/file, with the rules of what is pushed and fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder.parent / "cache"

    def __call__(self, **options) -> "Place":  # HfApi(...)
        return self

    def create_repo(self, repo_id, *, private=None, exist_ok=False, **options):
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, allow_patterns=None, delete_patterns=None, **options):
        at = self.folder / repo_id
        for name in delete_patterns or ():
            (at / name).unlink(missing_ok=True)
        for file in sorted(Path(folder_path).iterdir()):
            if allow_patterns is None or file.name in allow_patterns:
                (at / file.name).write_bytes(file.read_bytes())
        return f"https://huggingface.co/{repo_id}/commit/0"

    def fetch(self, repo_id, filename, **options) -> str:
        return str(self.folder / repo_id / filename)

    def fetch_all(self, repo_id, *, revision=None, allow_patterns=()) -> str:
        at = self.cache / (revision or "main")
        at.mkdir(parents=True, exist_ok=True)
        if not (self.folder / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such\nplace")
        for name in allow_patterns:
            if (self.folder / repo_id / name).exists() and not (at / name).exists():
                (at / name).symlink_to(self.folder / repo_id / name)  # as the hub's cache does
        return str(at)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    place = Place(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", place)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", place)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", place.fetch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", place.fetch_all)
    monkeypatch.setattr(reach, "reachable", lambda address: True)
    return place.folder


def masks_of(name: str | Path) -> torch.Tensor:
    _, explainer, own = load_explainer(str(name), loaded=None)
    return explainer(own.classifier, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))).masks


# The hub


def test_a_masker_goes_to_the_hub_and_comes_back_with_a_card(run, hub) -> None:
    masker = Masker.from_pretrained(run)
    assert masker.push_to_hub("me/mine", model_card_kwargs={"licence": "cc-by-4.0"}).startswith("https://")
    assert sorted(path.name for path in (hub / "me/mine").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    back = Masker.from_pretrained("me/mine", revision="main", token="t")
    assert back.fingerprint() == masker.fingerprint() and back.settings() == masker.settings()
    card = huggingface_hub.ModelCard((hub / "me/mine/README.md").read_text())
    assert card.data.library_name == "salmask" and "saliency" in card.data.tags
    assert 'from_pretrained("me/mine")' in card.text and "| licence | cc-by-4.0 |" in card.text
    assert masker.classifier in card.text


def test_a_run_goes_to_the_hub_and_every_way_in_gives_its_masks(run, hub, tmp_path, capsys) -> None:
    (run / "notes.txt").write_text("private")
    out = tmp_path / "shared"
    out.mkdir()
    (out / "more.txt").write_text("private")
    assert main(["share", str(run), "--out", str(out), "--push", "me/run", "--licence", "mit"]) == 0
    assert "pushed: https://huggingface.co/me/run" in capsys.readouterr().out
    names = ["README.md", "classifier.safetensors", "config.json", "model.safetensors", "run.json"]
    assert sorted(path.name for path in (hub / "me/run").iterdir()) == names
    for name in ("hf-hub:me/run", "hf-hub:me/run@v1", out, run):
        assert torch.equal(masks_of(name), masks_of(run)), name
    title, explainer, _ = load_explainer("mine=hf-hub:me/run@v1:top=0.5", loaded=None)
    assert title == "mine" and explainer.top == 0.5
    assert load_explainer("hf-hub:me/run:top=0.5", loaded=None)[0] == "run:top=0.5"
    classes = load_classifier("hf-hub:me/run").classes
    assert classes == CLASSES
    assert Masker.from_pretrained("me/run").fingerprint() == Masker.from_pretrained(run).fingerprint()


def test_nothing_is_pushed_unless_told_and_what_is_gone_does_not_stay(run, hub, tmp_path) -> None:
    assert main(["share", str(run), "--out", str(tmp_path / "dry")]) == 0
    assert not hub.exists()
    (hub / "me/run").mkdir(parents=True)
    (hub / "me/run/reader.safetensors").write_bytes(b"of an earlier run")
    assert main(["share", str(run), "--out", str(tmp_path / "dry"), "--push", "me/run"]) == 0
    assert not (hub / "me/run/reader.safetensors").exists()


@pytest.mark.parametrize(
    "place", ["../../etc", "hf-hub:a", "hf-hub:../x", "hf-hub:a/../b", "hf-hub:a/b/c", "hf-hub:/a/b"]
)
def test_a_place_that_is_none_is_refused_before_anything_is_asked(place, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ValueError, match="expected hf-hub:OWNER/NAME"):
        hub_folder(place)


def test_a_hub_out_of_reach_is_not_waited_for(monkeypatch, tmp_path) -> None:
    """The client then looks at what has been downloaded alone, and tries no server again and again."""
    offline: list[bool] = []
    monkeypatch.setattr(reach, "reachable", lambda address: False)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *_, **__: (offline.append(huggingface_hub.constants.HF_HUB_OFFLINE), str(tmp_path))[1],
    )
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    assert hub_folder("hf-hub:me/run") == tmp_path and offline == [True]
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_place_without_a_run_is_one_line(hub, capsys) -> None:
    assert main(["export", "--explainer", "hf-hub:me/none", "--out", "x.onnx"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no run can be had from hf-hub:me/none" in line and "copy its folder to this machine" in line


# What is shared


def test_a_shared_run_names_no_folder_of_this_machine_and_no_command(tmp_path) -> None:
    make_run(
        tmp_path / "run",
        network="/home/me/secret place/net.py:build",
        data="pets:/home/me/patients/xray",
        command="salmask train --data /home/me/patients",
        variant={"infill": "~/models/inpainter.safetensors", "layers": [3, 4], "note": "1/3 and 2/3"},
    )
    network = load_classifier_network()
    share_run(load_run(tmp_path / "run", network=network), tmp_path / "out", run_facts(tmp_path / "run"))
    text = (tmp_path / "out/run.json").read_text()
    facts = json.loads(text)
    assert facts["network"] == "net.py:build" and facts["data"] == "pets:xray" and "command" not in facts
    assert facts["variant"] == {"infill": "inpainter.safetensors", "layers": [3, 4], "note": "1/3 and 2/3"}
    whole = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"home" not in whole and b"secret" not in whole
    with pytest.raises(ValueError, match="not run unasked"):  # a name without its folder is nobody's file
        load_run(tmp_path / "out")
    load_run(tmp_path / "out", network=load_classifier_network())


def load_classifier_network() -> nn.Module:
    return Classifier.from_timm(NETWORK, pretrained=False, num_classes=10, image_size=32).network


def test_the_folder_of_a_training_is_not_overwritten(run, capsys) -> None:
    (run / "checkpoint.pt").write_bytes(b"")
    before = (run / "run.json").read_bytes()
    assert main(["share", str(run), "--out", str(run)]) == 1
    assert "is the folder of a training" in capsys.readouterr().err and (run / "run.json").read_bytes() == before


# The classifier: inside, or named


def test_a_named_classifier_is_built_by_its_name_and_compared(tmp_path, monkeypatch, capsys) -> None:
    """`timm:test_resnet` stands for a network with weights of the hub: built the same from one seed."""
    import salmask.training.run as home

    built = home.named_network
    seeds = {"seed": 0}

    def by_name(kind, name, *, file="", num_classes=None, network=None):
        if file or network is not None:
            return built(kind, name, file=file, num_classes=num_classes, network=network)
        torch.manual_seed(seeds["seed"])
        own = Classifier.from_timm(NETWORK, pretrained=False, num_classes=10, image_size=32).network
        return built(kind, name, network=own)

    monkeypatch.setattr(home, "named_network", by_name)
    make_run(tmp_path / "run")
    run = load_run(tmp_path / "run")
    named = reference_to_with_colours(run.loaded)
    share_run(run, tmp_path / "out", {}, reference=named)
    assert not (tmp_path / "out/classifier.safetensors").exists()
    back = load_run(tmp_path / "out")
    assert weights_digest(back.loaded.classifier.network) == weights_digest(run.loaded.classifier.network)
    assert torch.equal(back.loaded.classifier.mean, run.loaded.classifier.mean)
    assert back.loaded.classes == CLASSES and back.loaded.view == run.loaded.view
    seeds["seed"] = 1  # another network under the same name
    assert main(["export", "--explainer", str(tmp_path / "out"), "--out", str(tmp_path / "x.onnx")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "it is another network of that name" in line


def reference_to_with_colours(loaded: Loaded) -> dict[str, list[float]]:
    return {name: getattr(loaded.classifier, name).flatten().tolist() for name in ("mean", "std")}


def test_a_network_whose_name_gives_other_weights_must_lie_in_the_folder(tmp_path, run) -> None:
    loaded = load_run(run).loaded
    with pytest.raises(ValueError, match=r"says nothing of its weights: share the run with its classifier"):
        reference_to(replace(loaded, network="net.py:build"))


def test_other_weights_in_the_place_of_the_classifier_are_refused(run) -> None:
    file = run / "classifier.safetensors"
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    weights = load_file(file)
    name = next(name for name, value in weights.items() if value.is_floating_point())
    save_file({**weights, name: weights[name] + 1}, file, metadata=facts)
    with pytest.raises(ValueError, match=r"SHA-256 .* it is another network of that name"):
        load_run(run)


def test_the_digest_sees_names_shapes_and_values_and_not_the_precision() -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    digest = weights_digest(network)
    assert len(digest) == 64 and weights_digest(network.double()) == digest
    half = nn.Linear(4, 2)
    half.load_state_dict(network.bfloat16().state_dict())
    assert weights_digest(half) == weights_digest(network) != digest
    turned = nn.Linear(2, 4)
    turned.weight.data, turned.bias.data = half.weight.data.reshape(4, 2), torch.zeros(4)
    same = nn.Linear(4, 2)
    same.weight.data, same.bias.data = half.weight.data, torch.zeros(2)
    assert weights_digest(turned) != weights_digest(same)


# Hostile runs


class Hostile:
    """What a pickle would do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["model.safetensors", "classifier.safetensors"])
@pytest.mark.parametrize("write", [pickle.dump, lambda value, file: torch.save(value, file)], ids=["pickle", "torch"])
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_read(run, tmp_path, name, write) -> None:
    with (run / name).open("wb") as file:
        write(Hostile(tmp_path / "done"), file)
    with pytest.raises(ValueError, match=rf"{name}.* (cannot be read as weights|does not hold the weights)"):
        load_run(run)
    assert not (tmp_path / "done").exists()


def _lying(path: Path, header: bytes, size: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header + b"\0" * 16)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (b"{}", 2**62),  # a header longer than the file
        (b'{"final.bias":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}', None),
        (b'{"final.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,16]}}', None),  # of another length than its shape
        (b'{"final.bias":{"dtype":"F32","shape":[-1],"data_offsets":[0,16]}}', None),
        (b'{"final.bias":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}', None),  # beyond the end
        (b"{" * 1000, None),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "classifier.safetensors"])
def test_a_header_that_lies_is_refused(run, name, header, size) -> None:
    _lying(run / name, header, size)
    with pytest.raises(ValueError, match=name):
        load_run(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {name: value for name, value in weights.items() if name != "final.bias"},
        lambda weights: {**weights, "more": torch.zeros(1)},
        lambda weights: {**weights, "final.bias": torch.zeros(2)},
        lambda weights: {**weights, "final.weight": weights["final.weight"].flatten()},
    ],
    ids=["missing", "extra", "shape", "flat"],
)
def test_weights_that_do_not_fit_are_refused(run, change) -> None:
    save_file(change(load_file(run / "model.safetensors")), run / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights that"):
        load_run(run)


@pytest.mark.parametrize("name", ["model.safetensors", "classifier.safetensors"])
def test_weights_that_are_not_numbers_are_refused(run, name) -> None:
    """A masker of NaN gives maps of NaN, or in half precision of anything: never what was trained."""
    from safetensors import safe_open

    with safe_open(run / name, "pt") as opened:
        facts = opened.metadata()
    weights = load_file(run / name)
    key = next(key for key, value in weights.items() if value.is_floating_point() and value.numel() > 3)
    weights[key].flatten()[2] = torch.nan
    save_file(weights, run / name, metadata=facts)
    content = json.loads((run / "run.json").read_text())
    del content["sha256"]
    (run / "run.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"not numbers \(NaN\), first in|got NaN for every picture"):
        load_run(run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "resnet18@/etc/passwd"}, "expected the name of a network"),
        ({"network": "../../etc/passwd"}, "made in Python"),
        ({"network": "/etc/passwd"}, "made in Python"),
        ({"reader": "../../etc/passwd"}, "expected 'reader.safetensors'"),
        ({"reader": "/etc/passwd"}, "expected 'reader.safetensors'"),
        ({"view": {"image_size": 10**9}}, "image_size"),
        ({"view": {"image_size": 32, "path": "/etc/passwd"}}, "path"),
        ({"taps": ["layer1"] * 5000}, "taps"),
        ({"taps": ["../../etc/passwd"]}, "etc/passwd"),
        ({"reference": {"mean": [0.5], "std": [0]}}, "std"),
        ({"sha256": 5}, "sha256"),
        ({"format": "salmask run 2"}, "format"),
    ],
)
def test_tricks_in_run_json_are_refused_by_their_field(run, changes, words) -> None:
    edit(run / "run.json", **changes)
    with pytest.raises(ValueError, match=words):
        load_run(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": [10**9] * 5},
        {"width": 10**6},
        {"classes": 10**6},
        {"head": "../../etc/passwd"},
        {"format": "/etc/passwd"},
        {"model": "../../etc/passwd"},
    ],
)
def test_tricks_in_config_json_are_refused(run, changes) -> None:
    edit(run / "config.json", **changes)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_run(run)


@pytest.mark.parametrize("name", ["run.json", "config.json", "model.safetensors", "classifier.safetensors"])
def test_a_link_out_of_the_folder_shows_nothing_of_what_it_leads_to(run, tmp_path, name) -> None:
    (tmp_path / "secret").write_text("root:x:0:0:very secret words")
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError) as refused:
        load_run(run)
    assert "secret words" not in str(refused.value) and "root" not in str(refused.value).replace(str(tmp_path), "")


# Code


def _code(file: Path, mark: Path) -> None:
    file.write_text(
        f"import os, timm\nos.mkdir({str(mark)!r})\n\n\ndef build():\n"
        f"    return timm.create_model({NETWORK!r}, num_classes=10), {{'mean': [.5] * 3, 'std': [.2] * 3}}\n"
    )


@pytest.mark.parametrize("spec", ["{run}/net.py:build", "run/net.py:build", "net.py:build", "run.net:build"])
def test_code_that_comes_with_a_run_is_not_run_unasked(run, tmp_path, monkeypatch, spec) -> None:
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "done"
    _code(run / "net.py", mark)
    _code(tmp_path / "net.py", mark)  # nor a file of that name that lies about
    edit(run / "run.json", network=spec.format(run=run))
    with pytest.raises(ValueError, match=r"not run unasked: read it, then name your own copy.*--classifier"):
        load_explainer(str(run), loaded=None)
    assert not mark.exists()


def test_a_folder_of_the_run_s_name_elsewhere_does_not_let_its_code_in(run, tmp_path, monkeypatch) -> None:
    (tmp_path / "elsewhere" / run.name).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "elsewhere")])
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "done"
    _code(run / "net.py", mark)
    edit(run / "run.json", network=f"{run.name}.net:build")
    with pytest.raises(ValueError, match="not run unasked"):
        load_explainer(str(run), loaded=None)
    assert not mark.exists()


@pytest.mark.parametrize("spec", ["os:getcwd", "{tmp}/net.py:build", "timm:local-dir:/etc", "hf:/etc", "hf:../x/y"])
def test_a_run_of_the_hub_runs_no_code_and_reads_no_folder(run, hub, tmp_path, spec) -> None:
    mark = tmp_path / "done"
    _code(tmp_path / "net.py", mark)
    edit(run / "run.json", network=spec.format(tmp=tmp_path))
    (hub / "me").mkdir(parents=True)
    run.rename(hub / "me/run")
    with pytest.raises(ValueError, match=r"not run unasked|names a network by a folder"):
        load_explainer("hf-hub:me/run", loaded=None)
    assert not mark.exists()


def test_code_that_the_user_names_takes_the_weights_of_the_run(run, tmp_path) -> None:
    """And the user's own network keeps its own."""
    expected = masks_of(run)
    _code(run / "net.py", tmp_path / "done")
    own = run / "classifier.safetensors"
    weights, facts = load_file(own), {"network": str(run / "net.py:build"), "mean": [0.5] * 3, "std": [0.2] * 3}
    edit(run / "run.json", network=facts["network"])
    loaded = load_run(run, network=load_classifier_network()).loaded
    given = load_classifier(f"{run}/net.py:build")
    assert (tmp_path / "done").exists()
    before = given.classifier.fingerprint()
    _, explainer, explained = load_explainer(str(run), loaded=given)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(explainer(explained.classifier, images).masks, expected)
    assert explained.classifier.fingerprint() == loaded.classifier.fingerprint() != before
    assert given.classifier.fingerprint() == before and weights


def test_a_name_of_the_hub_is_a_run_and_not_an_explainer_with_settings() -> None:
    spec = parse("hf-hub:me/run.v2@main:top=0.4")
    assert (spec.name, dict(spec.settings), spec.run) == ("hf-hub:me/run.v2@main", {"top": "0.4"}, True)


# The card


def test_the_card_shows_what_was_measured_of_this_masker_and_of_no_other(run, tmp_path, capsys) -> None:
    from PIL import Image

    weights, scores = Masker.from_pretrained(run).fingerprint(), tmp_path / "scores"
    (scores / "pictures/mine").mkdir(parents=True)
    Image.new("RGB", (64, 16), "red").save(scores / "pictures/mine/one.png")
    explainers = {"mine": {"settings": {"weights": weights}}, "full": {"settings": {}}}
    (scores / "meta.json").write_text(json.dumps({"explainers": explainers, "data": "birds, val"}))
    interval = {"mean": 0.25, "low": 0.125, "high": 0.5, "n": 7}
    (scores / "summary.json").write_text(json.dumps({name: {"le": interval} for name in explainers}))
    words = ["share", str(run), "--out", str(tmp_path / "out"), "--scores", str(scores), "--licence", "CC-BY-4.0"]
    assert main([*words, "--pictures", "1", "--data-name", "birds"]) == 0
    card = huggingface_hub.ModelCard((tmp_path / "out/README.md").read_text())
    assert (card.data.license, card.data.datasets, card.data.metrics) == ("cc-by-4.0", ["birds"], ["le"])
    assert "| **mine** | 0.250 [0.125, 0.500] |" in card.text and "| full | 0.250" in card.text
    assert "7 samples of birds, val" in card.text and "(pictures.png)" in card.text
    assert Image.open(tmp_path / "out/pictures.png").width > 100
    assert main(words) == 0 and not (tmp_path / "out/pictures.png").exists()
    explainers["mine"]["settings"]["weights"] = "0" * 16
    (scores / "meta.json").write_text(json.dumps({"explainers": explainers}))
    assert main([*words, "--out", str(tmp_path / "none")]) == 1
    assert "none of which is this masker" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_the_card_of_the_package_s_masker_says_what_its_readme_says(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("salmask.training.run.load_shipped", lambda: load_run(run))
    assert main(["share", "imagenet", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/README.md").read_text()
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "other" and "non-commercial-research" in card.data.license_name
    assert "| how it was trained | recipe `reader`" in text and "| data | 55,320 crops" in text
    assert "LE .248 [.222, .277]" in text and "unspecified" not in text and "Nobody has measured" not in text
    assert main(["share", "imagenet", "--out", str(tmp_path / "own"), "--data-name", "crops", "--licence", "mit"]) == 0
    own = (tmp_path / "own/README.md").read_text()
    assert "| data | crops |" in own and "| licence | mit |" in own and "| licence of the data | ImageNet" in own


def test_costs_are_no_metrics_of_a_card(run) -> None:
    measured = {"mean": 0.25, "low": 0.125, "high": 0.5, "n": 7}
    columns = ("le", "acc_kept", "seconds", "passes", "passes_forward", "passes_backward", "degenerate")
    scores = {"mine": dict.fromkeys(columns, measured)}
    text = card_text(json.loads((run / "run.json").read_text()), place="me/mine", scores=scores, own=["mine"])
    assert huggingface_hub.ModelCard(text).data.metrics == ["le", "acc_kept"] and "| seconds |" in text
