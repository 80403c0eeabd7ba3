"""What a training must have in common with the one that it goes on from: pictures, how they are seen, and the infill.

Settings, recipe and masker stand in the checkpoint itself. What `train` does not know, because its batches are ready
made, stands in `training.json` beside it and is compared here, entry by entry.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from torch import Generator, Tensor, nn

from salmask.data import Labelled
from salmask.files import ANYTHING, JSON, Facts, read_json, replace_file
from salmask.training.checkpoint import CHECKPOINT
from salmask.types import Infill

__all__ = ["agree_on_training", "described_data", "described_infill"]

TRAINING = "training.json"
_SHAPE = {"data": {"images": int, "classes": int, "names": str}, "seen": {str: ANYTHING}, "infill": {str: str}}


def agree_on_training(
    out: Path,
    dataset: Labelled,
    *,
    seen: Facts,
    infill: Infill | Mapping[str, Infill] | None,
    resume: bool,
) -> None:
    """Write down what a new training rests on; of one that goes on, raise ValueError for the first difference."""
    facts = {"data": described_data(dataset), "seen": dict(seen), "infill": described_infill(infill)}
    wanted = json.loads(json.dumps(facts))
    path = out / TRAINING
    if resume and (out / CHECKPOINT).exists() and path.exists():
        earlier = read_json(path, _SHAPE, remedy="delete the folder to start anew")
        for part in wanted:
            for key in sorted(wanted[part].keys() | earlier[part].keys()):
                one, other = earlier[part].get(key), wanted[part].get(key)
                if one != other:
                    raise ValueError(
                        f"{out} belongs to another run: its {part}.{key} is {one!r}, asked for is {other!r}; "
                        "name another folder"
                    )
    elif not (out / CHECKPOINT).exists():
        replace_file(path, lambda at: at.write_text(json.dumps(facts, indent=2) + "\n"))


def described_infill(infill: Infill | Mapping[str, Infill] | None) -> dict[str, str]:
    """Return what tells infills apart, by side: kind and settings, and of tensors their shapes."""
    if infill is None:
        return {"infill": "MeanColour of the classifier"}
    sides = infill if isinstance(infill, Mapping) else {"infill": infill}
    return {side: _described(one) for side, one in sides.items()}


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, Generator):
        return "drawn"
    if is_dataclass(value):
        parts = ", ".join(f"{field.name}={_described(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__name__}({parts})"
    return type(value).__name__ if isinstance(value, nn.Module) else repr(value)


def described_data(dataset: Labelled) -> JSON:
    """Return what tells data sets apart: how many pictures and classes, and a hash of ids and labels."""
    digest = hashlib.blake2b(digest_size=8)
    for name, target in zip(dataset.ids, dataset.targets, strict=True):
        digest.update(f"{name}\0{target}\n".encode())
    return {"images": len(dataset), "classes": len(dataset.classes), "names": digest.hexdigest()}
