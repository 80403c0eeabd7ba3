"""What comes out of a network, as logits (B, K).

| outputs | the network returns | logits | probabilities |
|---|---|---|---|
| "logits" | (B, K) unnormalised scores of one class of K | as they are | softmax |
| "binary" | (B, 1) or (B,): one logit z, sigmoid(z) is class 1 | (-z/2, z/2) | softmax, that is sigmoid(z) |
| "multilabel" | (B, K) logits of K labels, each present or not | as they are | sigmoid |
| "probabilities" | (B, K) whose rows sum to 1 | what went into the softmax, else log p | softmax, that is p |

"auto" is "logits", or "probabilities" where rows sum to 1 on several pictures, which is said once. A log-softmax, and a
sigmoid at the end of a binary or a multi-label network, are noticed and taken back in the same way: where the network
is sure, they have no slope. Logits between 0 and 1 are no sigmoid's unless a sigmoid has made them, or nobody can see
into the network (a function, a scripted or compiled network). A class whose logit is a constant,
as in (0, z), has no evidence of its own; the mean over classes is then taken off all logits, which changes no
probability: (0, z) becomes (-z/2, z/2). "logits", said outright, leaves all of them as they are.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salmask.classifier.tensors import tensors_in
from salmask.classifier.wrappers import Called, is_compiled
from salmask.types import Logits, Targets

__all__ = ["KINDS", "Outputs"]

KINDS = ("auto", "logits", "binary", "multilabel", "probabilities")
_ENDINGS = {
    "softmax": {torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax},
    "log_softmax": {torch.log_softmax, Tensor.log_softmax, F.log_softmax, torch.special.log_softmax},
    "sigmoid": {torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit},
}
_SEGMENTED = "torch.nn.Sequential(network, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())"


@dataclass(frozen=True)
class Outputs:
    """How a network's answer becomes logits. kind: of `KINDS`; entry: which one of a tuple's or a dictionary's.

    ending: "softmax", "log_softmax" or "sigmoid" that the network ends in, "pair" for (1 - s, s) of a sigmoid s, or "".
    centred: take the mean over classes off. hidden: classes that are left out of it, for their logit is a constant so
    low, as -1e9 of classes that are masked away, that their probability is 0.
    """

    kind: str = "auto"
    entry: str | int | None = None
    ending: str = ""
    centred: bool = False
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected outputs of {', '.join(KINDS)}, got {self.kind!r}")

    def agree(self, kind: str | None, entry: str | int | None, *, of: str) -> None:
        """Raise ValueError where another reading of a network's answer is asked for; None asks for nothing."""
        detected = self.centred or (self.kind == "logits" and self.ending != "")  # what "logits", said outright, leaves
        if kind not in (None, "auto", self.kind) or (kind == "logits" and detected):
            own = f"{self.kind} as `auto` finds them" if detected else self.kind
            raise ValueError(
                f"outputs of {of} are {own}, asked for are {kind}: a masker goes with the outputs that it was trained "
                "on; name the network's SPEC with the new ones, and train again"
            )
        if entry not in (None, self.entry):
            own = "none is chosen" if self.entry is None else f"it is {self.entry!r}"
            raise ValueError(f"of what {of} returns, the entry {entry!r} is asked for, but {own}: train again")

    def ask(self, network: Callable[[Tensor], object], pictures: Tensor) -> Logits:
        """Return the logits (B, K), in float32, of normalised pictures."""
        last = _LastEnding(self.ending)
        with last if self.ending else nullcontext():
            values = _entry(network(pictures), self.entry, pictures.shape[0])
        if values.ndim == 1 and pictures.shape[0] == 1 and self.kind != "binary":  # squeezed
            values = values[None]
        scores = self._without_ending(values, last)
        if self.kind == "binary":
            half = _column(scores, pictures.shape[0]) / 2
            return torch.cat([-half, half], 1)
        scores = _bounded(scores)
        return scores - self._mean(scores) if self.centred else scores

    def _mean(self, scores: Logits) -> Tensor:
        counted = [index for index in range(scores.shape[1]) if index not in self.hidden]
        return scores[:, counted].mean(1, keepdim=True) if self.hidden else scores.mean(1, keepdim=True)

    def probabilities(self, logits: Logits) -> Tensor:
        """Return what the classifier holds likely: (B, K) in [0, 1]; rows sum to 1 unless labels are independent."""
        return logits.sigmoid() if self.kind == "multilabel" else logits.softmax(-1)

    def question(self, logits: Logits, targets: Targets) -> tuple[Float[Tensor, "batch answers"], Targets]:
        """Return logits and targets of what is asked of each picture about class y.

        Of K classes these are the given ones. Of independent labels it is whether label y is there: logits (0, z_y) and
        target 1, so that softmax, entropy, margin and decision are those of sigmoid(z_y), whatever other labels are.
        """
        if self.kind != "multilabel":
            return logits, targets
        own = logits.gather(1, targets[:, None])
        return torch.cat([torch.zeros_like(own), own], 1), torch.ones_like(targets)

    def settled(self, network: Callable[[Tensor], object], batches: Sequence[Tensor]) -> "Outputs":
        """Find out, on several different pictures, what "auto" is and in what the network ends.

        Errors: ValueError for answers that are no logits, or not a number for all of the pictures.
        """
        lasts, answers = {name: _LastEnding(name) for name in _ENDINGS}, []
        for pictures in batches:
            with torch.no_grad(), ExitStack() as stack:
                for last in lasts.values():
                    stack.enter_context(last)
                raw = _entry(network(pictures), self.entry, len(pictures))
            _check_numbers(raw)
            if self.kind != "binary":
                _check_shape(raw, len(pictures))
            answers.append(_column(raw, len(pictures)) if self.kind == "binary" else raw.float())
        pair = self.kind in ("auto", "probabilities") and lasts["sigmoid"].column(raw) is not None
        values = torch.cat(answers)
        values = values[~values.isnan().any(1)]  # a network that divides by a picture's spread fails on plain grey
        if not len(values):
            raise ValueError("expected logits from the network, got NaN for every picture: look at its weights")
        ending = next((name for name, last in lasts.items() if last.before(raw) is not None), "pair" if pair else "")
        within = bool(((values >= 0) & (values <= 1)).all()) and values.std() > 0
        normalised = bool(within and (values.sum(1) - 1).abs().max() < 1e-2)
        if self.kind in ("auto", "probabilities"):
            return self._of_classes(values, ending, normalised=normalised)
        if self.kind in ("binary", "multilabel") and within:
            return self._of_labels(ending, opaque=_opaque(network))
        return self

    def _of_labels(self, ending: str, *, opaque: bool) -> "Outputs":
        """Return what labels between 0 and 1 are."""
        if ending == "sigmoid" or opaque:
            warnings.warn(f"the network ends in a sigmoid: {_TAKEN_BACK}", stacklevel=5)
            return replace(self, ending="sigmoid")
        warnings.warn(
            "what the network returns for the pictures that were tried lies between 0 and 1, and is taken for logits, "
            "for no sigmoid has made it: let it return what goes into its sigmoid if it has one of its own",
            stacklevel=5,
        )
        return self

    def _of_classes(self, values: Tensor, ending: str, *, normalised: bool) -> "Outputs":
        if self.kind == "probabilities" and not normalised:
            raise ValueError(
                f"expected probabilities, rows that sum to 1, got values from {float(values.min()):.3g} to "
                f"{float(values.max()):.3g} with sums from {float(values.sum(1).min()):.3g} to "
                f"{float(values.sum(1).max()):.3g}: give outputs='logits', or 'multilabel' for a sigmoid at the end"
            )
        if normalised:
            if self.kind == "auto":
                warnings.warn(f"the network ends in a softmax, its rows sum to 1: {_TAKEN_BACK}", stacklevel=5)
            return replace(self, kind="probabilities", ending="pair" if ending == "pair" else "softmax")
        sums = values.sum(1)
        if bool((values >= 0).all()) and values.std() > 0 and float(sums.std()) < 1e-3 * float(sums.mean()):
            warnings.warn(
                f"the network's outputs are not negative and sum to {float(sums.mean()):.4g} for every picture, as "
                "shares do, and are taken for logits: let it return what goes into its softmax, or shares of 1",
                stacklevel=5,
            )
        if ending == "log_softmax":
            warnings.warn(f"the network ends in a log-softmax: {_TAKEN_BACK}", stacklevel=5)
            return replace(self, kind="logits", ending="log_softmax")
        if ending == "sigmoid":
            warnings.warn(
                "the network ends in a sigmoid, and its outputs are taken for logits: "
                "give outputs='multilabel' if each is the probability of a label",
                stacklevel=5,
            )
        low = (values < values.max(1, keepdim=True).values - _UNLIKELY).all(0)
        constant = (values == values[:1]).all(0)
        hidden = tuple((constant & low).nonzero().flatten().tolist())
        constant &= ~low
        centred = bool(constant.any() and not constant.all())
        if centred:
            warnings.warn(
                f"the logit of class {int(constant.nonzero()[0])} is a constant, for which there is no evidence: the "
                "mean over classes is taken off all logits, which changes no probability; for one logit z give "
                "outputs='binary' instead of (0, z), and outputs='logits' to leave them as they are",
                stacklevel=5,
            )
        return replace(self, kind="logits", centred=centred, hidden=hidden if centred else ())

    def _without_ending(self, values: Tensor, last: "_LastEnding") -> Tensor:
        if self.ending == "pair" and last.entered is not None and (column := last.column(values)) is not None:
            half = last.entered.reshape(-1).float() / 2
            return torch.stack([half, -half] if column == 0 else [-half, half], 1)
        if self.ending and (before := last.before(values)) is not None:
            return before.float()
        if self.ending in ("", "log_softmax"):
            return values.float()
        small = torch.finfo(torch.float32).tiny
        exact = values.float()
        if self.ending in ("softmax", "pair"):
            return exact.clamp_min(small).log()
        return exact.clamp_min(small).log() - (1 - exact).clamp_min(torch.finfo(torch.float32).eps / 2).log()


