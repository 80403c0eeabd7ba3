"""Explain files and write what a person can look at.

STEM.png         picture, mask, kept, removed, probabilities: what the classifier saw
STEM.npy         the raw map (size, size) of what the classifier saw
STEM.whole.png   the map laid over the whole file; what the classifier has not seen stays without colour
STEM.whole.npy   the map at the size of the file; not a number where the classifier has not looked

Of a classifier of several inputs a file of any of them names the scene, whose other files lie in the folders beside it.
Inputs lie side by side in pictures; of explainers with a map for each input, the arrays are (K, size, size).
"""

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from salmask.data.depth import settled
from salmask.data.endings import ignored_files, list_pictures
from salmask.data.pairs import SceneReader
from salmask.data.streams import Bar
from salmask.evaluation.panels import Panels, beside, class_names_of, masks_beside, played_panels, seen
from salmask.explain.base import Explainer, Explanation
from salmask.files import Facts, replace_file, writable_folder
from salmask.report.pictures import overlay, picture
from salmask.training.run import Loaded

__all__ = [
    "ExplainedFile",
    "Shown",
    "class_index",
    "explain_files",
    "explained_file",
    "figure_of",
    "named_pictures",
    "on_scale",
    "pictures_in",
    "save_array",
    "title_of",
    "write_png",
]

_ENDINGS = (".png", ".npy", ".whole.png", ".whole.npy", ".kept.wav", ".removed.wav")
_LONGEST = 200  # bytes of a file name without its ending; file systems take 255, and the writer adds a few
_OURS = "salmask explain"
Read: TypeAlias = Callable[[Path], Tensor]


@dataclass(frozen=True)
class Shown:
    """What is written of a decision: the class explained, the scale of the map, how many classes are listed."""

    target: str | None = None
    normalize: str | None = None
    top: int = 3

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"expected at least one class probability to show (top, --top), got {self.top}")


@dataclass(frozen=True)
class ExplainedFile:
    """What became of one file: the class explained, its probability on each picture, and what was written.

    probability: "whole", "kept", "removed" -> in [0, 1]. class_agnostic: the map is the same whatever class is asked
    for. shown: what was written to look at and listen to, the figure first. beside: the other files written.
    """

    file: Path
    explained: str
    class_agnostic: bool
    probability: Mapping[str, float]
    shown: tuple[Path, ...]
    beside: tuple[Path, ...]

    def facts(self) -> Facts:
        """Return it as JSON has it. All are texts, so that --quiet does not take the file for one that was written."""
        return {
            "file": str(self.file),
            "class": self.explained,
            "class_agnostic": self.class_agnostic,
            "probability": dict(self.probability),
            "written": [str(path) for path in (*self.shown, *self.beside)],
        }


def explain_files(
    paths: Sequence[Path],
    name: str,
    explainer: Explainer,
    loaded: Loaded,
    *,
    out: Path,
    shown: Shown | None = None,
    skip_broken: bool = False,
    max_pixels: int | None = None,
    progress: Bar = iter,
    say: Callable[[str], None] = lambda text: None,
) -> list[ExplainedFile]:
    """Explain picture files, or all in a folder, one by one; return what became of each.

    All files are read before the first is explained, so that a broken one loses no work; skip_broken leaves those
    that cannot be read out, with a warning that names them. No file that something else has written is
    overwritten. say: prints one line where the classifier sees less than the file.
    """
    shown = Shown() if shown is None else shown
    names = class_names_of(loaded)
    chosen = None if shown.target is None else torch.tensor([class_index(shown.target, names)])
    if explainer.wants & {"boxes", "pixels"}:
        raise ValueError(f"{name} needs ground truth, which picture files do not carry: use `salmask evaluate`")
    there, read = _read_as(loaded, pictures_in(paths), max_pixels)
    sizes = readable(there, read, skip_broken=skip_broken)
    files = named_pictures(list(sizes), writable_folder(out))
    cut = {path: loaded.sight.cut(*size) for path, size in sizes.items()}
    if any(height != width for height, width in sizes.values()):
        say(_fit_note(cut, loaded.sight.fit))
    done: list[ExplainedFile] = []
    for stem, path in progress(list(files.items())):
        image = read(path)
        images = seen(loaded, path.name, image)
        explanation = explainer(loaded.classifier, images, chosen)
        scaled = on_scale(explanation, shown.normalize)
        (panels,) = played_panels(loaded, images, scaled.masks, explanation, top=shown.top, names=names)
        lost = f", {cut[path]:.0%} of the file cut off" if _worth_saying(cut[path]) else ""
        write_png(out, stem, figure_of(panels, title_of(path.name, name, explanation, names, lost=lost)))
        whole = _write_whole(out, stem, image, explanation, scaled, loaded)
        replace_file(out / f"{stem}.npy", partial(save_array, _of_one(explanation.masks)))
        done.append(explained_file(path, panels, explanation, (out / f"{stem}.png",), (out / f"{stem}.npy", *whole)))
    if shown.target is not None and any(one.class_agnostic for one in done):
        warnings.warn(f"{name} is class-agnostic: its maps are the same whatever class is asked for", stacklevel=2)
    return done


