"""The pool of historic classifiers of CA training: earlier selves of the network, kept in memory and on disk.

A member is a full state (weights and normalisation statistics). `draw` lends a second network that holds a
member's state, in eval mode; the trained network is never overwritten. Members are drawn uniformly; a full pool
replaces a uniformly drawn member. A pool of given classifiers (`ClassifierPool.of`) lends each of them in the same way
and takes up no others. Source: Zolna, Geras & Cho (2018); Phang, Park & Geras (2020).
"""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from salmask.classifier import Classifier
from salmask.files import replace_file

__all__ = ["ClassifierPool"]


class ClassifierPool:
    """At most `size` earlier states of a classifier, one stored every `every` batches."""

    def __init__(self, classifier: Classifier, *, size: int, every: int, generator: Generator) -> None:
        if size < 1 or every < 1:
            raise ValueError(f"a pool needs a size and an interval of at least 1, got {size} and {every}")
        self.size, self.every, self.generator = size, every, generator
        self._members: dict[int, dict[str, Tensor]] = {}
        self._lent = copy.deepcopy(classifier).eval().requires_grad_(False)

    @classmethod
    def of(cls, classifiers: Sequence[Classifier], *, generator: Generator) -> "ClassifierPool":
        """Return a pool of given classifiers, which are states of one network; nothing is offered to it later.

        Errors: ValueError for one whose network is built otherwise than the first one's.
        """
        pool = cls(classifiers[0], size=len(classifiers), every=1, generator=generator)
        for place, one in enumerate(classifiers):
            pool.offer(place, one.network)
            try:
                pool._lent.network.load_state_dict(pool._members[place])
            except RuntimeError as error:
                raise ValueError(
                    f"expected classifiers of one network, got another one in place {place + 1}, whose weights do not "
                    "fit the first: give checkpoints of one architecture with heads alike"
                ) from error
        return pool

    def __len__(self) -> int:
        return len(self._members)

    @property
    def steps(self) -> list[int]:
        """The batch numbers at which the members were stored."""
        return list(self._members)

    def offer(self, step: int, network: nn.Module) -> None:
        """Store the network before batch `step` if it is due: at the start, and every `every` batches."""
        if self._members and step % self.every:
            return
        if len(self._members) == self.size:
            del self._members[self.steps[self._choose(self.size)]]
        # A copy: on the CPU `.cpu()` would hand out the live weights.
        self._members[step] = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def draw(self) -> Classifier:
        """Return a frozen classifier in the state of a uniformly drawn member."""
        self._lent.network.load_state_dict(self._members[self.steps[self._choose(len(self))]])
        return self._lent

    def save(self, folder: Path) -> list[int]:
        """Write members that are not on disk yet, one file each; return the steps of all members."""
        folder.mkdir(parents=True, exist_ok=True)
        for step, state in self._members.items():
            path = folder / f"{step:09d}.pt"
            if not path.exists():
                replace_file(path, partial(torch.save, state))
        return self.steps

    def prune(self, folder: Path) -> None:
        """Delete all files but those of members; call it once a checkpoint that does not name the others is written."""
        ours = {f"{step:09d}.pt" for step in self._members}
        for path in folder.glob("*.pt"):  # half-written ones of a killed run too
            if path.name not in ours:
                path.unlink()

    def load(self, folder: Path, steps: list[int]) -> None:
        """Take up the members that a checkpoint names."""
        self._members = {step: self._read(folder / f"{step:09d}.pt") for step in steps}

    def _read(self, path: Path) -> dict[str, Tensor]:
        """Return one member. Errors: ValueError naming a file that is cut short, missing, or of another network."""
        try:
            state = torch.load(path, weights_only=True)
            self._lent.network.load_state_dict(state)
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(
                f"{path} does not hold an earlier state of the classifier ({kind}): delete the run to start anew"
            ) from error
        return state

    def _choose(self, count: int) -> int:
        return int(torch.randint(count, (1,), generator=self.generator))
