"""Batch normalisation over the batch of all processes together, as one process would compute it.

Process r of R has n of the N = R n pictures, with mean m_r and (biased) variance v_r a channel. Then

    mean = 1/R sum_r m_r,    variance = 1/R sum_r v_r + 1/R sum_r (m_r - mean)^2,

which loses no digits where means are large. Gradients flow back through both to the pictures of all processes; what a
network remembers is moved by the same numbers. torch's SyncBatchNorm does this on GPUs alone, and by putting other
layers into the user's network; here `torch.nn.functional.batch_norm` is met where it is called, so that every layer
that calls it (timm's and torchvision's among them) is reached, on CPUs too, and no network is changed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["STATISTICS_OF", "joint_normalisation"]

STATISTICS_OF = "the batch of all processes together"
"""What batch normalisation is computed over in training, in words for run.json."""


def joint_normalisation(fabric: "Fabric") -> AbstractContextManager[object]:
    """Let batch normalisation in train mode look at the batch of all processes; of one process nothing changes.

    All processes must call the same layers in the same order, on parts of one size.
    """
    return nullcontext() if fabric.world_size == 1 else _Joint(fabric.global_rank, fabric.world_size)


class _Joint(TorchFunctionMode):
    def __init__(self, rank: int, count: int) -> None:
        super().__init__()
        self.rank, self.count = rank, count

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = {} if kwargs is None else kwargs
        if func is F.batch_norm and (layer := _Layer(*args, **given)).training:  # type: ignore[arg-type]
            return self._normalised(layer)
        return func(*args, **given)

    def _normalised(self, layer: "_Layer") -> Tensor:
        pictures = layer.input if layer.input.dtype == torch.float64 else layer.input.float()
        others = [axis for axis in range(pictures.ndim) if axis != 1]
        own = torch.stack([pictures.mean(others), pictures.var(others, correction=0)])
        means, variances = _Gathered.apply(own, self.rank, self.count).unbind(1)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        layer.remember(mean, variance, self.count * pictures.numel() // pictures.shape[1])
        shape = [-1 if axis == 1 else 1 for axis in range(pictures.ndim)]
        scale = (variance + layer.eps).rsqrt()
        scale = scale if layer.weight is None else scale * layer.weight
        normalised = (pictures - mean.view(shape)) * scale.view(shape)
        return (normalised if layer.bias is None else normalised + layer.bias.view(shape)).to(layer.input.dtype)


class _Layer(NamedTuple):
    """The arguments of `torch.nn.functional.batch_norm`."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics, the variance without bias, as torch does."""
        unbiased = variance * (count / max(count - 1, 1))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            if running is not None:
                running.lerp_(now.to(running.dtype), self.momentum)


class _Gathered(torch.autograd.Function):
    """own (...) -> those of all processes (R, ...); gradients are summed over the processes that used them."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor, rank: int, count: int) -> Tensor:
        ctx.rank = rank  # type: ignore[attr-defined]
        parts = own.new_zeros(count, *own.shape)
        parts[rank] = own
        torch.distributed.all_reduce(parts)
        return parts

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total[ctx.rank], None, None  # type: ignore[attr-defined]
