"""The pictures of a folder in its page: a row an image, a column an explainer, each strip embedded once."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from salmask.report.sheet import panels_of, read_picture
from salmask.rows.read import file_name

__all__ = ["CELL", "SIDES", "SOUNDS", "PictureGrid", "embedded", "picture_files", "picture_grid", "sound_name"]

CELL = 112  # pixels of a picture's panel in the page


SOUNDS = "sounds"
"""Folder of an evaluation's sounds: IMAGE.wav, and EXPLAINER/IMAGE.kept.wav and IMAGE.removed.wav."""
SIDES = ("kept", "removed")


@dataclass(frozen=True)
class PictureGrid:
    """explainers: heads of the columns. rows: (image, its picture, strip by explainer or what stands there instead).

    sounds: (explainer, image) -> (what it is, address) of each sound; the recording itself has the explainer "".
    """

    explainers: Sequence[str]
    rows: Sequence[tuple[str, str, Mapping[str, tuple[str, str]]]]
    sounds: Mapping[tuple[str, str], Sequence[tuple[str, str]]] = field(default_factory=dict)


def picture_files(folder: Path, explainers: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Return explainer -> file name of an image -> its strip, for the explainers that have pictures."""
    places = {name: folder / "pictures" / file_name(name) for name in explainers}
    return {name: {path.stem: path for path in at.glob("*.png")} for name, at in places.items() if at.is_dir()}


def picture_grid(
    files: Mapping[str, Mapping[str, Path]],
    ids: Sequence[str],
    failures: Sequence[Mapping[str, str]],
    *,
    page: Path,
) -> PictureGrid:
    """Return the grid of `picture_files`; ids: of all images, by which file names are read. page: its folder."""
    names = {file_name(image): image for image in ids}
    failed = {(one["explainer"], file_name(one["image"])) for one in failures}
    rows = []
    for image in sorted({stem for table in files.values() for stem in table}):
        strips = {name: _small(table[image]) for name, table in files.items() if image in table}
        cells = {
            name: (_embed(strips[name][1]), "")
            if name in strips
            else ("", "failed" if (name, image) in failed else "–")
            for name in files
        }
        rows.append((names.get(image, image), _embed(next(iter(strips.values()))[0]), cells))
    return PictureGrid(list(files), rows, _sounds(page, [image for image, _, _ in rows], list(files)))


def _sounds(
    page: Path, images: Sequence[str], explainers: Sequence[str]
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Return the sounds beside a page, by addresses from there: sounds are too large to be held by the page itself."""
    there: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for image in images:
        names = {"": [("original", sound_name(image))]}
        for explainer in explainers:
            names[explainer] = [(side, f"{file_name(explainer)}/{sound_name(image, side)}") for side in SIDES]
        for explainer, pairs in names.items():
            at = [(what, f"{SOUNDS}/{quote(name)}") for what, name in pairs if (page / SOUNDS / name).is_file()]
            if at:
                there[explainer, image] = at
    return there


def sound_name(image: str, side: str = "") -> str:
    """Return the file name of a recording, or of what is kept or removed of it: `a.wav` and `a.kept.wav` of `a.wav`.

    Of another kind of file its ending stays, so that two recordings are two files: `a.flac.wav` of `a.flac`.
    """
    return f"{file_name(image.removesuffix('.wav'))}{'.' * bool(side)}{side}.wav"


def embedded(path: Path) -> str:
    """Return a picture as it is, as an address that holds it. Errors: ValueError for a broken file."""
    return _embed(read_picture(path))


def _small(path: Path) -> tuple[Image.Image, Image.Image]:
    """Return the image, and overlay | kept | removed, as small pictures."""
    panels = panels_of(path)
    side, height = panels[0].size
    scale = min(1.0, CELL * 1.25 / side)  # a little more than shown, for dense screens
    size = max(1, round(side * scale)), max(1, round(height * scale))
    rest = Image.new("RGB", (3 * side, height))
    for i, panel in enumerate(panels[1:]):
        rest.paste(panel, (i * side, 0))
    lanczos = Image.Resampling.LANCZOS
    return panels[0].resize(size, lanczos), rest.resize((3 * size[0], size[1]), lanczos)


def _embed(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