_UNLIKELY = 104.0  # exp(-104) is 0 in single precision
_MASKED = -1e9


def _bounded(scores: Tensor) -> Tensor:
    """Return scores in which -inf, of classes that are masked away, is a number: no probability changes by it.

    A sum such as p log p would be none. Rows without a number stay as they are.
    """
    return scores.masked_fill((scores == -inf) & scores.isfinite().any(1, keepdim=True), _MASKED)


_TAKEN_BACK = "it is taken back, so that logits are explained; probabilities stay what the network says"


class _LastEnding(TorchFunctionMode):
    """Remember the input and the output of the last softmax (over classes) or sigmoid.

    A network that is sure returns 1 exactly, whose logarithm has no slope; what went in has.
    """

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.functions = _ENDINGS.get("sigmoid" if ending == "pair" else ending, set())
        self.entered: Tensor | None = None
        self.result: Tensor | None = None

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        entered = args[0] if args else kwargs.get("input")
        if function in self.functions and isinstance(entered, Tensor) and isinstance(result, Tensor):
            self.entered, self.result = entered, result
        return result

    def before(self, values: Tensor) -> Tensor | None:
        """Return the ending's input, shaped as `values`, where these are its output: as it was, reshaped or copied."""
        if self.entered is None or self.result is None or self.result.numel() != values.numel():
            return None
        result = self.result.detach().reshape(values.shape).to(values)
        return self.entered.reshape(values.shape) if torch.equal(result, values.detach()) else None

    def column(self, values: Tensor) -> int | None:
        """Return which column of (B, 2) values is what came of it, as in (1 - s, s); None for none."""
        if self.result is None or values.ndim != 2 or values.shape[1] != 2 or self.result.numel() != len(values):
            return None
        result = self.result.detach().reshape(-1).to(values)
        return next((k for k in (1, 0) if torch.equal(result, values[:, k].detach())), None)


