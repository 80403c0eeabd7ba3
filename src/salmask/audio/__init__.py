"""Sound as pictures: a front end that can be inverted, readers, mixtures, classifiers, a masker, and listening.

hearing = Hearing(sample_rate=8000, seconds=1.0, n_fft=256, window=256, hop=128)
heard = hearing.hear(wave)                       heard.picture (1, F, T) in [0, 1]
kept = hearing.sound(mask * heard.picture, heard)
"""

from salmask.audio.decoder import TransposedMasker
from salmask.audio.front import Magnitudes, MelBands
from salmask.audio.hearing import Heard, Hearing
from salmask.audio.mixtures import Another, AnyOf, Mixed, Mixing, White, ideal_mask, mix, si_snr, snr
from salmask.audio.network import Cnn14, sound_network
from salmask.audio.readers import Sounds, SoundSample, open_sounds
from salmask.audio.sounds import read_sound, write_sound

__all__ = [
    "Another",
    "AnyOf",
    "Cnn14",
    "Heard",
    "Hearing",
    "Magnitudes",
    "MelBands",
    "Mixed",
    "Mixing",
    "SoundSample",
    "Sounds",
    "TransposedMasker",
    "White",
    "ideal_mask",
    "mix",
    "open_sounds",
    "read_sound",
    "si_snr",
    "snr",
    "sound_network",
    "write_sound",
]
