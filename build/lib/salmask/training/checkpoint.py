"""Checkpoints: all state of a training in one file, and the facts that say which training it belongs to."""

import json
from pathlib import Path

import torch

from salmask.files import JSON, Facts, replace_file
from salmask.training.schemas import read_state

__all__ = [
    "CHECKPOINT",
    "first_difference",
    "fresh",
    "read_checkpoint",
    "scaler_state",
    "set_scaler",
    "write_checkpoint",
]

CHECKPOINT = "checkpoint.pt"


def write_checkpoint(out: Path, facts: Facts, state: Facts) -> None:
    """Write the state beside its facts, whole or not at all."""
    content = {"facts": json.dumps(facts, sort_keys=True), **state}
    replace_file(out / CHECKPOINT, lambda path: torch.save(content, path))


def read_checkpoint(out: Path, facts: Facts, device: torch.device) -> JSON | None:
    """Return the state of the checkpoint in a folder, None where there is none.

    Errors: ValueError for a file that is no checkpoint, and for one of another training, naming the first difference.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return None
    state = read_state(path, device)
    earlier, wanted = json.loads(state["facts"]), json.loads(json.dumps(facts))
    if earlier != wanted:
        raise ValueError(f"{path} belongs to another run: {first_difference(earlier, wanted)}; name another folder")
    return state


def fresh(out: Path) -> tuple[int, Facts]:
    """Return the first step, with nothing logged yet. Errors: ValueError where a folder holds a run already."""
    if (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds a run already: resume it (--resume), or name another folder")
    return 0, {}


def scaler_state(precision: object) -> JSON:
    """Return the state of the gradient scaler of Fabric's 16-mixed precision; empty for other precisions."""
    scaler = getattr(precision, "scaler", None)
    return {} if scaler is None else scaler.state_dict()


def set_scaler(precision: object, state: JSON) -> None:
    """Take up what `scaler_state` returned."""
    scaler = getattr(precision, "scaler", None)
    if scaler is not None and state:
        scaler.load_state_dict(state)


def first_difference(earlier: JSON, wanted: JSON, path: str = "") -> str:
    """Return the first entry, of those that differ, in words."""
    for key in sorted(earlier.keys() | wanted.keys()):
        one, other = earlier.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and one != other:
            return first_difference(one, other, f"{path}{key}.")
        if one != other:
            return f"its {path}{key} is {one!r}, asked for is {other!r}"
    return "its settings differ"