def _read_as(loaded: Loaded, files: Sequence[Path], max_pixels: int | None) -> tuple[list[Path], Read]:
    """Return the files that name the scenes, each once, and what reads them as the classifier sees them."""
    read, inputs = loaded.reader(max_pixels=max_pixels), loaded.classifier.inputs
    if inputs is None:
        return list(files), settled(read, files)
    scenes = SceneReader(inputs, read)
    named = [scenes.scene(path) for path in files]
    return list({os.path.realpath(path): path for path in reversed(named)}.values())[::-1], scenes


def _of_one(masks: Tensor) -> Tensor:
    """Return the map of one picture: (H, W), or (K, H, W) with one for each of several inputs."""
    return masks[0, 0] if masks.shape[1] == 1 else masks[0]


def explained_file(
    path: Path, panels: Panels, explanation: Explanation, shown: tuple[Path, ...], beside: tuple[Path, ...]
) -> ExplainedFile:
    """Return what became of one file; shown, beside: the files written."""
    probability = panels.explained_probability
    return ExplainedFile(path, panels.explained, explanation.class_agnostic, probability, shown, beside)


def pictures_in(paths: Iterable[Path]) -> list[Path]:
    """Return the picture files named, each once; those in a folder, sorted, where a folder is named.

    Errors: ValueError for none, or a folder without pictures.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = [path / name for name in list_pictures(path)]
            ignored = ignored_files([path])
            if not inside:
                raise ValueError(f"the folder {path} has no pictures: got {ignored or 'nothing'}")
            if ignored:
                warnings.warn(f"not read in {path}: {ignored}", stacklevel=3)
        for file in inside:
            files.setdefault(Path(os.path.realpath(file)), file)  # which takes links that lead in a circle
    if not files:
        raise ValueError("no picture to explain: name at least one file or folder")
    return list(files.values())


def readable(files: Sequence[Path], read: Read, *, skip_broken: bool) -> dict[Path, tuple[int, int]]:
    """Return height and width of the files that can be read; others are left out with a warning, or are an error."""
    good = {}
    for path in files:
        try:
            height, width = read(path).shape[-2:]
        except (ValueError, OSError) as error:
            if not skip_broken:
                raise
            warnings.warn(f"left out: {error}", stacklevel=3)
        else:
            good[path] = (height, width)
    if not good:
        raise ValueError("none of the pictures can be decoded")
    return good


def named_pictures(paths: Sequence[Path], out: Path) -> dict[str, Path]:
    """Return output name -> file: a name of its own for each, also where a system does not tell a from A.

    A file keeps its stem, cut where it is too long. Files of one stem get that of their folder, and a number where
    that is not enough. A name under which the folder already holds what is not of `explain` ends in ".explained".
    """
    stems = [_folded(path.stem) for path in paths]
    named: dict[str, Path] = {}
    taken: set[str] = set()
    for path, stem in zip(paths, stems, strict=True):
        wish = path.stem if stems.count(stem) == 1 else f"{path.parent.name}__{path.stem}{path.suffix}"
        name, number = _short(wish), 1
        while taken & {_folded(name + ending) for ending in _ENDINGS}:
            number += 1
            name = f"{_short(wish)}-{number}"
        if not _free(out, name):
            name += ".explained"
            if not _free(out, name):
                raise ValueError(f"{out} holds {name}.png of something else: explain into another folder")
        taken |= {_folded(name + ending) for ending in _ENDINGS}
        named[name] = path
    return named


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _short(name: str) -> str:
    data = name.encode()
    if len(data) <= _LONGEST:
        return name
    mark = hashlib.blake2b(data, digest_size=4).hexdigest()
    return f"{data[: _LONGEST - 9].decode(errors='ignore')}-{mark}"


def _free(out: Path, name: str) -> bool:
    """Return whether the output names are free, or taken by an earlier `explain`."""
    if not any((out / f"{name}{ending}").exists() for ending in _ENDINGS):
        return True
    try:
        with Image.open(out / f"{name}.png") as figure:
            return figure.info.get("Software") == _OURS
    except OSError:
        return False


def _worth_saying(share: float) -> bool:
    return share >= 0.005


def _fit_note(cut: Mapping[Path, float], fit: str) -> str:
    """Return one line on what becomes of pictures that are not square."""
    files = "; maps at the size of the file: *.whole.png and *.whole.npy"
    if fit != "crop":
        how = "pressed to squares" if fit == "squash" else "shown whole, with grey beside them"
        return f"pictures that are not square are {how} ({fit}), nothing is cut off{files}"
    most, count = max(cut, key=lambda path: cut[path]), sum(map(_worth_saying, cut.values()))
    return (
        f"the classifier sees the middle of a picture (crop): {cut[most]:.0%} of {most.name} is cut off"
        + (f", of {count - 1} more up to as much" if count > 1 else "")
        + f"; --fit pad or --fit squash show it the whole picture{files}"
    )


def figure_of(panels: Panels, title: str) -> Image.Image:
    """Return the figure of one picture: itself, the mask, what is kept and removed, and the probabilities."""
    return picture(panels.whole, panels.mask, panels.kept, panels.removed, panels.probabilities, title=title)


def write_png(out: Path, stem: str, image: Image.Image) -> None:
    """Write a figure, marked as one of ours."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", _OURS)
    replace_file(out / f"{stem}.png", partial(image.save, format="PNG", pnginfo=mark))


