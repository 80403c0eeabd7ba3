"""Pictures whose evidence is known to the pixel: the data to try everything on, made in seconds.

A picture shows one textured object of ten classes among clutter. The class is the object's outline and
nothing else:

- colour, texture, size, place, stretch and rotation are drawn independently of the class;
- the ground is noise with a natural (1/f) spectrum, broken by regions with sharp borders;
- distractors (blobs, splinters, bars) wear the same textures and colours, as bright as the object, in every
  class, and now and then a line crosses the object.

So texture, colour, brightness, edges and the centre of the picture do not tell where the object is. That things
are brighter than the ground tells no class either; it lets a small network learn the outlines in a minute.
Drawing is supersampled; a pixel belongs to the object where at least half of it does and nothing lies on top.
Everything is a function of (seed, index, size).
"""

import csv
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import cast

import cv2
import numpy as np
import scipy.fft
import torch
from jaxtyping import Float
from numpy.random import Generator
from PIL import Image
from torch.utils.data import Dataset

from salmask.boxes import boxes_of
from salmask.data.sample import Sample, SampleTransform
from salmask.files import plain_arguments
from salmask.types import Pixels

__all__ = [
    "SHAPES",
    "VIVID",
    "Colours",
    "Plane",
    "Synthetic",
    "blend",
    "covered",
    "distractor",
    "draw_colour",
    "ground",
    "painted",
    "placed",
    "ramp",
    "waves",
    "write_folder",
]

Plane = Float[np.ndarray, "height width"]
Colours = Float[np.ndarray, "height width 3"]
Contours = list[np.ndarray]

FINE = 4  # subpixels along each side of a pixel
SHIFT = 4  # fractional bits of OpenCV's polygon coordinates
AREA = (0.07, 0.30)  # of the picture, before the border limits it
DIM = (0.15, 0.4)  # mean brightness of the ground
VIVID = (0.6, 0.85)  # and of the things on it, the object and the distractors alike
MIX = 0.5  # how far the second colour of a texture goes from the first


class Synthetic(Dataset[Sample]):
    """`n` pictures of `size` x `size` pixels, ten classes in equal shares, with exact pixels and box.

    Picture i depends on (seed, i, size) alone, so a longer set begins with the shorter one. Drawing takes a
    few milliseconds; `cached` keeps it. Errors: ValueError for n below 1, a size below 16, a negative seed.
    """

    def __init__(self, n: int, *, seed: int, size: int = 64, transform: SampleTransform | None = None) -> None:
        plain_arguments("Synthetic", dict.fromkeys(("n", "seed", "size"), int), n=n, seed=seed, size=size)
        if n < 1 or size < 16 or seed < 0:
            raise ValueError(f"expected n >= 1, size >= 16 and seed >= 0; got {n}, {size} and {seed}")
        self.size, self.seed, self.transform = size, seed, transform
        self.classes = list(SHAPES)
        self.targets = [_target(seed, index) for index in range(n)]
        self.ids = [
            f"synthetic-{seed}/{self.classes[target]}/{index:06d}.png" for index, target in enumerate(self.targets)
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pictures")
        target = self.targets[index]
        picture, cover = _draw(np.random.default_rng([self.seed, index, 1]), self.classes[target], self.size)
        pixels = torch.from_numpy((cover >= 0.5).astype(np.uint8))
        image = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
        sample = Sample(id=self.ids[index], image=image, target=target, boxes=boxes_of(pixels), pixels=pixels)
        return sample if self.transform is None else self.transform(sample)


def write_folder(root: str | Path, *, train: int, val: int, seed: int, size: int = 64) -> None:
    """Write `train` and `val` pictures with box tables and pixel masks in the layout of `ImageFolder`."""
    for offset, (split, n) in enumerate({"train": train, "val": val}.items()):
        dataset = Synthetic(n, seed=2 * seed + offset, size=size)
        rows = [_write(Path(root), split, index, dataset) for index in range(n)]
        with (Path(root) / f"{split}_boxes.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image", "class", "x0", "y0", "x1", "y1"], *rows])


def _write(root: Path, split: str, index: int, dataset: Synthetic) -> list[object]:
    sample, label = dataset[index], dataset.classes[dataset.targets[index]]
    object_pixels = cast(Pixels, sample.pixels)
    name = f"{split}/{label}/{index:06d}.png"
    mask = f"{split}_masks/{label}/{index:06d}.png"
    pictures = {name: sample.image.permute(1, 2, 0).numpy(), mask: object_pixels.numpy() * np.uint8(255)}
    for path, array in pictures.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / path)
    return [name, label, *sample.boxes[0].int().tolist()]


def _target(seed: int, index: int) -> int:
    """Return the class of a picture: every ten pictures hold each class once, in an order of their own."""
    block, slot = divmod(index, len(SHAPES))
    return int(np.random.default_rng([seed, block, 0]).permutation(len(SHAPES))[slot])


