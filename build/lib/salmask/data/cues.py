"""Pictures with two cues of the class, which can be had together, apart and in conflict: which one does a network use?

    CuePictures(n, seed=0, cues={"shape": 1.0, "mark": 1.0})      together
    CuePictures(n, seed=0, cues={"shape": 1.0})                   apart: the other one is not there
    CuePictures(n, seed=0, cues={"shape": 1.0, "mark": 0.0})      in conflict: the mark never says the label
    CuePictures(n, seed=0, cues={"shape": 1.0, "mark": 0.25})     unrelated: of four classes, the mark says any

A number is the share of the pictures in which a cue says the label; in the others it says another class, drawn
uniformly. There are four classes, and three cues that never cover each other:

    shape     the outline of a large object of any colour, anywhere
    texture   a small disc, anywhere, with stripes of one of three directions or with dots, of any colours
    mark      a small square in the upper left corner, of one of four colours

The ground is that of `data.synthetic`. Where the cues lie is known to the pixel. Everything is a function of (seed,
index, size, cues).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch.utils.data import Dataset

from salmask.boxes import boxes_of
from salmask.data.sample import Sample, SampleTransform
from salmask.data.synthetic import (
    SHAPES,
    VIVID,
    Colours,
    Plane,
    blend,
    covered,
    draw_colour,
    ground,
    placed,
)
from salmask.types import Pixels

__all__ = ["CUES", "CuePictures", "Planted"]

_OUTLINES = ("cross", "disc", "ring", "triangle")
_MARKS = ((0.9, 0.15, 0.15), (0.15, 0.75, 0.2), (0.2, 0.3, 0.95), (0.95, 0.85, 0.15))
_MARK_SIDE = 6  # the picture's side over the mark's
_DISC = 6.5  # the picture's side over the radius of the textured disc
_TRIES = 200
CUES = ("shape", "texture", "mark")
"""The cues, in the order in which they are drawn."""


class Planted(NamedTuple):
    """What is drawn into a picture: cue -> the class that it says, and cue -> its pixels, (H, W) of 0 and 1."""

    said: Mapping[str, int]
    pixels: Mapping[str, Pixels]


class CuePictures(Dataset[Sample]):
    """`n` pictures of `size` x `size` pixels, four classes in equal shares, with cues that say the label or do not.

    cues: cue -> the share of the pictures in which it says the label, in [0, 1]; a cue that is not named is not there.
    The pixels and boxes of a sample are those of all its cues that say the label; `planted` has each cue's own.
    Errors: ValueError for an unknown cue, none at all, a share outside [0, 1], n below 1, a size below 32, a negative
    seed.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        cues: Mapping[str, float],
        size: int = 48,
        transform: SampleTransform | None = None,
    ) -> None:
        if n < 1 or size < 32 or seed < 0:
            raise ValueError(f"expected n >= 1, size >= 32 and seed >= 0; got {n}, {size} and {seed}")
        if not cues or not set(cues) <= set(CUES) or not all(0 <= share <= 1 for share in cues.values()):
            raise ValueError(
                f"expected cues among {', '.join(CUES)}, each with a share from 0 to 1 of the pictures in which it "
                f"says the label; got {dict(cues)}"
            )
        self.size, self.seed, self.transform = size, seed, transform
        self.cues = MappingProxyType({cue: float(cues[cue]) for cue in CUES if cue in cues})
        self.classes = list(_OUTLINES)
        self.targets = [self._target(index) for index in range(n)]
        words = "-".join(f"{cue}{share:g}" for cue, share in self.cues.items())
        self.ids = [f"cues-{words}-{seed}/{index:05d}.png" for index in range(n)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        picture, planted = self._drawn(index)
        target = self.targets[index]
        true = [planted.pixels[cue] for cue, said in planted.said.items() if said == target]
        pixels = torch.stack(true).amax(0) if true else torch.zeros(self.size, self.size, dtype=torch.uint8)
        image = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
        sample = Sample(id=self.ids[index], image=image, target=target, boxes=boxes_of(pixels), pixels=pixels)
        return sample if self.transform is None else self.transform(sample)

    def said(self, index: int) -> dict[str, int]:
        """Return the class that each cue of a picture says, without drawing it."""
        others = len(self.classes) - 1
        found = {}
        for place_of, cue in enumerate(CUES):
            if cue in self.cues:
                rng = np.random.default_rng([self.seed, index, 2, place_of])
                agrees, other = rng.random() < self.cues[cue], int(rng.integers(1, others + 1))
                found[cue] = (self.targets[index] + (0 if agrees else other)) % len(self.classes)
        return found

    def planted(self, index: int) -> Planted:
        """Return what is drawn into a picture, as it is before the transform."""
        return self._drawn(index)[1]

    def _target(self, index: int) -> int:
        block, place_of = divmod(index, len(_OUTLINES))
        return int(np.random.default_rng([self.seed, block, 0]).permutation(len(_OUTLINES))[place_of])

    def _drawn(self, index: int) -> tuple[np.ndarray, Planted]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pictures")
        said, rng = self.said(index), np.random.default_rng([self.seed, index, 1])
        canvas = ground(rng, self.size)
        covers = {cue: cover for cue, cover in _covers(rng, said, self.size).items() if cue in said}
        for cue, cover in covers.items():
            canvas = blend(canvas, cover, _surface_of(cue, said[cue], rng, self.size))
        grain = 0.02 * rng.standard_normal(canvas.shape, dtype=np.float32)
        picture = np.round(np.clip(canvas + grain, 0, 1) * 255).astype(np.uint8)
        pixels = {cue: torch.from_numpy((cover >= 0.5).astype(np.uint8)) for cue, cover in covers.items()}
        return picture, Planted(said, pixels)


def _covers(rng: Generator, said: Mapping[str, int], size: int) -> dict[str, Plane]:
    """Return the cover of each cue; object and disc are placed anew until nothing lies on anything else.

    The corner is kept free and all three are placed also where they are not drawn, so that where things lie does not
    tell which cues there are.
    """
    mark = np.zeros((size, size), np.float32)
    side = round(size / _MARK_SIDE)
    mark[1 : 1 + side, 1 : 1 + side] = 1
    outline = SHAPES[_OUTLINES[said.get("shape", 0)]]()
    turn = 2 * np.pi * np.arange(40) / 40
    for _ in range(_TRIES):
        shape = covered(placed(rng, outline, size), size)
        centre = rng.uniform(size / _DISC, size - size / _DISC, 2)
        disc = covered([centre + size / _DISC * np.stack([np.cos(turn), np.sin(turn)], 1)], size)
        if not ((shape > 0) & (disc > 0)).any() and not ((shape + disc > 0) & (mark > 0)).any():
            return {"shape": shape, "texture": disc, "mark": mark}
    raise ValueError(
        f"found no place for the cues in a picture of {size} pixels after {_TRIES} tries: take a larger size"
    )


def _surface_of(cue: str, said: int, rng: Generator, size: int) -> Colours:
    """Return the colours of a cue that says a class, (size, size, 3)."""
    if cue == "mark":
        return np.broadcast_to(np.array(_MARKS[said], np.float32), (size, size, 3))
    colour = draw_colour(rng, *VIVID)
    if cue == "shape":
        return np.broadcast_to(colour, (size, size, 3))
    other = colour + 0.8 * (draw_colour(rng, 0.0, 0.15) - colour)
    weight = _texture(said, rng.uniform(0, 2 * np.pi, 2), size)[..., None]
    return (weight * colour + (1 - weight) * other).astype(np.float32)


def _texture(said: int, phase: np.ndarray, size: int) -> Plane:
    """Return a texture of a class as a weight in [0, 1]: stripes that lie, stand or slope, or dots."""
    wave = 2 * np.pi / max(4.0, size / 12)
    rows, columns = wave * np.arange(size, dtype=np.float32)[:, None], wave * np.arange(size, dtype=np.float32)[None]
    waves = (
        np.sin(rows + phase[0]) + 0 * columns,
        np.sin(columns + phase[0]) + 0 * rows,
        np.sin((rows + columns) / np.sqrt(2) + phase[0]),
        1.5 * np.sin(rows + phase[0]) * np.sin(columns + phase[1]),
    )
    return np.clip(0.5 + 0.7 * waves[said], 0, 1).astype(np.float32)
