"""How files reach a network: a `Sight` for pictures, a `Hearing` for sounds; as values, and as files say it.

run.json        view: {image_size, fit, ...}  or  {hearing: {sample_rate, ...}}
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TypeAlias

from salmask.audio.front import fronts_of
from salmask.audio.hearing import DOMAINS, Hearing
from salmask.audio.network import SoundNetwork, sound_network
from salmask.classifier import Classifier
from salmask.classifier.named import Named
from salmask.classifier.wrappers import as_module
from salmask.data.sight import Sight
from salmask.files import JSON, Facts, Maybe, Within, Word, check_shape

__all__ = ["HEARING", "View", "changed", "hearing_of", "network_in", "sound_classifier", "view_facts", "view_of"]

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
        fronts = [*fronts_of(classifier.network)]
        if not fronts and given.get("domain", view.domain) != view.domain:
            raise ValueError(
                f"the network was made for pictures of the {view.domain} domain, which it takes as they are: leave "
                "domain out, or let the network begin with salmask.audio.Magnitudes or MelBands, which follow it"
            )
        view = replace(view, **given)
        for front in fronts:
            front.hearing = view
        return view
    if "domain" in given:
        raise ValueError("the classifier sees pictures, and domain is a setting of sounds: leave it out")
    if given.get("fit", view.fit) != "crop":
        given.setdefault("crop", 1.0)
    seen = replace(view, **given)
    if "colours" in given and seen.colours is not None and max(seen.colours) >= classifier.channels_in:
        raise ValueError(
            f"the classifier reads channels 0 to {classifier.channels_in - 1}, asked for as red, green and blue are "
            f"{', '.join(map(str, seen.colours))}"
        )
    return seen


def network_in(name: str, file: str, facts: Facts) -> SoundNetwork:
    """Build the network of `audio:NAME@FILE`. Errors: ValueError without a file, or for one that says nothing."""
    if not file or "hearing" not in facts or not facts.get("classes"):
        raise ValueError(
            f"audio:{name} needs the weights of a file that `salmask classifier --audio` has written: audio:NAME@FILE"
        )
    return sound_network(name, _hearing_in(facts), len(facts["classes"]))


def hearing_of(named: Named, facts: Facts, spec: str) -> Hearing | None:
    """Return how a network hears: as the file of its weights says, its function, or what it begins with; else None.

    What it begins with hears so from here on. Errors: ValueError where these contradict each other in more than the
    domain, and for settings that are none.
    """
    fronts = [*fronts_of(as_module(named.network))]
    given = _hearing_in(facts) if "hearing" in facts else _hearing_said(named.hearing, spec)
    if given is None and fronts:
        given = fronts[0].hearing
    for front in fronts:
        if given is not None and replace(front.hearing, domain=given.domain) != given:
            raise ValueError(f"{spec} is to hear {given}, and its {type(front).__name__} is made for {front.hearing}")
        front.hearing = given or front.hearing
    return given


def _hearing_in(facts: Facts) -> Hearing:
    return Hearing(**{key: value for key, value in facts["hearing"].items() if key in _FIELDS})


def _hearing_said(said: object, spec: str) -> Hearing | None:
    """Return the hearing that a function returns beside its network."""
    if said is None or isinstance(said, Hearing):
        return said
    shape: JSON = {f"{key}?": one for key, one in HEARING.items()}
    check_shape(f"{spec}, hearing", said, shape, remedy="expected a salmask.audio.Hearing, or its settings by name")
    assert isinstance(said, Mapping)
    if other := sorted(map(str, said.keys() - _FIELDS)):
        raise ValueError(f"{spec} returns a hearing with {other[0]!r}: expected any of {', '.join(sorted(_FIELDS))}")
    return Hearing(**said)


def sound_classifier(named: Named, hearing: Hearing, *, layers: Sequence[str] | None, options: Facts) -> Classifier:
    """Build the classifier of a network that hears. layers, options: of `Classifier`.

    One's own is tried out with pictures of the size that it is shown, which it may insist on.
    """
    own = named.network
    made_here = isinstance(own, SoundNetwork)
    return Classifier(
        own,
        mean=[0.0],
        std=[1.0],
        layers=own.layers if layers is None and isinstance(own, SoundNetwork) else layers,
        image_size=hearing.image_size,
        image_width=None if made_here else hearing.frames,
        **{**named.more, **options},
    )


_FIELDS = frozenset(field.name for field in fields(Hearing))
