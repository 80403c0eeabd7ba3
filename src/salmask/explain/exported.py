"""Classifier and masker as one graph: images -> (logits, masks), for use without Python's training code.

    FILE.pt2     torch.export, read by torch.export.load(FILE).module() and by AOTInductor
    FILE.onnx    ONNX, read by onnxruntime and whatever else reads it

Images are float32 (B, C, H, W) in [0, 1]; normalisation is in the graph, a look at the values is not. The number of
images and their size are free where the network lets them be, else the size is fixed. What was written is run at other
numbers and sizes, and compared with the library itself.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from timm.layers import padding
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from salmask.classifier import Classifier
from salmask.explain.learned import Learned
from salmask.files import replace_file, writable_file
from salmask.types import size_of

__all__ = ["KINDS", "Agreement", "OnePass", "check_export", "export_pass", "same_padding"]

KINDS = (".onnx", ".pt2")
CLOSE = 1e-4
_BATCH = 2  # a batch of one would be taken for a constant
Run: TypeAlias = Callable[[Tensor], Sequence[np.ndarray]]


class OnePass(nn.Module):
    """images (B, C, H, W) in [0, 1] -> logits (B, K) and masks (B, 1, H, W) of the predicted classes.

    Errors: ValueError for a masker that does not fit, or masks of a share of cells (`top`), which sort.
    """

    def __init__(self, learned: Learned, classifier: Classifier) -> None:
        super().__init__()
        if learned.top is not None:
            raise ValueError("masks of the highest cells (top) are sorted, which no graph here does: leave `top` out")
        learned.masker.fits(learned.reader or classifier)
        self.classifier, self.masker, self.reader = classifier, learned.masker, learned.reader
        self.area = learned.area

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and masks."""
        logits, maps = (self.reader or self.classifier).features(images)
        logits = logits if self.reader is None else self.classifier.logits(images)
        areas = None if self.area is None else torch.full_like(images[:, 0, 0, 0], self.area)
        targets = logits.argmax(1) if self.masker.classes else None
        return logits, self.masker(maps, size_of(images), areas=areas, targets=targets)


@dataclass(frozen=True)
class Agreement:
    """How a written graph agrees with the library. free: whether it takes pictures of other sizes than `size`."""

    difference: float
    shapes: tuple[tuple[int, ...], ...]
    size: int
    free: bool

    def __str__(self) -> str:
        size = "any size" if self.free else f"{self.size} x {self.size} pixels alone"
        shown = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        return (
            f"any number of pictures of {size}; masks within {self.difference:.1e} of the library's, looked at {shown}"
        )


def export_pass(learned: Learned, classifier: Classifier, path: Path, *, image_size: int) -> Agreement:
    """Write FILE.onnx or FILE.pt2, compare what it does with the library, and return how they agree.

    Errors: ImportError naming the extra; ValueError for another ending, for a network that cannot be exported, naming
    its layer, and for masks that differ by more than 1e-4; nothing is written then.
    """
    check_export(path)
    passes = OnePass(copy.deepcopy(learned), copy.deepcopy(classifier)).cpu().eval()
    for parameter in passes.parameters():
        parameter.requires_grad_(False)
    example = torch.rand(_BATCH, classifier.channels_in, image_size, image_size)
    agreed: list[Agreement] = []

    def write(draft: Path) -> None:
        ways: Sequence[bool] = (True, False)
        while not agreed:
            program, free = _program(passes, example, ways)
            run = (_write_onnx if path.suffix == ".onnx" else _write_torch)(program, example, draft)
            try:
                agreed.append(_compared(passes, run, example, free=free))
            except ValueError:  # of sides that the tool's own layers round otherwise
                if not free:
                    raise
                ways = (False,)
            except Exception as error:  # a graph of free sides may yet rule sides out, such as those of its example
                if not free:
                    raise ValueError(f"the graph fails where the library does not: {_first_line(error)}") from error
                ways = (False,)

    replace_file(path, write)
    return agreed[0]


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def check_export(path: Path) -> None:
    """Raise ValueError for a file that cannot be written, and ImportError where it takes more packages."""
    if path.suffix not in KINDS:
        raise ValueError(f"expected a file that ends in {' or '.join(KINDS)}, got {path.name}")
    if path.suffix == ".onnx":
        _check_packages()
    writable_file(path, path.suffix)


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX files need more packages: pip install 'salmask[export]'") from error


