"""Pictures of other than three channels, from the files to a trained classifier and an explanation."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from salmask.cli.main import main


@pytest.mark.parametrize("channels", [1, 4])
def test_a_classifier_of_any_channels_is_trained_saved_and_explained(channels, tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("dark", "light"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for k in range(4):
                values = rng.integers(0, 100, (64, 64, channels), dtype=np.uint8) + (100 if label == "light" else 0)
                values = values.astype(np.uint8) if channels > 1 else values[..., 0].astype(np.uint8)
                tifffile.imwrite(folder / f"{k}.tif", values, photometric="rgb" if channels > 1 else "minisblack")
    weights = tmp_path / "own.safetensors"
    arguments = ["classifier", "--data", tmp_path / "data", "--network", "timm:test_resnet", "--image-size", "64"]
    arguments += ["--channels", channels, "--epochs", "1", "--batch-size", "4", "--out", weights]
    assert main([str(argument) for argument in arguments]) == 0
    file = tmp_path / "data" / "val" / "light" / "0.tif"
    explain = ["explain", file, "--classifier", f"timm:test_resnet@{weights}", "--out", tmp_path / "out"]
    for name in ("gradcam", "occlusion:window=64,stride=64"):
        assert main([str(argument) for argument in [*explain, "--explainer", name]]) == 0
    assert np.load(tmp_path / "out" / "0.npy").shape == (64, 64)
    capsys.readouterr()
    assert main([str(argument) for argument in [*explain, "--explainer", "gradcam", "--channels", "3"]]) == 1
    assert f"reads {channels} channels, asked for are 3" in capsys.readouterr().err
