"""What a visitor takes away: one archive with the map and the pictures of every explainer."""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from salmask.report.pictures import to_uint8
from salmask.serve.drawn import overlay_of
from salmask.serve.looks import Looks, Visit

__all__ = ["write_bundle"]

_ABOUT = """map.npy         the map as the explainer gave it, of what the network sees
map.png         the same in [0, 1]: black 0, white 1
map.whole.png   at the size of the file; transparent where the network has not looked
overlay.png kept.png removed.png whole.png   the pictures on the page
facts.json      class explained, probabilities, threshold, range of the map
"""


def write_bundle(
    path: Path, looks: Looks, session: Visit, titles: Sequence[str], *, opacity: float, threshold: float
) -> None:
    """Write the archive: a folder for each explainer that gave a map."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("README.txt", _ABOUT)
        for number, title in enumerate(titles):
            mapped = session.maps.get(title)
            if mapped is None or mapped.explanation is None:
                continue
            folder = f"{number + 1:02d}-{''.join(letter if letter.isalnum() else '-' for letter in title)[:60]}"
            for name, data in _files(looks, session, title, opacity=opacity, threshold=threshold).items():
                archive.writestr(f"{folder}/{name}", data)


def _files(looks: Looks, session: Visit, title: str, *, opacity: float, threshold: float) -> dict[str, bytes]:
    explanation = session.maps[title].explanation
    assert explanation is not None
    panels = looks.panels(session, title, threshold)
    values = explanation.bounded().masks[0, 0].float().cpu().numpy()
    raw = explanation.masks[0, 0].float().cpu().numpy()
    facts = {
        "picture": session.look.name,
        "height and width": session.look.size,
        "explainer": title,
        "class explained": looks.names[int(explanation.targets[0])],
        "class-agnostic": explanation.class_agnostic,
        "range": [str(end) for end in explanation.range],
        "threshold": threshold if threshold > 0 else None,
        "kept of the picture": float(panels.mask.mean()),
        "probabilities": panels.probabilities,
    }
    drawn = overlay_of(panels, values, opacity=opacity, threshold=threshold)
    return {
        "map.npy": _bytes(lambda file: np.save(file, raw)),
        "map.png": _png(Image.fromarray(np.rint(255 * values).astype(np.uint8))),
        "map.whole.png": _png(_on_file(looks, session, title)),
        "overlay.png": _png(Image.fromarray(drawn)),
        "kept.png": _png(Image.fromarray(to_uint8(panels.kept))),
        "removed.png": _png(Image.fromarray(to_uint8(panels.removed))),
        "whole.png": _png(Image.fromarray(to_uint8(panels.whole))),
        "facts.json": (json.dumps(facts, indent=2) + "\n").encode(),
    }


def _on_file(looks: Looks, session: Visit, title: str) -> Image.Image:
    values = looks.on_file(session, title)
    looked = values.isfinite()
    grey = (255 * values.nan_to_num(0)).round().to(torch.uint8)
    return Image.merge("LA", [Image.fromarray(one.numpy()) for one in (grey, looked.to(torch.uint8) * 255)])


def _png(picture: Image.Image) -> bytes:
    return _bytes(lambda file: picture.save(file, format="PNG", compress_level=1))


def _bytes(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()