def _draw(rng: Generator, label: str, size: int) -> tuple[np.ndarray, Plane]:
    """Return the picture, uint8 (size, size, 3), and how much of each pixel the object covers."""
    canvas = ground(rng, size)
    for _ in range(rng.integers(1, 4)):
        canvas = painted(rng, canvas, covered(distractor(rng, size), size))
    cover = covered(placed(rng, SHAPES[label](), size), size)
    canvas = painted(rng, canvas, cover)
    if rng.random() < 0.3:
        line = covered(_bar(rng, size, thickness=rng.uniform(0.02, 0.04)), size)
        canvas, cover = painted(rng, canvas, line), cover * (1 - line)
    light = 1 + 0.15 * ramp(rng, size)[..., None]
    grain = 0.02 * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.round(np.clip(canvas * light + grain, 0, 1) * 255).astype(np.uint8), cover


# Colours and textures


def waves(rng: Generator, size: int, *, slope: float, planes: int) -> np.ndarray:
    """Return noise with amplitude 1/f^slope, mean 0 and deviation 1 per plane, (size, size, planes)."""
    amplitude = _frequencies(size) ** np.float32(-slope)
    white = rng.standard_normal((planes, *amplitude.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    waves = scipy.fft.irfft2(white * amplitude, s=(size, size))  # mean 0: the lowest amplitude is 0
    waves /= np.sqrt(np.square(waves).mean((1, 2), keepdims=True))
    return waves.transpose(1, 2, 0)


@lru_cache
def _frequencies(size: int) -> Plane:
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    return frequency.astype(np.float32)


@lru_cache
def _line(size: int) -> Float[np.ndarray, " size"]:
    return np.linspace(-1, 1, size, dtype=np.float32)


def ramp(rng: Generator, size: int) -> Plane:
    """Return a linear ramp in a random direction, -1 to 1 at most."""
    angle, line = rng.uniform(0, 2 * np.pi), _line(size) / np.float32(np.sqrt(2))
    return np.float32(np.cos(angle)) * line[None] + np.float32(np.sin(angle)) * line[:, None]


def _pattern(rng: Generator, size: int) -> Plane:
    """Return one of four textures as a weight in [0, 1]: stripes, dots, a ramp, noise."""
    turns = rng.uniform(6, 12) * np.sqrt(2) * np.pi
    kind = rng.integers(4)
    if kind == 0:
        wave = 2 * np.sin(turns * ramp(rng, size))
    elif kind == 1:
        across = turns * ramp(rng, size)
        wave = 3 * np.sin(across) * np.sin(np.rot90(across))
    elif kind == 2:
        wave = 2 * ramp(rng, size)
    else:
        wave = waves(rng, size, slope=1.0, planes=1)[..., 0]
    return np.clip(0.5 + 0.5 * wave, 0, 1, dtype=np.float32)


def ground(rng: Generator, size: int) -> Colours:
    """Return clutter with a natural spectrum, broken into two or three regions with sharp borders."""
    canvas = _scenery(rng, size)
    field = waves(rng, size, slope=1.8, planes=1)[..., 0]
    for level in rng.uniform(0.2, 1.2, rng.integers(1, 3)):
        edge = np.clip((field - level) * size / 8, 0, 1)[..., None]
        canvas, field = canvas + edge * (_scenery(rng, size) - canvas), -field
    return canvas


def _scenery(rng: Generator, size: int) -> Colours:
    colour = draw_colour(rng, *DIM)
    noise = waves(rng, size, slope=rng.uniform(0.8, 1.3), planes=2)
    grey = 0.07 * noise[..., 0] + 0.05 * ramp(rng, size)
    return noise[..., 1:] * rng.normal(0, 0.05, 3).astype(np.float32) + grey[..., None] + colour


def painted(rng: Generator, canvas: Colours, cover: Plane) -> Colours:
    """Lay a thing over the canvas in a random texture of two colours."""
    pattern = _pattern(rng, canvas.shape[0])
    base, other = (draw_colour(rng, *VIVID) for _ in range(2))
    other = base + MIX * (other - base)
    return blend(canvas, cover, other + pattern[..., None] * (base - other))


def blend(canvas: Colours, cover: Plane, surface: Colours) -> Colours:
    """Return the canvas with a surface laid over it, as far as that covers each pixel."""
    if not cover.any():
        return canvas
    window = _window(cover)  # the rest of the canvas stays as it is
    blended = canvas.copy()
    blended[window] += cover[window][..., None] * (surface[window] - canvas[window])
    return blended


def draw_colour(rng: Generator, low: float, high: float) -> np.ndarray:
    """Return a colour of random hue whose brightness (mean of the channels) lies between two values."""
    hue = rng.dirichlet((1, 1, 1)) * 3
    return np.clip(rng.uniform(low, high) * (0.35 + 0.65 * hue), 0, 1).astype(np.float32)


def _window(cover: Plane) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


# Outlines: lists of contours around the origin; a second contour is a hole


def _circle(radius: float = 1.0, *, points: int = 48) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _polygon(*points: tuple[int | float, int | float]) -> Contours:
    return [np.array(points, float)]


def _star() -> Contours:
    angle = -np.pi / 2 + np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, 0.42, 1.0)
    return [np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)]


