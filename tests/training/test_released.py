"""Checkpoints of the released code's layout, made up here from its description and read by ours."""

import argparse
import dataclasses
import json
from functools import cache

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salmask.cli.main import main
from salmask.data.synthetic import write_folder
from salmask.metrics import METRICS
from salmask.specs import load_explainer
from salmask.training.recipes import RECIPES
from salmask.training.released import as_released, load_released, metric_as_released
from salmask.training.run import load_run

CHANNELS = {0: 64, 1: 64, 2: 128, 3: 256, 4: 512}  # of a resnet18


class Described(nn.Module):
    """The published masker, from its description: projections, joined, one 3x3 convolution, sigmoid, repetition."""

    def __init__(self, layers: tuple[int, ...], *, extra: int = 0, final: str = "0") -> None:
        super().__init__()
        self.layers, self.extra = layers, extra
        joined = 0
        for k in layers:
            if k == 0 and len(layers) > 1:
                joined += CHANNELS[0] + extra
                continue
            block = nn.Sequential(nn.Conv2d(CHANNELS[k] + extra, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
            self.add_module(f"conv1x1_{k}", block)
            joined += 64
        last = nn.Conv2d(joined, 1, 3, padding=1)
        self.final = nn.ModuleDict({"conv": last}) if final == "conv" else nn.Sequential(last)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)

    def forward(self, maps: list[Tensor], area: Tensor | None = None) -> Tensor:
        parts = []
        for k in self.layers:
            x = maps[k]
            if area is not None:
                x = torch.cat([x, area.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])], 1)
            block = getattr(self, f"conv1x1_{k}", None)
            x = x if block is None else block(x)
            parts.append(F.interpolate(x, maps[0].shape[-2:], mode="bilinear", align_corners=False))
        last = next(module for module in self.final.modules() if isinstance(module, nn.Conv2d))
        return F.interpolate(last(torch.cat(parts, 1)).sigmoid(), scale_factor=4, mode="nearest")


@cache
def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return timm.create_model("resnet18", num_classes=10).state_dict()


def checkpoint(path, layers=(3, 4), *, key="state_dict_masker", prefix="", final="0", extra=0, **options):
    torch.manual_seed(2)
    masker = Described(layers, extra=extra, final=final).eval()
    torch.save(
        {
            "epoch": 3,
            "state_dict_classifier": {prefix + k: v for k, v in weights().items()},
            key: {prefix + k: v for k, v in masker.state_dict().items()},
            "args": argparse.Namespace(masker_use_layers=",".join(map(str, layers)), **options),
        },
        path,
    )
    return masker


PLAIN, PARALLEL = ("state_dict_masker", "", "0"), ("state_dict_decoder", "module.", "conv")  # key, prefix, last layer


@pytest.mark.parametrize(
    ("layers", "key", "prefix", "final"),
    [
        *((layers, *PLAIN) for layers in ((3, 4), (4,), (0,), (1, 3), (0, 1, 2, 3, 4), (0, 4))),
        *((layers, *PARALLEL) for layers in ((3, 4), (0,), (0, 4))),
    ],
)
def test_a_released_masker_makes_its_masks_here(tmp_path, layers, key, prefix, final) -> None:
    published = checkpoint(tmp_path / "epoch.chk", layers, key=key, prefix=prefix, final=final)
    masker, classifier, network = load_released(tmp_path / "epoch.chk")
    assert network == "resnet18" and masker.layers == layers
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), classifier.frozen():
        maps = classifier.features(images).maps
        ours, theirs = masker(maps, (64, 64)), published(maps)
    assert theirs.std() > 0.003
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_masker_that_is_told_an_area_is_known_by_its_channels(tmp_path) -> None:
    published = checkpoint(tmp_path / "epoch.chk", extra=1)
    masker, classifier, _ = load_released(tmp_path / "epoch.chk")
    assert masker.area_condition
    images, areas = torch.rand(2, 3, 64, 64), torch.tensor([0.2, 0.7])
    with torch.no_grad(), classifier.frozen():
        maps = classifier.features(images).maps
        assert torch.allclose(masker(maps, (64, 64), areas=areas), published(maps, areas), atol=1e-5)