def _opaque(network: object) -> bool:
    """Return whether nobody sees what a network calls."""
    if not isinstance(network, nn.Module):
        return True
    return any(isinstance(part, (torch.jit.ScriptModule, Called)) or is_compiled(part) for part in network.modules())


def _entry(answer: object, entry: str | int | None, count: int) -> Tensor:
    """Return the tensor that holds the logits. Errors: ValueError that lists names and shapes."""
    if entry is not None:
        return _chosen(answer, entry)
    if isinstance(answer, Tensor):
        return answer
    if (logits := _named(answer, "logits")) is not None:
        return logits
    parts = tensors_in(answer)
    fitting = {name: part for name, part in parts.items() if part.ndim == 2 and part.shape[0] == count}
    if len(fitting) == 1 and _named(answer, "last_hidden_state") is None:
        return next(iter(fitting.values()))
    if not parts:
        raise ValueError(
            f"expected logits (B, K) from the network, got {type(answer).__name__}: wrap it in a module that "
            "returns them"
        )
    listed = ", ".join(f"{name!r} {tuple(part.shape)}" for name, part in parts.items())
    if len(parts) == 1 and (only := next(iter(parts.values()))).ndim == 4 and only.shape[0] == count:
        raise ValueError(
            f"expected logits ({count}, K), the network returns {listed}, a map for each class as in segmentation: let "
            f"a wrapper return the entry itself, and wrap that as {_SEGMENTED}"
        )
    reason = "several entries could be the logits" if len(fitting) > 1 else "no entry is known to be the logits (B, K)"
    raise ValueError(f"{reason} in what the network returns: choose one with output=... (--output), of {listed}")


