"""What one visitor looks at: a picture, the class that is explained, and the map of each explainer.

Everything that belongs to a visitor is a value, `Visit`, that goes into a call and comes out of it; `Looks` holds
what all share, and nothing of what any of them has shown. So visitors cannot mix. Calls on one network wait for each
other (convention 10).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from salmask.audio.hearing import Heard, Hearing
from salmask.audio.sounds import read_sound, sound_bytes
from salmask.data import Reader, Sight, TooLargeError
from salmask.evaluation.panels import Panels, class_names_of, played_panels, seen
from salmask.explain.base import Explainer, Explanation
from salmask.masking import MeanColour, keep, remove
from salmask.training.run import Loaded
from salmask.types import Images, Masks, in_colour

__all__ = ["MAX_PIXELS", "Example", "Look", "Looks", "Mapped", "Visit"]

MAX_PIXELS = 50_000_000
"""Pixels of a picture above which the page refuses it before it is decoded."""
_SHOWN = 1024  # pixels of the longer side of the whole picture on the page
_LISTED = 5  # classes with their probabilities


@dataclass(frozen=True)
class Example:
    """A picture that the page offers: a name and (C, height, width) bytes, as the classifier's reader gives them."""

    name: str
    image: UInt8[Tensor, "channels height width"]


@dataclass(frozen=True)
class Look:
    """A picture as it was opened: small enough to keep, whatever the size of its file.

    whole: (3, h, w) bytes, its longer side at most 1024. size: (height, width) of the file. images: what the
    classifier of each explainer sees of it.
    heard: of a sound, what the way back from a picture needs; wave: as it is heard.
    """

    name: str
    whole: UInt8[Tensor, "3 height width"]
    size: tuple[int, int]
    images: Mapping[str, Float[Tensor, "1 _ _ _"]]
    heard: Heard | None = None
    wave: Float[Tensor, " samples"] | None = None


@dataclass(frozen=True)
class Mapped:
    """What one explainer gave: its explanation, raw, and the seconds that it took; or why there is none."""

    title: str
    explanation: Explanation | None
    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Visit:
    """A visitor's picture, the class asked for (None: the decision), and the maps so far, by explainer."""

    look: Look
    target: int | None = None
    maps: Mapping[str, Mapped] = field(default_factory=dict)