def _heart() -> Contours:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([16 * np.sin(t) ** 3, -y], 1) / 16]


def _crescent() -> Contours:
    """Return a disc less a disc of radius .8 whose centre lies .5 to the right."""
    meet = (1 + 0.5**2 - 0.8**2) / (2 * 0.5)
    outer, inner = np.arccos(meet), np.arccos((meet - 0.5) / 0.8)
    out, back = np.linspace(outer, 2 * np.pi - outer, 40), np.linspace(2 * np.pi - inner, inner, 30)
    arc = np.stack([np.cos(out), np.sin(out)], 1)
    return [np.concatenate([arc, np.stack([0.5 + 0.8 * np.cos(back), 0.8 * np.sin(back)], 1)])]


SHAPES: Mapping[str, Callable[[], Contours]] = MappingProxyType(
    {
        "arrow": lambda: _polygon(
            (-1, -0.28), (0.05, -0.28), (0.05, -0.8), (1, 0), (0.05, 0.8), (0.05, 0.28), (-1, 0.28)
        ),
        "crescent": _crescent,
        "cross": lambda: _polygon(
            *((-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33)),
            *((0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33)),
        ),
        "disc": lambda: [_circle()],
        "ell": lambda: _polygon((-0.7, -1), (-0.1, -1), (-0.1, 0.4), (0.7, 0.4), (0.7, 1), (-0.7, 1)),
        "heart": _heart,
        "ring": lambda: [_circle(), _circle(0.55)],
        "square": lambda: _polygon((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "star": _star,
        "triangle": lambda: _polygon((0, -1), (0.95, 0.75), (-0.95, 0.75)),
    }
)
"""Class name -> outline, in a frame of its own; sorted, so that the folder layout gives the same targets."""


def placed(rng: Generator, outline: Contours, size: int) -> Contours:
    """Stretch, turn, size and move an outline; the place is uniform among those inside the picture."""
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    shape = [points * [stretch, 1 / stretch] for points in outline]
    turn = np.deg2rad(rng.uniform(-25, 25))
    shape = [points @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]] for points in shape]
    surface = _surface(shape[0]) - sum(_surface(hole) for hole in shape[1:])
    scale = size * np.sqrt(np.exp(rng.uniform(*np.log(AREA))) / surface)
    extent = np.ptp(shape[0], axis=0)
    scale = min(scale, 0.94 * size / extent.max())
    corner = rng.uniform(0.02 * size, 0.98 * size - scale * extent)
    return [(points - shape[0].min(0)) * scale + corner for points in shape]


def _surface(points: np.ndarray) -> float:
    x, y = points.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def distractor(rng: Generator, size: int) -> Contours:
    """Return an outline of no class: a smooth blob, a splinter, or a bar through the whole picture."""
    kind = rng.integers(3)
    if kind == 2:
        return _bar(rng, size, thickness=rng.uniform(0.04, 0.12))
    count = 40 if kind == 0 else int(rng.integers(6, 10))
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    if kind == 0:
        radius = 1 + sum(0.28 * np.cos(wave * angle + rng.uniform(0, 2 * np.pi)) for wave in (3, 4, 5))
    else:
        radius = rng.choice([0.3, 0.7, 1.3], count)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return [points * rng.uniform(0.08, 0.2) * size + rng.uniform(0, size, 2)]


def _bar(rng: Generator, size: int, *, thickness: float) -> Contours:
    angle, middle = rng.uniform(0, np.pi), rng.uniform(0.1 * size, 0.9 * size, 2)
    along = np.array([np.cos(angle), np.sin(angle)]) * 2 * size
    across = np.array([-np.sin(angle), np.cos(angle)]) * thickness * size / 2
    return [middle + np.stack([along + across, along - across, -along - across, across - along])]


def covered(contours: Contours, size: int) -> Plane:
    """Return the share of each pixel that lies inside of the contours (even-odd rule)."""
    fine = np.zeros((size * FINE, size * FINE), np.uint8)
    # OpenCV puts whole coordinates at the middle of a pixel, we at its upper left corner.
    points = [np.round((contour * FINE - 0.5) * 2**SHIFT).astype(np.int32) for contour in contours]
    cv2.fillPoly(fine, points, 255, shift=SHIFT)
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