def _named(answer: object, name: str) -> Tensor | None:
    value = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
    return value if isinstance(value, Tensor) else None


def _chosen(answer: object, entry: str | int) -> Tensor:
    parts: dict[str | int, Tensor] = {0: answer} if isinstance(answer, Tensor) else tensors_in(answer)
    if entry not in parts:
        listed = ", ".join(f"{name!r} {tuple(part.shape)}" for name, part in parts.items())
        raise ValueError(f"the network returns no tensor under output={entry!r}: it returns {listed or 'none'}")
    return parts[entry]


def _check_numbers(values: Tensor) -> None:
    if values.is_complex():
        raise ValueError("expected real logits from the network, got complex numbers: let it return their real part")
    if not values.is_floating_point() and not values.is_quantized:
        raise ValueError(
            f"expected logits from the network, got {values.dtype}, as decisions are: let it return the scores that "
            "they are made of, as floats"
        )


def _check_shape(values: Tensor, count: int) -> None:
    shape = tuple(values.shape)
    if values.ndim == 2 and shape[0] == count and shape[1] >= 2:
        return
    expected = f"expected logits ({count}, K) with K >= 2 classes, the network returned {shape}"
    if values.ndim == 4:
        raise ValueError(f"{expected}, a map for each class as in segmentation: wrap it as {_SEGMENTED}")
    if values.numel() == count:
        raise ValueError(
            f"{expected}: give outputs='binary' (--outputs binary) if it is one logit z of two classes; wrap a "
            "regression so that it returns (t - r, r - t) for a value r and a threshold t that is asked about"
        )
    raise ValueError(f"{expected}: wrap it in a module that returns one row of logits a picture")


def _column(values: Tensor, count: int) -> Tensor:
    if values.numel() != count:
        raise ValueError(f"expected one logit a picture for outputs='binary', ({count}, 1), got {tuple(values.shape)}")
    return values.float().reshape(count, 1)