class Looks:
    """Explainers by name, each with the classifier that it explains, and the work behind the page.

    base: the classifier whose decisions are listed. max_pixels: of a file, from its header.
    Errors: ValueError for explainers that need ground truth, and for classifiers of different classes, among which no
    class could be chosen.
    """

    def __init__(
        self, explainers: Mapping[str, tuple[Explainer, Loaded]], base: Loaded, *, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.explainers, self.base, self.names = explainers, base, class_names_of(base)
        self.hearing = base.view if isinstance(base.view, Hearing) else None
        self._read = Reader() if self.hearing else base.reader(max_pixels=max_pixels)
        for title, (explainer, own) in explainers.items():
            if explainer.wants & {"boxes", "pixels"}:
                raise ValueError(
                    f"{title} needs ground truth, which a picture that is dropped on a page does not carry"
                )
            if own.classifier.inputs is not None:
                raise ValueError(
                    f"{title} explains a classifier of several inputs, and the page takes one picture: use "
                    "`salmask explain FILE`, which finds the other inputs beside it"
                )
            if class_names_of(own) != self.names:
                raise ValueError(
                    f"the explainers of one page explain one set of classes: {title} has {len(class_names_of(own))}, "
                    f"others {len(self.names)} or of other names; serve it on a page of its own (--port)"
                )
            if own.view != base.view if self.hearing else own.reader() != base.reader():
                raise ValueError(f"{title} reads files in another way than the others: serve it on a page of its own")

    def open_file(self, path: Path, *, name: str | None = None) -> Visit:
        """Read a file that a visitor gave. Errors: ValueError that names the file as the visitor knows it."""
        name = path.name if name is None else name
        try:
            if self.hearing is not None:
                return self._hear(path, name, self.hearing)
            return self.open_image(Example(name, self._read(path)))
        except TooLargeError as error:
            width_height = next(word for word in str(error).split() if "x" in word and word[0].isdigit())
            raise ValueError(
                f"{name} has {width_height} pixels, more than the {self._read.max_pixels:,} that this page takes: make "
                "it smaller"
            ) from error
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(str(path), name)) from error

    def _hear(self, path: Path, name: str, hearing: Hearing) -> Visit:
        wave = read_sound(path, hearing.sample_rate, seconds=hearing.seconds).wave
        heard = hearing.hear(wave)
        images = {title: heard.picture[None].to(own.classifier.device) for title, (_, own) in self.explainers.items()}
        whole = (in_colour(hearing.shown(heard.picture[None]))[0] * 255).round().to(torch.uint8)
        height, width = whole.shape[-2:]
        return Visit(Look(name, whole, (height, width), images, heard, wave))

    def recording(self, session: Visit) -> bytes | None:
        """Return the WAV file of what is heard; None of a picture."""
        wave = session.look.wave
        return None if wave is None or self.hearing is None else sound_bytes(wave, self.hearing.sample_rate)

    def sounds(self, session: Visit, title: str, threshold: float = 0.0) -> dict[str, bytes]:
        """Return WAV files of what is kept and removed, under the mask of `panels`; none where pictures are seen."""
        explanation = session.maps[title].explanation
        if self.hearing is None or session.look.heard is None or explanation is None:
            return {}
        images, masks = session.look.images[title], _cut(explanation.bounded().masks, threshold).float()
        infill = MeanColour.of(self.explainers[title][1].classifier)
        played = {"kept": keep(images, masks, infill), "removed": remove(images, masks, infill)}
        return {
            side: sound_bytes(self.hearing.sound(pictures[0], session.look.heard), self.hearing.sample_rate)
            for side, pictures in played.items()
        }

    def open_image(self, example: Example) -> Visit:
        """Return a session of a picture, of which no more is kept than what is seen and shown."""
        height, width = example.image.shape[-2:]
        kept: dict[Sight, Images] = {}
        images = {}
        for title, (_, own) in self.explainers.items():
            images[title] = kept.setdefault(own.sight, seen(own, example.name, example.image))
        return Visit(Look(example.name, _small(example.image, self.base), (height, width), images))

    def explained(self, session: Visit, titles: Sequence[str], target: int | None) -> Iterator[Visit]:
        """Yield the session with one more map each time, until all that are asked for are there.

        target: the class explained; None: the decision. Maps of an earlier class are dropped first.
        """
        if target != session.target:
            session = replace(session, target=target, maps={})
        yield session
        for title in titles:
            if title not in session.maps:
                session = replace(session, maps={**session.maps, title: self._map(session, title)})
                yield session

    def _map(self, session: Visit, title: str) -> Mapped:
        explainer, own = self.explainers[title]
        targets = None if session.target is None else torch.tensor([session.target])
        start = time.perf_counter()
        try:
            explanation = explainer(own.classifier, session.look.images[title], targets)
        except (ValueError, RuntimeError, ImportError) as error:  # one explainer's trouble leaves the others be
            return Mapped(title, None, failure=" ".join(str(error).split())[:300])
        return Mapped(title, _detached(explanation), time.perf_counter() - start)

    def panels(self, session: Visit, title: str, threshold: float = 0.0) -> Panels:
        """Return the pictures of one explainer: under its mask, or under {mask > threshold} where that is above 0.

        A map outside [0, 1] is brought there by its least and largest value first.
        """
        explanation = session.maps[title].explanation
        if explanation is None:
            raise ValueError(f"{title} gave no map: {session.maps[title].failure}")
        masks = _cut(explanation.bounded().masks, threshold)
        own, images = self.explainers[title][1], session.look.images[title]
        return played_panels(own, images, masks, explanation, top=_LISTED, names=self.names)[0]

    def on_file(self, session: Visit, title: str, *, longest: int | None = None) -> Tensor:
        """Return a map in [0, 1] at the size of the file, (height, width); not a number where nobody looked."""
        explanation = session.maps[title].explanation
        assert explanation is not None
        height, width = session.look.size
        if longest is not None:
            scale = min(1.0, longest / max(height, width))
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
        masks = explanation.bounded().masks.float().cpu()
        return self.explainers[title][1].sight.to_file(masks, height, width)[0, 0].clamp(0, 1)


def _cut(masks: Masks, threshold: float) -> Masks:
    """Return masks, or {masks > threshold} where that is above 0."""
    return (masks > threshold).to(masks.dtype) if threshold > 0 else masks


def _detached(explanation: Explanation) -> Explanation:
    return replace(explanation, masks=explanation.masks.detach(), logits=explanation.logits.detach())


def _small(image: Tensor, loaded: Loaded) -> Tensor:
    """Return a picture in colours, its longer side at most `_SHOWN`, as bytes."""
    scale = _SHOWN / max(image.shape[-2:])
    step = max(1, int(1 / scale / 2)) if scale < 1 else 1  # first by whole steps: twelve megapixels are many floats
    floats = in_colour(image[None, :, ::step, ::step].float(), loaded.view.colours)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        floats = F.interpolate(floats, size, mode="bilinear", align_corners=False, antialias=True)
    return floats[0].round().clamp(0, 255).to(torch.uint8)
