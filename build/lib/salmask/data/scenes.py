"""Built-in scenes of colour and depth whose evidence is known: to the pixel, and to the input that carries it.

The class of a scene is an outline, as in `synthetic`. Where it shows is drawn for each scene:

| carrier | colour | depth |
|---|---|---|
| rgb | the outline, painted on the ground | no outline |
| depth | no outline: the thing wears the colours of the ground | the outline, raised from the ground |
| both | the outline | the outline, at the same place |

Distractors (blobs, splinters, bars) of their own lie in either input of every scene, so that an input without the
class is as full of things as one with it. Depth is in millimetres, as the 16-bit files of depth cameras hold it; in a
sample it is one channel of 8 bits over `RANGE`. Everything is a function of (seed, index, size).
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from PIL import Image
from torch.utils.data import Dataset

from salmask.boxes import boxes_of
from salmask.classifier.fusion import JET
from salmask.classifier.inputs import Inputs
from salmask.data import synthetic
from salmask.data.pairs import in_jet
from salmask.data.sample import Sample, SampleTransform

__all__ = ["CARRIERS", "RANGE", "Scenes", "write_pairs"]

CARRIERS = ("rgb", "depth", "both")
RANGE = (500.0, 2500.0)
"""Millimetres that are black and white."""
GROUND = (1700.0, 2300.0)  # of the ground, millimetres
RAISED = (350.0, 700.0)  # how far a thing stands out from it
GRAIN = 12.0  # noise of a depth camera

Plane = Float[np.ndarray, "height width"]


class Scenes(Dataset[Sample]):
    """`n` scenes of `size` x `size` pixels, ten classes in equal shares; `carriers` says where each class shows.

    inputs: name -> channels of what a sample's image holds, in this order, of rgb (3), depth (1) and depth_jet (3).
    shapes: names of the outlines, of `synthetic.SHAPES`; all where None.
    Errors: ValueError for n below 1, a size below 16, a negative seed, and other inputs or outlines.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        size: int = 64,
        inputs: Mapping[str, int] | None = None,
        shapes: Sequence[str] | None = None,
        transform: SampleTransform | None = None,
    ) -> None:
        if n < 1 or size < 16 or seed < 0:
            raise ValueError(f"expected n >= 1, size >= 16 and seed >= 0; got {n}, {size} and {seed}")
        self.inputs = Inputs.of({"rgb": 3, "depth": 1} if inputs is None else inputs)
        known = {"rgb": 3, "depth": 1, f"depth{JET}": 3}
        if not self.inputs.settings().items() <= known.items():
            raise ValueError(f"expected inputs of {known}, got {self.inputs.settings()}")
        self.classes = sorted(synthetic.SHAPES if shapes is None else shapes)
        if unknown := sorted(set(self.classes) - set(synthetic.SHAPES)):
            raise ValueError(f"no outline {unknown[0]!r}: expected some of {', '.join(synthetic.SHAPES)}")
        self.size, self.seed, self.transform = size, seed, transform
        self.targets = [self._drawn(index, len(self.classes), 0) for index in range(n)]
        self.carriers = [CARRIERS[self._drawn(index, len(CARRIERS), 2)] for index in range(n)]
        self.ids = [f"scenes-{seed}/{self.classes[label]}/{index:06d}.png" for index, label in enumerate(self.targets)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        colour, millimetres, cover = self.scene(index)
        rgb = torch.from_numpy(colour).permute(2, 0, 1).contiguous()
        low, high = RANGE
        depth = torch.from_numpy(np.round(((millimetres - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8))[None]
        made = {"rgb": rgb, "depth": depth, f"depth{JET}": in_jet(depth)}
        pixels = torch.from_numpy((cover >= 0.5).astype(np.uint8))
        image = torch.cat([made[name] for name in self.inputs.names])
        sample = Sample(
            id=self.ids[index], image=image, target=self.targets[index], boxes=boxes_of(pixels), pixels=pixels
        )
        return sample if self.transform is None else self.transform(sample)

    def scene(self, index: int) -> tuple[np.ndarray, Plane, Plane]:
        """Return colour, uint8 (H, W, 3), depth in whole millimetres (H, W), and how much of a pixel the object covers.

        Errors: IndexError beyond the last one.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} scenes")
        rng = np.random.default_rng([self.seed, index, 1])
        carrier, size = self.carriers[index], self.size
        cover = synthetic.covered(
            synthetic.placed(rng, synthetic.SHAPES[self.classes[self.targets[index]]](), size), size
        )
        colour = _colour(rng, cover if carrier != "depth" else np.zeros_like(cover))
        return colour, _depth(rng, cover if carrier != "rgb" else np.zeros_like(cover)), cover

    def _drawn(self, index: int, count: int, what: int) -> int:
        """Draw one of `count` values: every `count` scenes hold each once, in an order of their own."""
        block, place = divmod(index, count)
        return int(np.random.default_rng([self.seed, block, what]).permutation(count)[place])


def _colour(rng: Generator, cover: Plane) -> np.ndarray:
    size = cover.shape[0]
    canvas = synthetic.ground(rng, size)
    for _ in range(rng.integers(1, 4)):
        canvas = synthetic.painted(rng, canvas, synthetic.covered(synthetic.distractor(rng, size), size))
    canvas = synthetic.painted(rng, canvas, cover)
    grain = 0.02 * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.round(np.clip(canvas + grain, 0, 1) * 255).astype(np.uint8)


def _depth(rng: Generator, cover: Plane) -> Plane:
    """Return a tilted ground, from which distractors and the object stand out, in millimetres."""
    size = cover.shape[0]
    plane = rng.uniform(*GROUND) + rng.uniform(30, 150) * synthetic.ramp(rng, size)
    plane = plane + 25 * synthetic.waves(rng, size, slope=1.5, planes=1)[..., 0]
    for _ in range(rng.integers(1, 4)):
        plane = plane - rng.uniform(*RAISED) * synthetic.covered(synthetic.distractor(rng, size), size)
    plane = plane - rng.uniform(*RAISED) * cover
    return np.round(plane + GRAIN * rng.standard_normal(plane.shape)).clip(1, 65535)


def write_pairs(
    root: str | Path, *, train: int, val: int, seed: int, size: int = 64, shapes: Sequence[str] | None = None
) -> None:
    """Write scenes in the layout of `PairedFolder`: rgb/, depth/ (16 bits, millimetres), boxes and masks in rgb/.

    carriers.csv says where the class of each picture shows: image,carrier.
    """
    lines = [["image", "carrier"]]
    for offset, (split, n) in enumerate({"train": train, "val": val}.items()):
        scenes = Scenes(n, seed=2 * seed + offset, size=size, shapes=shapes)
        rows = [_write(Path(root), split, index, scenes) for index in range(n)]
        lines += [[str(row[0]), carrier] for row, carrier in zip(rows, scenes.carriers, strict=True)]
        with (Path(root) / "rgb" / f"{split}_boxes.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image", "class", "x0", "y0", "x1", "y1"], *rows])
    with (Path(root) / "carriers.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def _write(root: Path, split: str, index: int, scenes: Scenes) -> list[object]:
    colour, millimetres, cover = scenes.scene(index)
    label = scenes.classes[scenes.targets[index]]
    name, pixels = f"{split}/{label}/{index:06d}.png", (cover >= 0.5).astype(np.uint8)
    for folder, path, array in (
        ("rgb", name, colour),
        ("rgb", f"{split}_masks/{label}/{index:06d}.png", pixels * np.uint8(255)),
        ("depth", name, millimetres.astype(np.uint16)),
    ):
        (root / folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / folder / path)
    return [name, label, *boxes_of(torch.from_numpy(pixels))[0].int().tolist()]