def _write_whole(
    out: Path, stem: str, image: Tensor, explanation: Explanation, shown: Explanation, loaded: Loaded
) -> tuple[Path, ...]:
    """Write map and overlay at the size of the file, where that is another than the map's; return the files."""
    height, width = image.shape[-2:]
    if explanation.masks.shape[-2:] == (height, width):
        for ending in _ENDINGS[2:4]:  # of an earlier look at the file, fitted in another way
            (out / f"{stem}{ending}").unlink(missing_ok=True)
        return ()
    whole, values = (loaded.sight.to_file(one.masks.detach().cpu(), height, width) for one in (explanation, shown))
    replace_file(out / f"{stem}.whole.npy", partial(save_array, _of_one(whole)))
    values = masks_beside(loaded.classifier, values)[0, 0]
    colours = beside(loaded.classifier, image[None].float() / 255, loaded.view.colours)[0]
    unseen = values.isnan()
    drawn = torch.from_numpy(overlay(colours, values.nan_to_num(0).clamp(0, 1)).copy())
    outside = (colours.permute(1, 2, 0) * 255).round().to(torch.uint8)
    drawn[unseen] = outside[unseen]
    write_png(out, f"{stem}.whole", Image.fromarray(drawn.numpy()))
    return out / f"{stem}.whole.png", out / f"{stem}.whole.npy"


def class_index(target: str, names: Sequence[str]) -> int:
    """Return the class that a name or an index means. Errors: ValueError for what is neither."""
    if target in names:
        return list(names).index(target)
    if target.isdecimal() and int(target) < len(names):
        return int(target)
    raise ValueError(
        f"no class {target!r}: expected an index below {len(names)} or a name such as {', '.join(names[:5])}"
    )


def on_scale(explanation: Explanation, normalize: str | None) -> Explanation:
    """Return an explanation in [0, 1]."""
    return explanation.bounded() if normalize is None else explanation.normalized(normalize)


def title_of(file: str, name: str, explanation: Explanation, names: Sequence[str], *, lost: str = "") -> str:
    """Return the line above a figure: file, explainer, class, and the layers that the map was made from."""
    return f"{file}: {name}, {_explained(explanation, names)}{lost}{_layers_read(explanation)}"


def _explained(explanation: Explanation, names: Sequence[str]) -> str:
    if explanation.class_agnostic:
        return "the same for every class"
    return f"class explained: {names[int(explanation.targets[0])]}"


def _layers_read(explanation: Explanation) -> str:
    """Return which layers the map was made from, as the title has it."""
    if not explanation.layers:
        return ""
    return f", read at layer{'s' * (len(explanation.layers) > 1)} {', '.join(explanation.layers)}"


def save_array(array: Tensor, path: Path) -> None:
    """Write a map as .npy."""
    with path.open("wb") as file:
        np.save(file, array.detach().float().cpu().numpy())
