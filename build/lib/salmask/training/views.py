"""How files reach a network: a `Sight` for pictures, a `Hearing` for sounds; as values, and as files say it.

run.json        view: {image_size, fit, ...}  or  {hearing: {sample_rate, ...}}
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import TypeAlias

from salmask.audio.hearing import DOMAINS, Hearing, MelBands
from salmask.audio.network import SoundNetwork, sound_network
from salmask.classifier import Classifier
from salmask.classifier.named import Named, named_network
from salmask.classifier.wrappers import Network
from salmask.data.sight import Sight
from salmask.files import JSON, Facts, Maybe, Within, Word

__all__ = ["HEARING", "View", "changed", "sound_classifier", "view_facts", "view_of"]

View: TypeAlias = Sight | Hearing

HEARING = {
    "sample_rate": Within(1000, 384_000),
    "seconds": Within(0, 600, whole=False),
    "n_fft": Within(8, 65_536),
    "window": Within(8, 65_536),
    "hop": Within(1, 65_536),
    "taper": Word("hamming", "hann"),
    "domain": Word(*DOMAINS),
    "peak": Maybe(Within(0, 1, whole=False)),
}
"""The shape of a hearing in a file."""


def view_facts(view: View) -> JSON:
    """Return a view as JSON has it."""
    return {"hearing": asdict(view)} if isinstance(view, Hearing) else asdict(view)


def view_of(facts: Facts) -> View:
    """Return the view that `view_facts` has written."""
    return Hearing(**facts["hearing"]) if "hearing" in facts else Sight(**facts)


def changed(view: View, classifier: Classifier, **settings: object) -> View:
    """Return a view with the settings that are given and not None. Another fit than "crop" crops nothing.

    Of a hearing only the domain may change, and does so in the classifier's network too. Errors: ValueError for
    settings of pictures that are given to a classifier of sounds, or the other way round.
    """
    given: JSON = {name: value for name, value in settings.items() if value is not None}
    if isinstance(view, Hearing):
        if other := sorted(given.keys() - {"domain"}):
            raise ValueError(f"the classifier hears sounds, and {other[0]} is a setting of pictures: leave it out")
        view = replace(view, **given)
        for module in classifier.network.modules():
            if isinstance(module, MelBands):
                module.hearing = view
        return view
    if "domain" in given:
        raise ValueError("the classifier sees pictures, and domain is a setting of sounds: leave it out")
    if given.get("fit", view.fit) != "crop":
        given.setdefault("crop", 1.0)
    return replace(view, **given)


def sound_classifier(
    kind: str, name: str, file: str, facts: Mapping[str, object], *, layers: object, network: Network | None
) -> tuple[Classifier, Hearing, Named]:
    """Build the classifier of sounds in a file. Errors: ValueError for a SPEC without a file, or a file without facts.

    kind, name, file: of the SPEC. facts: what the file says of itself. layers, network: as of `load_classifier`.
    """
    classes = facts.get("classes")
    if not file or "hearing" not in facts or not isinstance(classes, list):
        raise ValueError(
            f"{kind}:{name} needs the weights of a file that `salmask classifier --audio` has written: audio:NAME@FILE"
        )
    given = facts["hearing"]
    assert isinstance(given, Mapping)
    hearing = Hearing(**{key: value for key, value in given.items() if key in _FIELDS})
    own = sound_network(name, hearing, len(classes)) if network is None else network
    named = named_network(kind, name, file=file, network=own)
    read = own.layers if layers is None and isinstance(own, SoundNetwork) else layers
    options = facts.get("options")
    assert options is None or isinstance(options, dict)
    classifier = Classifier(
        named.network,
        mean=[0.0],
        std=[1.0],
        layers=read,  # type: ignore[arg-type]
        image_size=hearing.image_size,
        **(options or {}),
    )
    return classifier, hearing, named


_FIELDS = frozenset(field.name for field in fields(Hearing))
