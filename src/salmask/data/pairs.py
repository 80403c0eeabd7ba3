"""Several images of one scene in paired folders, such as colour and depth.

    root/rgb/<split>/<class>/*.jpg       each input is a data folder of its own (`ImageFolder`)
    root/depth/<split>/<class>/*.png     partners have one class and one name, whatever their ending
    root/rgb/<split>_boxes.csv           boxes and pixel masks lie in the folder of one of the inputs

An input whose name ends in `_jet` is the one-channel input of the name before, shown in the colours from blue to red,
as the depth of Kicki et al. (2021) is. Values of 16 bits need a range that is the same for all files: window and level
in the files' own units (2000 and 1500: from 0.5 to 2.5 m in millimetres), or the bits that they use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from salmask.classifier.fusion import JET
from salmask.classifier.inputs import Inputs
from salmask.data.endings import list_pictures
from salmask.data.folders import ImageFolder
from salmask.data.pictures import Reader
from salmask.data.sample import SampleTransform

__all__ = ["PairedFolder", "SceneReader", "in_jet", "is_paired"]

COLOUR = 3


def is_paired(root: Path) -> bool:
    """Return whether a folder holds the inputs `rgb` and `depth`."""
    return (root / "rgb").is_dir() and (root / "depth").is_dir()


def in_jet(values: UInt8[Tensor, "1 height width"]) -> UInt8[Tensor, "3 height width"]:
    """Return one channel in colours from blue (low) over green to red (high): clip(1.5 - abs(4 v - c)), c = 3, 2, 1."""
    scaled = 4 * values.float() / 255
    planes = [1.5 - (scaled - centre).abs() for centre in (3.0, 2.0, 1.0)]
    return (torch.cat(planes).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class SceneReader:
    """Reads one scene of several inputs, a file each; the image holds them stacked, in the order of `inputs`.

    inputs: as the classifier reads them. measure: window, level and depth are those of 16-bit files, max_pixels of all.
    """

    inputs: Inputs
    measure: Reader

    @property
    def folders(self) -> list[str]:
        """Names of the folders of files that are read: an input in colours is made from the one before it."""
        return _folders(self.inputs.names)

    def __call__(self, path: Path) -> UInt8[Tensor, "channels height width"]:
        """Read the scene that one of its files names. Errors: as `partners` and `stacked`."""
        return self.stacked(self.partners(path), str(path))

    def partners(self, path: Path) -> dict[str, Path]:
        """Return the file of each input: `path` as it is, the others in the folders beside that of its input.

        Of the parts of the path that name an input, the last one counts: data/rgb/val/cup/a.jpg and
        data/depth/val/cup/a.png are one scene. Errors: ValueError for a path without such a part, and for no partner.
        """
        folders = self.folders
        if len(folders) == 1:
            return {folders[0]: path}
        parts = path.absolute().parts[:-1]
        places = [place for place, part in enumerate(parts) if part in folders]
        if not places:
            raise ValueError(
                f"the classifier reads several inputs, and {path} lies in the folder of none: expected "
                f"{' and '.join(f'.../{name}/.../{path.stem}.*' for name in folders)}"
            )
        own = parts[places[-1]]
        found = {own: path}
        for name in folders:
            if name != own:
                folder = Path(*parts[: places[-1]], name, *parts[places[-1] + 1 :])
                files = (
                    [file for file in list_pictures(folder) if Path(file).stem == path.stem] if folder.is_dir() else []
                )
                if len(files) != 1:
                    wrong = f"{len(files)} pictures" if files else "no picture"
                    raise ValueError(f"{path} needs a partner of its name in {folder}, which has {wrong} of it")
                found[name] = folder / files[0]
        return found

    def scene(self, path: Path) -> Path:
        """Return the file of the first input, by which a scene is named whichever of its files is given."""
        return self.partners(path)[self.folders[0]]

    def stacked(self, files: Mapping[str, Path], scene: str) -> UInt8[Tensor, "channels height width"]:
        """Return the inputs of a scene from a file for each folder. Errors: ValueError for sizes that differ."""
        parts = {name: self._input(name, count, files) for name, count in self.inputs.settings().items()}
        sizes = {name: tuple(part.shape[1:]) for name, part in parts.items()}
        if len(set(sizes.values())) > 1:
            words = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
            raise ValueError(
                f"the inputs of {scene} must have one size, got {words}: align them, and resize them to one"
            )
        return torch.cat(list(parts.values()))

    def _input(self, name: str, channels: int, files: Mapping[str, Path]) -> UInt8[Tensor, "channels height width"]:
        path = files[name.removesuffix(JET)]
        if name.endswith(JET):
            return in_jet(self._measured(path, 1))
        if channels == COLOUR:
            return Reader(COLOUR, max_pixels=self.measure.max_pixels)(path)
        return self._measured(path, channels)

    def _measured(self, path: Path, channels: int) -> UInt8[Tensor, "channels height width"]:
        """Read values that are measured and not seen, such as depth."""
        read, deep = replace(self.measure, channels=channels, bands=None), _is_deep(path)
        if deep and read.window is None and read.depth is None:
            raise ValueError(
                f"{path} has 16 bits, and nothing says which values are black and white: give a range that is the same "
                "for all files by --window (its width) and --level (its centre), such as 2000 and 1500 for 0.5 to "
                "2.5 m in millimetres, or the bits that the files use (--depth 16)"
            )
        return read(path) if deep else replace(read, window=None, level=None, depth=None)(path)


class PairedFolder(ImageFolder):
    """Scenes of several inputs; a sample's image holds them stacked along the channels, in the order of `inputs`.

    inputs: name -> channels, as the classifier reads them; None: the scenes can be counted, but not read.
    read: window, level and depth are those of 16-bit files. Otherwise as `ImageFolder`, of the folder that has boxes or
    pixel masks, else of the first input.
    Errors: as `ImageFolder`; ValueError for a missing partner, and for partners that differ in size.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        inputs: Mapping[str, int] | Inputs | None = None,
        transform: SampleTransform | None = None,
        skip_broken: bool = False,
        classes: Sequence[str] | None = None,
        read: Reader | None = None,
    ) -> None:
        measure, self._scenes = Reader() if read is None else read, Path(root)
        self.inputs = inputs if inputs is None or isinstance(inputs, Inputs) else Inputs.of(inputs)
        names = ("rgb", "depth") if self.inputs is None else self.inputs.names
        self._stack = None if self.inputs is None else SceneReader(self.inputs, measure)
        folders = _folders(names)
        for name in folders:
            if not (self._scenes / name).is_dir():
                there = ", ".join(sorted(path.name for path in self._scenes.glob("*") if path.is_dir()))
                raise FileNotFoundError(f"no folder of the input {name!r} in {root}: it holds {there or 'no folders'}")
        truth = [path for path in sorted(self._scenes.glob("*")) if _has_truth(path, split)]
        home = truth[0] if truth else self._scenes / folders[0]
        plain = Reader(COLOUR, max_pixels=measure.max_pixels)
        super().__init__(home, split, transform=transform, classes=classes, read=plain)
        self._partners = {name: self._partners_in(name, lonely=not skip_broken) for name in folders}
        if skip_broken:
            self.leave_out_broken()

    def picture(self, index: int) -> UInt8[Tensor, "channels height width"]:
        """Return the inputs of a scene, stacked. Errors: ValueError for sizes that differ."""
        return self.passed_over_or(partial(self._stacked, self.ids[index]))

    def _stacked(self, scene: str) -> UInt8[Tensor, "channels height width"]:
        if self._stack is None:
            raise ValueError(
                f"{self._scenes} holds several inputs, and nothing says which are read: name a classifier of some, "
                "such as early:rgb+depth:NAME, or give inputs={'rgb': 3, 'depth': 1}"
            )
        return self._stack.stacked({name: partners[scene] for name, partners in self._partners.items()}, scene)

    def _unread(self, path: Path) -> str | None:
        """Return why one of the inputs of a scene cannot be read, or None where all can."""
        try:
            self._stacked(path.relative_to(self.root).as_posix())
        except (ValueError, OSError) as error:
            return str(error)
        return None

    def _partners_in(self, name: str, *, lonely: bool) -> dict[str, Path]:
        """Return the file of each scene in the folder of an input.

        Errors: ValueError for a scene without a partner there and, if `lonely`, for a file there without a scene.
        """
        home = self._scenes / name
        if home == self.root:
            return {scene: home / scene for scene in self.ids}
        found: dict[str, Path] = {}
        for folder in sorted({(home / scene).parent for scene in self.ids}):
            for file in list_pictures(folder) if folder.is_dir() else ():
                stem = (folder / file).relative_to(home).with_suffix("").as_posix()
                _check_alone(folder / file, found.setdefault(stem, folder / file))
        wanted: dict[str, str] = {}
        for scene in self.ids:
            stem = Path(scene).with_suffix("").as_posix()
            _check_alone(self.root / scene, self.root / wanted.setdefault(stem, scene))
        _check_partners([scene for stem, scene in wanted.items() if stem not in found], self.root, home)
        if lonely:
            _check_partners([stem for stem in found if stem not in wanted], home, self.root)
        return {scene: found[stem] for stem, scene in wanted.items()}


def _folders(inputs: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.removesuffix(JET) for name in inputs))


def _check_alone(file: Path, other: Path) -> None:
    if file != other:
        raise ValueError(
            f"{other} and {file.name} have one name, by which partners are found: rename or remove one of them"
        )


def _check_partners(missing: Sequence[str], here: Path, there: Path) -> None:
    if missing:
        raise ValueError(
            f"{len(missing)} of the pictures in {here} have no partner of their name in {there}, such as {missing[0]}: "
            "add it, or remove the picture"
        )


def _has_truth(folder: Path, split: str) -> bool:
    return (folder / f"{split}_boxes.csv").is_file() or (folder / f"{split}_masks").is_dir()


def _is_deep(path: Path) -> bool:
    """Return whether a file has more than 8 bits a value."""
    with Image.open(path) as picture:
        return picture.mode.startswith(("I", "F"))
