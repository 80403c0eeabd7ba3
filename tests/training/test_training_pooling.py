"""Training a query stream: what learns, what stays, kept maps, runs by command."""

import pytest
import torch
from torch import nn

from salmask.classifier import Classifier
from salmask.cli.main import main
from salmask.data.synthetic import Synthetic, write_folder
from salmask.pooling import Pooled, QueryStream
from salmask.specs import load_explainer
from salmask.training.pooling import CroppedPictures, Maps, PoolingSettings, fit_stream, load_pooling
from salmask.training.run import load_classifier

QUICK = PoolingSettings(epochs=40, batch_size=8, lr=0.3)


@pytest.fixture
def classifier(small_net) -> Classifier:
    small_net.head = nn.Linear(16, 10)
    return Classifier(small_net.eval(), mean=(0.5,) * 3, std=(0.25,) * 3, layers=None, image_size=32)


@pytest.fixture
def pooled(classifier) -> Pooled:
    return Pooled(classifier, QueryStream.for_classifier(classifier, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def pictures() -> Synthetic:
    return Synthetic(24, seed=0, size=32)


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("kind", ["maps", "crops"])
@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
def test_the_stream_learns_and_the_network_stays_to_the_bit(kind, recipe, pooled, classifier, pictures) -> None:
    network, stream = _state(classifier.network), _state(pooled.stream)
    classifier.network.train()  # as a user may have left it: statistics must not move all the same
    lessons = Maps.of(pooled, pictures) if kind == "maps" else CroppedPictures(pictures)
    fit_stream(pooled, lessons, settings=PoolingSettings(recipe=recipe, epochs=1, batch_size=8))
    assert all(torch.equal(value, network[name]) for name, value in classifier.network.state_dict().items())
    moved = {name: not torch.equal(value, stream[name]) for name, value in pooled.stream.state_dict().items()}
    assert all(moved.values()), moved
    assert all(parameter.grad is None for parameter in classifier.network.parameters())
    assert all(parameter.requires_grad for parameter in classifier.network.parameters())
    assert classifier.network.training


def test_kept_maps_give_the_logits_of_the_whole_network(pooled, pictures) -> None:
    maps = Maps.of(pooled, pictures)
    chosen = torch.tensor([3, 11, 20])
    images = torch.stack([pictures[int(k)].image for k in chosen]).float() / 255
    with torch.no_grad(), pooled.frozen():
        assert torch.allclose(maps.logits(pooled, chosen), pooled.logits(images), atol=5e-3)


def test_maps_that_do_not_fit_are_refused_before_they_are_made(pooled, pictures) -> None:
    with pytest.raises(ValueError, match="--crops"):
        Maps.of(pooled, pictures, limit=10_000)


def test_training_lowers_the_loss_and_a_seed_is_a_training(pooled, classifier, pictures) -> None:
    def loss(one: Pooled, maps: Maps) -> float:
        with torch.no_grad(), one.frozen():
            return float(nn.functional.cross_entropy(maps.logits(one, torch.arange(24)), maps.targets))

    maps = Maps.of(pooled, pictures)
    before = loss(pooled, maps)
    fit_stream(pooled, maps, settings=QUICK)
    assert loss(pooled, maps) < before - 0.02
    again = Pooled(classifier, QueryStream.for_classifier(classifier, generator=torch.Generator().manual_seed(0)))
    fit_stream(again, maps, settings=QUICK)
    assert all(torch.equal(a, b) for a, b in zip(pooled.stream.parameters(), again.stream.parameters(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "says"), [({"recipe": "adam"}, "sgd, adamw"), ({"lr": -1.0}, "lr"), ({"seed": -1}, "seed")]
)
def test_settings_out_of_range_are_refused(wrong, says) -> None:
    with pytest.raises(ValueError, match=says):
        PoolingSettings(**wrong)


def test_a_loss_that_is_no_number_is_an_error(pooled, pictures) -> None:
    with pytest.raises(ValueError, match="loss is not a number"):
        fit_stream(pooled, Maps.of(pooled, pictures), settings=PoolingSettings(epochs=2, batch_size=8, lr=1e12))


def test_a_run_by_command_is_a_classifier_and_an_explainer(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "DATA", train=12, val=6, seed=0, size=32)
    own = """
import torch
from torch import nn
def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
    return net, {"mean": (0.5,) * 3, "std": (0.25,) * 3, "image_size": 32}
"""
    (tmp_path / "mine.py").write_text(own)
    options = ["pooling", "--data", "DATA", "--classifier", "mine.py:network", "--epochs", "2", "--batch-size", "6"]
    assert main([*options, "--layers", "9", "--out", "run"]) == 1
    assert "layer 9 does not exist" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*options, "--lr", "0.05", "--out", "run"]) == 0
    assert "with the stream" in capsys.readouterr().out
    run = load_pooling("run")
    images = torch.rand(2, 3, 32, 32)
    loaded = load_classifier("run")
    with torch.no_grad():
        assert torch.equal(loaded.classifier.logits(images), run.pooled.classifier.logits(images))
        assert not torch.equal(run.average.classifier.logits(images), run.pooled.classifier.logits(images))
    title, explainer, of = load_explainer("run:stage=0", loaded=None)
    assert title == "run:stage=0" and isinstance(of.classifier, Pooled)
    assert explainer(of.classifier, images).layers == (f"backbone.{run.stream.layers[0]}",)
    with pytest.raises(ValueError, match="raw attention of run"):
        load_explainer("run:top=0.2", loaded=None)
    command = ["evaluate", "--data", "DATA", "--explainer", "run", "gradcam", "--metric", "average_drop", "le"]
    assert main([*command, "--no-baselines", "--out", "scored"]) == 0
    (tmp_path / "run" / "classifier.safetensors").unlink()
    assert main(["explain", "DATA", "--explainer", "run", "--out", "explained"]) == 1
    assert "classifier.safetensors is missing" in capsys.readouterr().err
