"""The pictures on which a line is measured: the loss on those where cues agree may be flat while behaviour changes.

    val                   both cues say the label
    SHAPE in conflict     the cues say different classes; the loss is that of the class which this cue says
    SHAPE alone           the other cue is not there

Two networks that solve the val pictures in different ways are told apart by pictures on which their ways differ. Other
data than the built-in one has val alone. Source: Juneja et al. (2022), who measure on such pictures beside val.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.data import Batch, collate
from salmask.data.cues import CuePictures
from salmask.outcome import whole_logits
from salmask.study.evidence import Conflict
from salmask.types import Images, Targets, Values

__all__ = ["VAL", "Trial", "main_trial", "trial_losses", "trials_of"]

VAL = "val"


class Trial(NamedTuple):
    """Pictures, and by name the classes that they are measured against."""

    images: Images
    labels: Mapping[str, Targets]


def trials_of(val: Batch, conflict: Conflict | None, alone: Mapping[str, CuePictures]) -> list[Trial]:
    """Return what there is to measure on: val, the pictures in conflict once a cue, and each cue alone."""
    trials = [Trial(val.images, {VAL: val.targets})]
    if conflict is not None:
        trials.append(Trial(conflict.images, {f"{cue} in conflict": said for cue, said in conflict.said.items()}))
    for cue, pictures in alone.items():
        batch = collate([pictures[index] for index in range(len(pictures))])
        trials.append(Trial(batch.images, {f"{cue} alone": batch.targets}))
    return trials


def main_trial(cues: Sequence[str]) -> str:
    """Return the name of the trial by which networks are clustered: the first cue in conflict; val without cues."""
    return f"{cues[0]} in conflict" if cues else VAL


def trial_losses(classifier: Classifier, trials: Sequence[Trial]) -> dict[str, Values]:
    """Return the cross-entropy of each picture, (B,) under the name loss:TRIAL, and 1 where right, accuracy:TRIAL."""
    found: dict[str, Values] = {}
    for images, labels in trials:
        logits = whole_logits(classifier, images.to(classifier.device)).double()
        for name, targets in labels.items():
            targets = targets.to(logits.device)
            found[f"loss:{name}"] = F.cross_entropy(logits, targets, reduction="none")
            found[f"accuracy:{name}"] = (logits.argmax(1) == targets).double()
    return found
