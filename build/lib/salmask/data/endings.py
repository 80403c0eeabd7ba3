"""Which files are pictures that can be read here, by the endings of their names."""

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import features

__all__ = ["ignored_files", "is_picture", "list_pictures"]

_ALWAYS = [".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
_WITH_PILLOW = {".avif": "avif", ".jp2": "jpg_2000"}
_WITH_EXTRA = {".heic": ("heic", "pillow_heif"), ".heif": ("heic", "pillow_heif"), ".dcm": ("dicom", "pydicom")}
_BESIDE_PICTURES = frozenset(
    [".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".md", ".npy", ".npz", ".tsv", ".txt", ".xml", ".yaml", ".yml"]
)


class _Suffixes(NamedTuple):
    read: frozenset[str]
    missing: Mapping[str, str]


def _suffixes() -> _Suffixes:
    """Return which endings can be read here, and what those lack that cannot."""
    read, missing = set(_ALWAYS), {}
    for suffix, feature in _WITH_PILLOW.items():
        if features.check(feature):
            read.add(suffix)
        else:
            missing[suffix] = "a Pillow built with it"
    for suffix, (extra, module) in _WITH_EXTRA.items():
        if importlib.util.find_spec(module) is not None:
            read.add(suffix)
        else:
            missing[suffix] = f"the extra: pip install 'salmask[{extra}]'"
    return _Suffixes(frozenset(read), missing)


def is_picture(path: Path) -> bool:
    """Return whether a file's name is that of a picture that can be read here."""
    return path.suffix.lower() in _suffixes().read and not path.name.startswith(".")


def list_pictures(folder: Path) -> list[str]:
    """Return the names of the pictures in a folder, sorted; none of its folders, whatever they are called."""
    read = _suffixes().read
    names = (path for path in folder.iterdir() if path.suffix.lower() in read and not path.name.startswith("."))
    names = (path for path in names if _is_text(path.name))
    return sorted(path.name for path in names if not path.is_dir())


def _is_text(name: str) -> bool:
    """Return whether a file's name can be written down: Linux also takes bytes that are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def ignored_files(folders: Sequence[Path]) -> str:
    """Return what is left out of some folders of pictures, counted by ending and with what it lacks; "" for nothing.

    Hidden files and what often lies beside pictures (tables, notes, maps) are not counted.
    """
    suffixes, count = _suffixes(), Counter[str]()
    for folder in folders:
        for path in folder.iterdir():
            if path.name.startswith(".") or path.suffix.lower() in _BESIDE_PICTURES or path.name == "Thumbs.db":
                continue
            if path.is_dir():
                count["folders"] += 1
            elif not _is_text(path.name):
                count["with a name that is no UTF-8"] += 1
            elif path.suffix.lower() not in suffixes.read:
                count[path.suffix.lower() or "without an ending"] += 1
    remedies = {suffix: f" (needs {lack})" for suffix, lack in suffixes.missing.items()}
    return ", ".join(f"{number} {kind}{remedies.get(kind, '')}" for kind, number in sorted(count.items()))
