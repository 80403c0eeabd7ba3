"""How explainers run a classifier: in a stated mode, in pieces of bounded size, image by image independent.

`at_rest` is the one place that decides about gradients and modes; `pieces` is the one place that splits work.
A piece that does not fit into memory is tried again at half the size, with one warning.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor

from salmask.classifier import Classifier
from salmask.explain.base import Explanation, Passes
from salmask.masking import Blur, MeanColour
from salmask.types import Images, Infill, Targets

__all__ = [
    "at_rest",
    "backdrop",
    "by_pieces",
    "check_limit",
    "entered",
    "mean_colour",
    "out_of_memory",
    "pieces",
    "reseeded",
]

_Result = TypeVar("_Result")


@contextmanager
def at_rest(classifier: Classifier, *, gradients: bool) -> Iterator[None]:
    """Hold the classifier frozen in eval mode, with or without gradients, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), classifier.frozen():
        yield


def pieces(function: Callable[[slice], _Result], count: int, *, max_batch: int) -> Iterator[_Result]:
    """Yield function(rows) for the rows 0 ... count - 1 in slices of at most max_batch, in order.

    A slice that runs out of memory is halved, and so are those that follow; the first time is warned of.
    Raises the error of the last try where one row alone does not fit.
    """
    check_limit(max_batch)
    start, warned = 0, False
    while start < count:
        rows = slice(start, min(start + max_batch, count))
        failure: RuntimeError | None = None
        try:
            result = function(rows)
        except RuntimeError as error:
            if rows.stop - rows.start == 1 or not out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # whose frames would hold on to the memory
        if failure is not None:
            max_batch = (rows.stop - rows.start) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if not warned:
                count_now = f"{max_batch} image{'' if max_batch == 1 else 's'}"
                warnings.warn(f"out of memory: going on with {count_now} a pass", stacklevel=2)
            warned = True
            continue
        yield result
        start = rows.stop


def by_pieces(
    explain: Callable[[Classifier, Images, Targets | None], Explanation],
    classifier: Classifier,
    images: Images,
    targets: Targets | None,
    *,
    max_batch: int,
) -> Explanation:
    """Explain a batch in pieces of at most max_batch images, on the classifier's device, and join what comes.

    Raises ValueError for an empty batch and for targets that are not one an image.
    """
    if not len(images):
        raise ValueError("expected at least one image, came a batch of none")
    if targets is not None and targets.shape != (len(images),):
        raise ValueError(f"expected targets ({len(images)},), one an image, came {tuple(targets.shape)}")
    images = entered(images, classifier)
    given = None if targets is None else entered(targets, classifier)

    def part(rows: slice) -> Explanation:
        return explain(classifier, images[rows], None if given is None else given[rows])

    return _joined(list(pieces(part, len(images), max_batch=max_batch)))


def mean_colour(classifier: Classifier) -> MeanColour:
    """Return the infill that is zero in the classifier's normalised space."""
    red, green, blue = classifier.mean.flatten().tolist()
    return MeanColour((red, green, blue))


def backdrop(infill: Infill | None, classifier: Classifier, image: Images, *, seed: int = 0) -> Infill:
    """Return what stands in the holes of one picture (1, 3, H, W) that is hidden many times over.

    None is the mean colour; a blur is made once; an infill that draws starts from the seed, so that a map depends
    neither on the pictures before it nor on earlier calls.
    """
    if infill is None:
        return mean_colour(classifier)
    if isinstance(infill, Blur):
        blurred = infill(image, torch.ones_like(image[:, :1]))
        return lambda images, holes: blurred
    return reseeded(infill, seed) or infill


def reseeded(infill: Infill, seed: int) -> Infill | None:
    """Return a copy of an infill that draws, with a fresh generator; None for one that does not."""
    generator = getattr(infill, "generator", None)
    if not isinstance(generator, Generator) or not is_dataclass(infill) or isinstance(infill, type):
        return None
    return replace(infill, generator=Generator(device=generator.device).manual_seed(seed))  # type: ignore[arg-type]


def check_limit(max_batch: int) -> None:
    """Refuse a limit that is not a positive number."""
    if max_batch < 1:
        raise ValueError(f"max_batch is the number of images in one pass, at least 1, came {max_batch}")


def entered(values: Tensor, classifier: Classifier) -> Tensor:
    """Bring values to the classifier's device, as a tensor that autograd may keep; half precision becomes float32."""
    moved = values.detach().to(classifier.device)
    if moved.is_floating_point() and moved.element_size() < 4:
        moved = moved.float()
    return moved.clone() if moved.is_inference() else moved


def _joined(parts: list[Explanation]) -> Explanation:
    count = sum(len(part.masks) for part in parts)
    forward = sum(part.passes.forward * len(part.masks) for part in parts) / count
    backward = sum(part.passes.backward * len(part.masks) for part in parts) / count
    return Explanation(
        torch.cat([part.masks.detach() for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.logits.detach() for part in parts]),
        Passes(forward, backward),
        range=parts[0].range,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that memory ran out: the CPU's says so in words alone."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "allocate memory" in text
