"""Explaining and evaluating in bfloat16: close to float32, said in meta.json, and never where it was not asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from PIL import Image

from salmask import Classifier, Masker
from salmask.cli.main import main
from salmask.data.streams import DataStream
from salmask.data.tensors import TensorPictures
from salmask.evaluation.evaluate import Rules, evaluate_explainers
from salmask.explain.learned import Learned
from salmask.rows.read import read_lines, read_meta
from salmask.specs import load_explainer, load_metrics
from salmask.training.run import Loaded, Sight

CLOSE = 0.02  # of masks and probabilities in [0, 1]


@pytest.fixture
def pictures() -> TensorPictures:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return TensorPictures(images, [n % 4 for n in range(6)], classes=list("abcd"))


def values(folder: Path) -> dict[tuple[str, str, str], float]:
    lines = (line for _, _, line in read_lines(folder / "rows.jsonl"))
    return {
        (line["explainer"], line["metric"], line["image"]): line["value"]
        for line in lines
        if line["metric"] not in ("seconds", "degenerate")
    }


def test_scores_in_bfloat16_are_close_and_said(small_net, pictures, tmp_path) -> None:
    classifier = Classifier(small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=None, image_size=16)
    masker = Masker.for_classifier(classifier, generator=torch.Generator().manual_seed(0)).eval()
    cam = load_explainer("gradcam", loaded=Loaded(classifier, "", Sight(16)))[1]
    fabrics = {
        "plain": None,
        "full": Fabric(accelerator="cpu", devices=1),
        "half": Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"),
    }
    for name, fabric in fabrics.items():
        evaluate_explainers(
            {"masker": Learned(masker), "cam": cam},
            load_metrics(["average_drop", "mask_mean", "faithfulness"]),
            DataStream(pictures, 3),
            classifier,
            rules=Rules(target="label", normalize="range"),
            out=tmp_path / name,
            pictures=0,
            fabric=fabric,
        )
    plain, full, half = (values(tmp_path / name) for name in fabrics)
    assert plain == full and half.keys() == full.keys() and half != full
    masks = [key for key in full if key[1] == "mask_mean" and key[0] == "masker"]
    assert len(masks) == 6
    assert all(full[key] != half[key] and abs(full[key] - half[key]) < CLOSE for key in masks)
    assert read_meta(tmp_path / "half")["precision"] == "bf16-mixed"
    assert "precision" not in read_meta(tmp_path / "full")


def test_the_command_explains_in_float32_where_nothing_else_is_asked_for(tmp_path, capsys) -> None:
    (tmp_path / "net.py").write_text(
        f"import sys, torch\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\nfrom conftest import SmallNet\n"
        "def build():\n    torch.manual_seed(0)\n    return SmallNet()\n"
    )
    (tmp_path / "data").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
    command = ["explain", "--data", str(tmp_path / "data"), "--classifier", f"{tmp_path / 'net.py'}:build"]
    command += ["--mean", "0", "0", "0", "--std", "1", "1", "1", "--size", "16", "--explainer", "layercam"]
    command += ["--form", "array", "--normalize", "max"]

    def masks(name: str, *options: str) -> np.ndarray:
        assert main([*command, "--out", str(tmp_path / name), *options]) == 0
        return np.load(tmp_path / name / "masks.npy").astype(int)

    plain, full = masks("plain"), masks("full", "--precision", "32-true")
    half = masks("half", "--precision", "bf16-mixed")
    assert np.array_equal(plain, full) and not np.array_equal(plain, half)
    assert np.abs(plain - half).max() <= 255 * CLOSE
    assert json.loads((tmp_path / "half" / "meta.json").read_text())["precision"] == "bf16-mixed"
    assert main([*command, "--out", str(tmp_path / "plain"), "--precision", "bf16-mixed"]) == 1
    assert "precision" in capsys.readouterr().err
