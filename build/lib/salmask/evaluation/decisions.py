"""What a classifier decides of every picture of a data set, as what is to be explained."""

import warnings
from collections.abc import Sequence

import torch

from salmask.classifier import Classifier
from salmask.data import Labelled, Subset, evaluation_batches
from salmask.data.labels import LabelCases, pictures_of
from salmask.training.views import View
from salmask.types import Logits

__all__ = ["decided", "logits_of"]


def logits_of(classifier: Classifier, dataset: Labelled, sight: View, *, batch_size: int = 32) -> Logits:
    """Return the logits (N, K) of every sample, on the CPU."""
    answers: list[Logits] = []
    with classifier.frozen(), torch.no_grad():
        for batch in evaluation_batches(Subset(dataset, transform=sight.transform()), batch_size=batch_size):
            answers.append(classifier.logits(batch.images.to(classifier.device)).cpu())
    return torch.cat(answers)


def decided(classifier: Classifier, dataset: Labelled, sight: View, *, classes: Sequence[str]) -> Labelled:
    """Return the data set under the classifier's decisions: the class of each picture, or every label above .5.

    Errors: ValueError where no label of any picture is above .5.
    """
    if not classifier.multilabel:
        targets = logits_of(classifier, dataset, sight).argmax(1).tolist()
        return Subset(dataset, targets=targets, classes=classes)
    pictures = pictures_of(dataset)
    shown = Subset(dataset, [next(iter(samples.values())) for samples in pictures.values()])
    labels = [row.nonzero().flatten().tolist() for row in logits_of(classifier, shown, sight) > 0]
    if without := sum(not own for own in labels):
        warnings.warn(
            f"of {without} of {len(labels)} pictures no label is above .5, so that none is explained", stacklevel=2
        )
    cases = LabelCases(dataset, dict(zip(pictures, labels, strict=True)), classes=classes)
    if not cases.ids:
        raise ValueError("the classifier holds no label of any picture likelier than .5: explain given labels instead")
    return cases