def test_the_options_of_the_training_are_kept(tmp_path) -> None:
    checkpoint(tmp_path / "a.chk", upsample="bilinear")
    assert load_released(tmp_path / "a.chk")[0].upsample_mode == "bilinear"  # the released reader takes nearest
    checkpoint(tmp_path / "b.chk", apply_gumbel=True, apply_gumbel_tau=0.3, gumbel_output_mode="soft")
    head = load_released(tmp_path / "b.chk")[0].head.settings()
    assert head == {"head": "concrete", "temperature": pytest.approx(0.3), "hard": False, "learnable": False}
    checkpoint(tmp_path / "c.chk", apply_gumbel=True, apply_gumbel_tau=-1.0)
    assert load_released(tmp_path / "c.chk")[0].head.settings()["temperature"] == pytest.approx(0.1)


def test_the_command_makes_a_run_of_a_released_checkpoint(tmp_path, capsys) -> None:
    checkpoint(tmp_path / "epoch.chk")
    assert main(["convert", str(tmp_path / "epoch.chk"), "--out", str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    masker, loaded = run.masker, run.loaded
    assert masker.layers == (3, 4) and loaded.network == "resnet18" and loaded.view.image_size == 224
    assert "run:" in capsys.readouterr().out


def test_a_released_checkpoint_is_an_explainer_as_it_is(tmp_path, capsys) -> None:
    checkpoint(tmp_path / "epoch.chk", extra=1)
    name, explainer, loaded = load_explainer(f"{tmp_path / 'epoch.chk'}:area=0.4", loaded=None)
    assert (name, explainer.area, loaded.view.image_size) == ("epoch.chk:area=0.4", 0.4, 224)
    checkpoint(tmp_path / "epoch.chk")
    write_folder(tmp_path / "data", train=10, val=10, seed=3, size=64)
    measure = ["evaluate", "--data", tmp_path / "data", "--explainer", tmp_path / "epoch.chk", "--as-released"]
    measure += ["--metric", "le", "f1", "om:casm", "--limit", "1", "--out", tmp_path / "out"]
    assert main([str(part) for part in measure]) == 0
    measured = {json.loads(line)["metric"] for line in (tmp_path / "out" / "rows.jsonl").open()}
    assert {"le:as_released", "f1", "om:casm"} <= measured and "le" not in measured
    assert main(["explain", "x.png", "--explainer", str(tmp_path / "none.chk"), "--out", str(tmp_path / "no")]) == 1
    assert "a released checkpoint (.chk)" in capsys.readouterr().err


def test_a_metric_is_measured_as_released_where_that_differs() -> None:
    assert [metric_as_released(name) for name in ("le", "om", "sm", "pxap")] == [
        f"{name}:as_released" for name in ("le", "om", "sm", "pxap")
    ]
    assert [metric_as_released(name) for name in ("f1", "le:casm", "pxap:boxes")] == ["f1", "le:casm", "pxap:boxes"]
    assert all(metric_as_released(name) in METRICS for name in METRICS)


def test_other_files_are_refused_with_what_they_lack(tmp_path, capsys) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_released(tmp_path / "none.chk")
    torch.save({"model": 1}, tmp_path / "other.chk")
    with pytest.raises(ValueError, match=r"expected state_dict_classifier and state_dict_masker .* got model$"):
        load_released(tmp_path / "other.chk")
    (tmp_path / "text.chk").write_text("no")
    with pytest.raises(ValueError, match="no checkpoint that can be read safely"):
        load_released(tmp_path / "text.chk")
    checkpoint(tmp_path / "epoch.chk")
    content = torch.load(tmp_path / "epoch.chk", weights_only=False)
    del content["state_dict_masker"]["conv1x1_3.1.running_var"]
    torch.save(content, tmp_path / "part.chk")
    with pytest.raises(ValueError, match=r"1 tensors are missing .projections.3.1.running_var"):
        load_released(tmp_path / "part.chk")
    assert main(["convert", str(tmp_path / "other.chk"), "--out", str(tmp_path / "run")]) == 1
    assert "is no released checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_code_in_a_checkpoint_is_not_run(tmp_path) -> None:
    class Bad:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"state_dict_classifier": Bad(), "state_dict_masker": {}}, tmp_path / "bad.chk")
    with pytest.raises(ValueError, match="no checkpoint that can be read safely"):
        load_released(tmp_path / "bad.chk")


def test_as_released_draws_classifiers_and_does_not_use_them() -> None:
    described = dataclasses.replace(RECIPES["casm_l100"], statistics="clean")
    released = as_released(described)
    assert (described.history, released.history) == ("sample", "skip_update")
    assert released.statistics == "all" and released.historic == described.historic
    assert as_released(RECIPES["fix"]) == RECIPES["fix"]
