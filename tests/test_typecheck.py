"""The check of annotations is on while tests run."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import salmask
from salmask.masking import MeanColour
from salmask.terms import variation

ROOT, SOURCE = Path(__file__).resolve().parents[1], Path(salmask.__path__[0])


def test_a_wrong_shape_is_refused_by_its_annotation() -> None:
    with pytest.raises(TypeCheckError, match="batch masks height width"):
        variation(torch.rand(2, 4, 4))
    with pytest.raises(TypeCheckError, match="batch channels height width"):
        MeanColour()(torch.rand(3, 4, 4), torch.rand(3, 1, 4, 4))


PASSED = (
    "arguments",
    "borders",
    "corners",
    "grids",
    "hold",
    "inputs",
    "layers",
    "network",
    "outputs",
    "placing",
    "probe",
    "reach",
)
"""Modules of `classifier` that every pass, or every construction, goes through: a check takes too long there."""


def test_all_but_what_every_pass_goes_through_and_one_page_are_checked() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    checked = set(re.findall(r"salmask\.([\w.]+)", options["addopts"]))
    top = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    serve = {f"serve.{path.stem}" for path in (SOURCE / "serve").glob("*.py")}
    left = {*PASSED, "__init__", "taps", "tensors", "wrappers"}
    rooms = {f"classifier.{path.stem}" for path in (SOURCE / "classifier").glob("*.py") if path.stem not in left}
    others = (top | serve) - {"__init__", "__main__", "classifier", "serve", "serve.__init__", "serve.page"}
    assert checked == others | rooms
