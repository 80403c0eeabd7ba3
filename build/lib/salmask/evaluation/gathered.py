"""Scores of several processes, brought to the first one in the order in which one process would have made them.

Process r of R scores the batches r, r + R, r + 2 R, ... In round k each hands over what it has of its k-th batch, so
that the rows of all rounds stand as in a run of one process.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

import torch.distributed

from salmask.evaluation.cases import Failed, Scored, Skip
from salmask.rows.write import Failures, Writer

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["gathered", "help_to_fill"]

Cases: TypeAlias = Callable[[Skip, Failed], Iterator[Scored]]
Failure: TypeAlias = tuple[str, str, str]
"""Explainer, image, error."""
_Part: TypeAlias = tuple[list[Scored], list[Failure], bool]
"""Of one process and round: scores, failures, and whether more is to come."""


def gathered(cases: Cases, writer: Writer, failures: Failures, fabric: "Fabric | None") -> Iterator[Scored]:
    """Yield the scores of all processes, in the first one; failures are written."""
    if fabric is None or fabric.world_size == 1:
        yield from cases(writer.has, failures.add)
        return
    finished = fabric.broadcast({name: set(ids) for name, ids in writer.done.items()})
    for parts in _rounds(cases, finished, fabric):
        for scores, failed, _ in parts:
            for explainer, image, error in failed:
                failures.add(explainer, image, RuntimeError(error))
            yield from scores


def help_to_fill(cases: Cases, fabric: "Fabric") -> None:
    """Hand this process's scores to the first one."""
    for _ in _rounds(cases, fabric.broadcast({}), fabric):
        pass


def _rounds(cases: Cases, finished: dict[str, set[str]], fabric: "Fabric") -> Iterator[list[_Part]]:
    """Yield what all processes have, round by round, until none has more."""
    failed: list[Failure] = []

    def skip(explainer: str, image: str) -> bool:
        return image in finished.get(explainer, ())

    def fail(explainer: str, image: str, error: Exception) -> None:
        failed.append((explainer, image, str(error)))

    batches = ((number, list(scores)) for number, scores in groupby(cases(skip, fail), lambda scored: scored.batch))
    own, turn = next(batches, None), 0
    while True:
        scores: list[Scored] = []
        if own is not None and own[0] == turn:
            scores, own = own[1], next(batches, None)
        parts: list[_Part | None] = [None] * fabric.world_size
        torch.distributed.all_gather_object(parts, (scores, list(failed), own is not None))
        failed.clear()
        together = [part for part in parts if part is not None]
        yield together
        if not any(more for _, _, more in together):
            return
        turn += 1
