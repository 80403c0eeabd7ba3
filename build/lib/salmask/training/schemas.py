"""What the files of a run must look like: checked before anything is built from them.

One line names file and field where a file was changed by hand, cut short, or belongs to something else.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from salmask.classifier.outputs import KINDS
from salmask.data.sight import FITS, INTERPOLATIONS, LARGEST, SMALLEST, Sight
from salmask.files import ANYTHING, JSON, Maybe, Several, Within, Word, check_shape, parse_json, read_json, regular_file
from salmask.training.views import HEARING

__all__ = ["UNFINISHED", "check_state", "read_metadata", "read_run", "read_state"]

_CHANNELS, _CLASSES = 1024, 1_000_000
_BAND = Within(0, 65535)
_VALUE = Within(-1e9, 1e9, whole=False)
_SIGHT = {
    "image_size": Within(SMALLEST, LARGEST),
    "fit?": Word(*FITS),
    "interpolation?": Word(*INTERPOLATIONS),
    "crop?": Within(0.1, 1, whole=False),
    "depth?": Maybe(Within(1, 16)),
    "window?": Maybe(Within(1e-6, 1e9, whole=False)),
    "level?": Maybe(_VALUE),
    "bands?": Maybe(Several(_BAND, 1, _CHANNELS)),
    "colours?": Maybe(Several(_BAND, 3, 3)),
}
_RUN = {
    "format": Word("salmask run 1"),
    "network": str,
    "taps": Several(str, 0, 1024),
    "view": {str: ANYTHING},
    "classes?": Maybe(Several(str, 1, _CLASSES)),
    "reader?": Maybe(Word("reader.safetensors")),
    "sha256?": str,
    "reference?": Maybe(
        {"mean": Several(_VALUE, 1, _CHANNELS), "std": Several(Within(1e-9, 1e9, whole=False), 1, _CHANNELS)}
    ),
    "recipe?": {str: ANYTHING},
}
_METADATA = {
    "network?": str,
    "classes?": Maybe(Several(str, 1, _CLASSES)),
    "options?": {
        "outputs?": Word(*KINDS),
        "output?": Maybe((str, int)),
        "prefix?": Maybe(Within(0, 65536)),
        "grid?": Maybe(Several(Within(1, 65536), 2, 2)),
        "inputs?": Maybe({str: Within(1, _CHANNELS)}),
    },
    "mean?": Several(_VALUE, 1, _CHANNELS),
    "std?": Several(Within(1e-9, 1e9, whole=False), 1, _CHANNELS),
    "hearing?": HEARING,
    **{f"{key.rstrip('?')}?": shape for key, shape in _SIGHT.items()},
}
_STATE: JSON = {
    "step": Within(0, 10**12),
    "facts": str,
    "masker": {str: Tensor},
    "optimiser": {"state": dict, "param_groups": list},
    "generators": {str: Tensor},
    "scaler": {str: ANYTHING},
    "log": {"sums?": {str: Tensor}, "count?": Within(0, 10**12)},
    "averaged?": {str: Tensor},
    "opponent?": {str: Tensor},
    "opponent_optimiser?": {"state": dict, "param_groups": list},
    "pool?": [Within(0, 10**12)],
}

UNFINISHED: JSON = {
    "step": Within(0, 10**12),
    "facts": str,
    "network": {str: Tensor},
    "optimiser": {"state": dict, "param_groups": list},
    "schedule": {str: ANYTHING},
    "generator": Tensor,
}
"""The state of a training that was interrupted, of what has no run's folder."""


def read_run(path: Path) -> JSON:
    """Return what a run.json says. Errors: ValueError naming the field, FileNotFoundError."""
    remedy = "it does not describe a salmask run; copy it from where the run was trained, or train again"
    facts = read_json(path, _RUN, remedy=remedy)
    if "@" in facts["network"] and ".py:" not in facts["network"]:  # a folder's name may hold one
        raise ValueError(f"{path}, network: expected the name of a network, got {facts['network'][:80]!r}: {remedy}")
    if facts.get("reference") is not None and "sha256" not in facts:
        raise ValueError(f"{path}, reference: expected 'sha256' beside it, by which the network is known: {remedy}")
    shape: JSON = {"hearing": HEARING} if "hearing" in facts["view"] else _SIGHT
    check_shape(str(path), {"view": facts["view"]}, {"view": shape}, remedy=remedy)
    if "hearing" in facts["view"]:
        return facts
    if unknown := sorted(set(facts["view"]) - set(asdict(Sight(64)))):
        raise ValueError(f"{path}, view: expected {', '.join(asdict(Sight(64)))}, got {unknown[0]!r}: {remedy}")
    return facts


def read_metadata(path: Path) -> JSON:
    """Return what a .safetensors file of weights says of its classifier; {} where it says nothing, or is no such file.

    Errors: ValueError naming the field.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("salmask", "{}")
    except Exception as error:  # whatever the reader says of a file that is cut short
        raise ValueError(f"{path} cannot be read as weights: {error}") from error
    return parse_json(f"{path}, its metadata", text, _METADATA, remedy="save the classifier again")


def read_state(path: Path, device: torch.device, shape: JSON = _STATE) -> JSON:
    """Return a training's checkpoint. Errors: ValueError naming the file, and the entry that is not as it must be."""
    regular_file(path, "the checkpoint of a training")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        kind = type(error).__name__  # what torch says of it fills a page, and advises to trust the file
        raise ValueError(f"{path} cannot be read as a checkpoint ({kind}): delete it to start anew") from error
    check_state(path, state, shape)
    return state


def check_state(path: Path, state: object, shape: JSON = _STATE) -> None:
    """Raise ValueError where a checkpoint is not one of a training: naming file and entry."""
    check_shape(str(path), state, shape, remedy="it is not the checkpoint of a training; delete it to start anew")
    assert isinstance(state, Mapping)
    parse_json(f"{path}, facts", state["facts"], {str: ANYTHING}, remedy="delete it to start anew")
