"""The kinds of masker, by name and by the format of their files."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from salmask.audio.decoder import TransposedMasker
from salmask.classifier import Classifier
from salmask.classifier.weights import CONFIG
from salmask.files import ANYTHING, read_json
from salmask.masker import Masker

__all__ = ["MASKERS", "load_masker", "new_masker"]

MASKERS: Mapping[str, type[Masker]] = MappingProxyType({"projected": Masker, "transposed": TransposedMasker})
"""Maskers by the name of their decoder."""


def new_masker(
    classifier: Classifier, *, decoder: str = "projected", start: Masker | None = None, **options: object
) -> Masker:
    """Build a masker for a classifier. options: of its constructor.

    start: a masker whose weights it begins with, as a fine-tuning does. Errors: ValueError for another decoder, and for
    a start that differs in more than its weights.
    """
    if decoder not in MASKERS:
        raise ValueError(f"decoder is one of {', '.join(MASKERS)}, got {decoder!r}")
    masker = MASKERS[decoder].for_classifier(classifier, **options)  # type: ignore[arg-type]
    if start is not None:
        _take_over(masker, start)
    return masker


def load_masker(folder: Path) -> Masker:
    """Load a masker of any kind from a folder, in eval mode. Errors: as `Masker.from_pretrained`."""
    kinds = {kind.FORMAT: kind for kind in MASKERS.values()}
    if not (folder / CONFIG).is_file():
        return Masker.from_pretrained(folder)  # for its clear error
    facts = read_json(folder / CONFIG, {str: ANYTHING}, remedy="it is not the configuration of a salmask masker")
    return kinds.get(str(facts.get("format")), Masker).from_pretrained(folder)


def _take_over(masker: Masker, start: Masker) -> None:
    for name, value in start.settings().items():
        if name != "classifier" and masker.settings()[name] != value:
            raise ValueError(
                f"the masker to begin with has {name} {value}, asked for is {masker.settings()[name]}: give the same "
                "options as in its training"
            )
    masker.load_state_dict(start.state_dict())