def _program(passes: nn.Module, example: Tensor, ways: Sequence[bool]) -> tuple[ExportedProgram, bool]:
    """Return the graph, and whether the size of its pictures is free. Errors: ValueError naming a layer.

    ways: whether it is to be free, in the order in which they are tried.
    """
    for free in ways:
        try:
            # of two different sides where they are free, so that no layer is taken to need equal ones
            shown = torch.cat([example, example[..., :32]], -1) if free else example
            return _exported(passes, (shown,), free=free), free
        except Exception as error:  # whatever a network's own code leads the export to
            failure = error
    layer, kind = _failing(passes, example)
    raise ValueError(
        f"the network cannot be exported: layer {layer!r} ({kind}) is the smallest part that fails "
        f"({_first_line(failure)}); "
        "decisions on values of tensors, .item() and lists that grow stand in the way: write this layer with "
        "torch.where and shapes alone, or serve the network itself (`salmask serve`, `salmask explain --data`)"
    ) from failure


def _exported(module: nn.Module, inputs: tuple[object, ...], *, free: bool) -> ExportedProgram:
    shapes = {0: Dim.DYNAMIC, **({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if free else {})}
    with torch.no_grad(), _short_padding(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, inputs, dynamic_shapes=(shapes,), strict=False)


def same_padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return how many rows TensorFlow's SAME padding adds to x, as timm does, in few operations on x:

    reach - 1 - (x - 1) mod stride,    reach = (kernel_size - 1) dilation + 1 >= stride.
    """
    reach = (kernel_size - 1) * dilation + 1
    if reach >= stride:
        return reach - 1 - (x - 1) % stride
    return max((-(-x // stride) - 1) * stride + reach - x, 0)


@contextmanager
def _short_padding() -> Iterator[None]:
    """Let timm's tf_ networks compute their padding by `same_padding`.

    Of sides that are free torch simplifies every size of every layer: nested in one another, timm's own maxima of
    quotients took tf_efficientnet_lite0, of five strides, over six minutes of processor time, these take 40 s.
    """
    own = padding.get_same_padding
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = own


def _failing(passes: nn.Module, example: Tensor) -> tuple[str, str]:
    """Return name and class of the smallest module that cannot be exported on its own."""
    inputs: dict[nn.Module, tuple[tuple[object, ...], dict[str, object]]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: inputs.setdefault(module, (args, kwargs)) and None, with_kwargs=True
        )
        for module in passes.modules()
    ]
    try:
        with torch.no_grad():
            passes(example)
    finally:
        for hook in hooks:
            hook.remove()
    name, found = "", passes
    while (child := next(_that_fail(found, inputs), None)) is not None:
        name, found = f"{name}.{child[0]}".lstrip("."), child[1]
    return name.removeprefix("classifier.network."), type(found).__name__


def _that_fail(
    module: nn.Module, inputs: dict[nn.Module, tuple[tuple[object, ...], dict[str, object]]]
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if child in inputs:
            args, kwargs = inputs[child]
            try:
                with torch.no_grad():
                    torch.export.export(child, args, kwargs, strict=False)
            except Exception:
                yield name, child
        else:
            yield from ((f"{name}.{inner}", one) for inner, one in _that_fail(child, inputs))


def _write_torch(program: ExportedProgram, example: Tensor, path: Path) -> Run:
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda images: [one.detach().numpy() for one in module(images)]


def _write_onnx(program: ExportedProgram, example: Tensor, path: Path) -> Run:
    import onnxruntime

    with _quiet():
        written = torch.onnx.export(
            program, (example,), dynamo=True, input_names=["images"], output_names=["logits", "masks"], verbose=False
        )
        assert written is not None
        written.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compared(passes: nn.Module, run: Run, example: Tensor, *, free: bool) -> Agreement:
    """Run the written graph at other numbers and sizes. Errors: ValueError where it differs."""
    size = example.shape[-1]
    others = [(1, size, size), (3, size + 33, size + 67)] if free else [(1, size, size), (3, size, size)]
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for count, height, width in others:
        images = torch.rand(count, example.shape[1], height, width, generator=generator)
        with torch.no_grad():
            expected = passes(images)[1].numpy()
        worst = max(worst, float(np.abs(run(images)[1] - expected).max()))
    if not worst <= CLOSE:
        raise ValueError(
            f"the exported masks differ by up to {worst:.2g} from the library's, expected {CLOSE:g} at most"
        )
    return Agreement(worst, tuple((count, example.shape[1], *sides) for count, *sides in others), size, free)
