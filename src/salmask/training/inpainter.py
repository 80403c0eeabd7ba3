"""A small inpainter that learns from the data itself what may fill a hole.

A U-Net of gated convolutions sees the picture with its holes filled from their surroundings, by an average that is the
wider the farther the known pixels are (push-pull), and the holes. It learns what to change in that smooth filling, to
restore what random holes have taken: blocks and clouds that cover a tenth to three quarters of the picture.

    loss = 6 * |g - x| in the holes + |g - x| elsewhere + 0.1 * total variation over the holes

As an infill it is a counterfactual: what the picture could be, given what is seen of it.
Sources: gated convolutions, Yu et al., 2019; the loss's weights, Liu et al., 2018; push-pull, Gortler et al., 1996.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchvision.utils import save_image

from salmask.classifier.weights import save_tensors
from salmask.data import CropFlip, Labelled, ShortSide, Subset, collate, training_batches
from salmask.data.sight import Sight
from salmask.data.streams import Bar, spread
from salmask.files import JSON, replace_file
from salmask.masking import IMAGENET_MEAN, Blur, MeanColour, keep
from salmask.types import Images, Masks, size_of

__all__ = [
    "Inpainter",
    "fit_inpainter",
    "load_inpainter",
    "push_pull",
    "random_holes",
    "save_inpainter",
    "train_inpainter",
]

_FORMAT = "salmask inpainter 2"


class Inpainter(nn.Module):
    """g(x, holes), an infill: never learns which side is played, runs without gradient once it is trained.

    width: channels of the finest level; doubled at each of `depth` levels. colour: of a picture without known pixels.
    """

    def __init__(self, *, width: int = 24, depth: int = 4, colour: Sequence[float] = IMAGENET_MEAN) -> None:
        super().__init__()
        self.width, self.depth, self.colour = width, depth, tuple(colour)
        widths = [width * 2 ** min(level, 2) for level in range(depth + 1)]
        self.first = _Gated(4, widths[0])
        self.down = nn.ModuleList(_Gated(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.middle = nn.Sequential(*(_Gated(widths[-1], widths[-1], dilation=d) for d in (2, 4)))
        self.up = nn.ModuleList(_Gated(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)  # it starts as the smooth filling
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def restore(self, images: Images, holes: Masks) -> Images:
        """Return whole pictures in [0, 1]; gradients flow to the weights."""
        colour = images.new_tensor(self.colour).view(1, 3, 1, 1)
        smooth = push_pull(images, holes, colour)
        x = self.first(torch.cat([smooth - colour, holes], 1))
        levels = []
        for layer in self.down:
            levels.append(x)
            x = layer(x)
        x = self.middle(x)
        for layer in self.up:
            finer = levels.pop()
            x = F.interpolate(x, finer.shape[-2:], mode="bilinear", align_corners=False)
            x = layer(torch.cat([x, finer], 1))
        return torch.sigmoid(self.last(x).float() + torch.logit(smooth.float(), eps=1e-3))

    @torch.no_grad()
    def forward(self, images: Images, holes: Masks) -> Images:
        """Return pictures for the holes; what is hidden is not looked at."""
        return self.restore(images, holes.expand(len(images), -1, -1, -1)).to(images.dtype)

    def settings(self) -> JSON:
        """Return what is needed to build it again."""
        return {"width": self.width, "depth": self.depth, "colour": list(self.colour)}

    def frozen(self) -> "Inpainter":
        """Return it ready for use: eval mode, no gradients."""
        return self.eval().requires_grad_(False)


class _Gated(nn.Module):
    """ELU(conv x) * sigmoid(conv' x): the gate learns which places are known well enough."""

    def __init__(self, inside: int, outside: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, 2 * outside, 3, stride=stride, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv(x).chunk(2, 1)
        return F.elu(value) * gate.sigmoid()


def push_pull(images: Images, holes: Masks, colour: Tensor) -> Images:
    """Return pictures whose holes take the mean of the known pixels near them.

    Means over blocks of 2, 4, 8 ... pixels, each of as many known pixels as there are; from the coarsest to the finest,
    a block with a quarter of its pixels known takes its own mean, one with fewer takes part of the coarser one's.
    colour (1, 3, 1, 1): where nothing is known.
    """
    levels = [(images * (1 - holes), 1 - holes)]
    while max(levels[-1][0].shape[-2:]) > 1:
        colours, share = levels[-1]
        levels.append((F.avg_pool2d(colours, 2, ceil_mode=True), F.avg_pool2d(share, 2, ceil_mode=True)))
    filled = colour.expand(len(images), -1, 1, 1)
    for depth, (colours, share) in reversed(list(enumerate(levels))):
        filled = F.interpolate(filled, colours.shape[-2:], mode="bilinear", align_corners=False)
        sure = (4 * share).clamp(max=1) if depth else share
        filled = torch.lerp(filled, colours / share.clamp_min(1e-6), sure)
    return filled


def random_holes(count: int, size: tuple[int, int], generator: Generator) -> Float[Tensor, "count 1 rows columns"]:
    """Return holes (1 = hidden), a third each: clouds (smooth noise, cut), soft clouds, and blocks.

    Their area is uniform in [0.1, 0.75]; soft ones are not binary, as masks are not.
    """
    share = 0.1 + 0.65 * torch.rand(count, generator=generator)
    coarse = torch.randint(3, 9, (count,), generator=generator)
    kind = torch.randint(3, (count,), generator=generator)
    holes = torch.empty(count, 1, *size)
    for index in range(count):
        cells = int(coarse[index])
        noise = torch.rand(1, 1, cells, cells, generator=generator)
        mode = "nearest" if kind[index] == 2 else "bicubic"
        smooth = F.interpolate(noise, size, mode=mode, align_corners=None if mode == "nearest" else False)[0]
        cut = smooth.flatten().quantile(1 - float(share[index]))
        holes[index] = (8 * (smooth - cut)).sigmoid() if kind[index] == 1 else (smooth > cut).float()
    return holes


def inpainting_loss(filled: Images, images: Images, holes: Masks) -> Tensor:
    """Return mean((1 + 5 h) |f - x|) + .1 TV of the composed picture h f + (1 - h) x, as far as it lies in the holes.

    The variation is that of what stands in the holes against its neighbours, wherever a hole touches a pair: a filling
    that goes on where the picture stops costs nothing at the border of a hole.
    """
    error = (filled - images).abs()
    composed = torch.lerp(images, filled, holes)
    rough = torch.zeros((), device=images.device)
    for axis in (2, 3):
        pairs = holes.shape[axis] - 1
        touched = torch.maximum(holes.narrow(axis, 0, pairs), holes.narrow(axis, 1, pairs))
        rough = rough + (touched * composed.diff(dim=axis).abs()).mean()
    return (error * (1 + 5 * holes)).mean() + 0.1 * rough


def fit_inpainter(
    inpainter: Inpainter,
    batches: Iterable[Images],
    *,
    steps: int,
    lr: float = 1e-3,
    precision: str = "32-true",
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Inpainter:
    """Train in place by Adam with a cosine schedule, and return the frozen inpainter.

    batches: endless pictures (B, 3, H, W) in [0, 1]. precision: "32-true" or "bf16-mixed".
    report: called with step and loss every 20 steps. Errors: ValueError for a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(inpainter.parameters()).device
    optimiser = torch.optim.Adam(inpainter.parameters(), lr=lr, betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    inpainter.train()
    stream = iter(batches)
    for step in progress(range(steps)):
        images = next(stream).to(device)
        holes = random_holes(len(images), size_of(images), generator).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            filled = inpainter.restore(images, holes)
        loss = inpainting_loss(filled, images, holes)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the inpainter's loss is {float(loss.detach())} at step {step}: take a lower learning rate than {lr}"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 0 or step + 1 == steps:
            report(step, float(loss.detach()))
    return inpainter.frozen()


def save_inpainter(path: Path, inpainter: Inpainter) -> None:
    """Write weights and settings as one file, whole or not at all."""
    metadata = {"format": _FORMAT, "settings": json.dumps(inpainter.settings())}
    save_tensors(path, inpainter.state_dict(), metadata)


def load_inpainter(path: Path) -> Inpainter:
    """Load what `save_inpainter` wrote, ready for use. Errors: FileNotFoundError, ValueError for another file."""
    if not path.is_file():
        raise FileNotFoundError(f"no inpainter at {path}: make one with `salmask inpainter`")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}")
        inpainter = Inpainter(**json.loads(metadata["settings"]))
        inpainter.load_state_dict(load_file(path))
    except Exception as error:  # safetensors' own error is no ValueError
        raise ValueError(f"{path} holds no inpainter of `salmask inpainter`: {error}") from error
    return inpainter.frozen()


_SHOWN = 64  # pictures that an inpainter is tried on


def train_inpainter(
    dataset: Labelled,
    *,
    out: Path,
    image_size: int,
    steps: int,
    batch_size: int,
    lr: float,
    precision: str = "32-true",
    workers: int = 0,
    seed: int = 0,
    progress: Bar = iter,
) -> dict[str, float]:
    """Train an inpainter, write it and a picture of what it fills; return errors in the holes of unseen pictures.

    The errors are mean absolute differences in [0, 1] on pictures held out of the training, beside those of the
    mean colour and of blur.
    """
    held = spread(dataset, min(_SHOWN, max(1, len(dataset) // 10)))
    kept_back = set(held.ids)
    rest = Subset(dataset, [index for index, one in enumerate(dataset.ids) if one not in kept_back])
    if steps < 1 or not 0 < lr < inf:
        raise ValueError(f"expected at least one step and a finite learning rate above 0, got {steps} and {lr}")
    if not 0 <= seed < 2**31:
        raise ValueError(f"a seed is a whole number, 0 to {2**31 - 1}, got {seed}")
    Sight(image_size)  # for its clear error
    torch.manual_seed(seed)
    inpainter = Inpainter()
    crop = CropFlip(image_size, scale=(0.3, 1.0))
    stream = training_batches(
        rest, batch_size=min(batch_size, max(1, len(rest))), seed=seed, augment=crop, workers=workers
    )
    images = (batch.images for batch in stream)
    fit_inpainter(inpainter, images, steps=steps, lr=lr, precision=precision, seed=seed, progress=progress)
    see = ShortSide(image_size)
    whole = collate([see(held[index]) for index in range(len(held))]).images
    holes = random_holes(len(whole), (image_size, image_size), torch.Generator().manual_seed(seed + 1)).round()
    fills = {
        "inpainter": inpainter(whole, holes),
        "mean colour": MeanColour()(whole, holes),
        "blur": Blur()(whole, holes),
    }
    save_inpainter(out, inpainter)
    shown = [whole, keep(whole, 1 - holes, MeanColour())] + [
        torch.lerp(whole, g.expand_as(whole), holes) for g in fills.values()
    ]
    replace_file(
        out.with_suffix(".png"),
        lambda at: save_image(torch.cat([one[:12] for one in shown]), at, nrow=min(12, len(whole)), format="png"),
    )
    return {name: float(((g - whole).abs() * holes).sum() / (3 * holes.sum())) for name, g in fills.items()}
