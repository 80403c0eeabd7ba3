"""Hearing what a mask keeps and removes: the sound of a picture, with the phase of the recording it was made from."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from salmask.audio.readers import Audible

__all__ = ["Listening"]


class Listening:
    """Sounds of pictures of a data set, by the ids of its recordings."""

    def __init__(self, sounds: Audible) -> None:
        self.sounds = sounds
        self._places = {name: place for place, name in enumerate(sounds.ids)}

    @property
    def sample_rate(self) -> int:
        """Samples a second of the sounds."""
        return self.sounds.hearing.sample_rate

    def shown(self, pictures: Float[Tensor, "batch channels bins frames"]) -> Tensor:
        """Return pictures of the sounds as they are looked at."""
        return self.sounds.hearing.shown(pictures)

    def recording(self, name: str) -> Float[Tensor, " samples"]:
        """Return a recording as it is heard."""
        return self.sounds.wave(self._places[name])

    def heard(self, name: str, pictures: Sequence[Float[Tensor, "1 bins frames"]]) -> list[Tensor]:
        """Return the sounds of pictures that were made from one recording."""
        hearing = self.sounds.hearing
        original = hearing.hear(self.recording(name))
        return [hearing.sound(picture, original) for picture in pictures]
