"""Mixtures: the ratio asked for, parts that add up, the same draw for the same key, and decibels known by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from salmask.audio.hearing import Hearing
from salmask.audio.mixtures import (
    Another,
    AnyOf,
    Excerpt,
    Mixed,
    Mixing,
    Other,
    White,
    ideal_mask,
    mix,
    read_mix,
    si_snr,
    snr,
)
from salmask.audio.readers import SoundSample
from salmask.data import Sample, no_boxes

HEARING = Hearing(2000, 0.1, n_fft=32, window=32, hop=16)


class Tones:
    """Two classes of tones, in memory."""

    def __init__(self) -> None:
        self.hearing, self.classes, self.targets, self.ids = HEARING, ["a", "b"], [0, 0, 1], ["x", "y", "z"]

    def __len__(self) -> int:
        return 3

    def wave(self, index: int) -> torch.Tensor:
        return 0.5 * torch.sin(torch.arange(150.0 + 20 * index) * (0.3 + index))

    def __getitem__(self, index: int) -> SoundSample:
        picture = HEARING.hear(self.wave(index)).picture
        return SoundSample(
            id=self.ids[index], image=picture, target=self.targets[index], boxes=no_boxes(), wave=self.wave(index)
        )


@pytest.mark.parametrize("ratio", [-6.0, 0.0, 12.0])
def test_parts_add_up_at_the_ratio_asked_for(ratio: float) -> None:
    sound, other = torch.sin(torch.arange(100.0)), torch.cos(torch.arange(40.0) / 3)
    mixture = mix(sound, other, ratio)
    assert torch.allclose(mixture.wave, mixture.sound + mixture.other)
    assert 20 * math.log10(float(mixture.sound.norm() / mixture.other.norm())) == pytest.approx(ratio, abs=0.3)
    assert float(mixture.wave.abs().max()) <= 1
    cosine = torch.nn.functional.cosine_similarity(mixture.sound, sound, dim=0)
    assert float(cosine) == pytest.approx(1.0)


def test_lmac_s_mixtures_are_ratios() -> None:
    assert 20 * math.log10(0.8 / 0.2) == pytest.approx(12, abs=0.05)
    assert 20 * math.log10(1 / 0.5) == pytest.approx(6, abs=0.03)


def test_silent_parts_stay_silent_and_what_is_no_ratio_is_refused() -> None:
    mixture = mix(torch.zeros(10), torch.ones(3), 0.0)
    assert not mixture.sound.any() and mixture.wave.isfinite().all()
    with pytest.raises(ValueError, match="decibels"):
        mix(torch.ones(3), torch.ones(3), math.nan)
    with pytest.raises(ValueError, match="at least one sample"):
        mix(torch.ones(3), torch.zeros(0), 0.0)


def test_a_mixed_data_set_is_the_same_at_every_reading_and_another_for_another_seed() -> None:
    tones = Tones()
    first, again, other = (Mixed(tones, White(), 6.0, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[1].image, again[1].image) and not torch.equal(first[1].image, other[1].image)
    assert torch.equal(first[1].image, HEARING.hear(first.mixture(1).wave).picture)
    assert first.ids == tones.ids and first.targets == tones.targets


def test_another_sound_is_of_another_class_with_silence_after_it() -> None:
    tones = Tones()
    for seed in range(20):
        drawn = Another(tones)(300, 0, torch.Generator().manual_seed(seed))
        assert drawn.target == 1 and len(drawn.wave) == 300 and not drawn.wave[190:].any()
    assert Mixed(tones, Another(tones), 0.0).mixture(2).other_target == 0
    tones.targets = [0, 0, 0]
    with pytest.raises(ValueError, match="one class alone"):
        Another(tones)(10, 0, torch.Generator())


def test_ratios_are_drawn_between_two() -> None:
    tones = Tones()
    mixed = Mixed(tones, White(), (-6.0, 6.0))
    ratios = [20 * math.log10(float(one.sound.norm() / one.other.norm())) for one in map(mixed.mixture, range(3))]
    assert all(-6 <= ratio <= 6 for ratio in ratios) and len({round(ratio, 3) for ratio in ratios}) == 3
    assert torch.equal(mixed.wave(1), Mixed(tones, White(), (-6.0, 6.0)).wave(1))
    fixed, drawn = Mixed(tones, White(), 3.0).mixture(0), Mixed(tones, White(), (3.0, 3.0)).mixture(0)
    assert torch.equal(fixed.wave, drawn.wave)


def test_one_of_several_kinds_is_drawn_for_each_sound() -> None:
    sample = Tones()[0]
    kinds = AnyOf((lambda one: replace(one, id="a"), lambda one: replace(one, id="b")))
    torch.manual_seed(0)
    drawn = [kinds(sample).id for _ in range(40)]
    assert 10 < drawn.count("a") < 30 and drawn.count("a") + drawn.count("b") == 40
    with pytest.raises(ValueError, match="expected a share in"):
        Mixing(Tones(), White(), (0.0, 0.0), share=1.5)


@pytest.mark.parametrize("domain", ["log", "linear"])
def test_the_ideal_mask_keeps_the_part_that_it_was_made_of(domain: str) -> None:
    hearing = Hearing(2000, 0.2, n_fft=64, window=64, hop=32, domain=domain)
    times = torch.arange(400) / 2000
    mixture = mix(*(torch.sin(2 * math.pi * hertz * times) for hertz in (200.0, 700.0)), 0.0)
    heard = hearing.hear(mixture.wave)
    for own, other in ((mixture.sound, mixture.other), (mixture.other, mixture.sound)):
        mask = ideal_mask(own, heard, hearing)
        assert mask.shape == heard.picture.shape and 0 <= float(mask.min()) <= float(mask.max()) <= 1
        kept = hearing.sound(mask * heard.picture, heard)
        assert si_snr(kept, own) > 20 and si_snr(kept, other) < -10
    assert torch.allclose(ideal_mask(mixture.wave, heard, hearing), torch.ones(()), atol=1e-3)
    assert float((ideal_mask(torch.zeros(400), heard, hearing) * heard.picture).max()) == 0
    assert bool((ideal_mask(torch.zeros(9), hearing.hear(torch.zeros(9)), hearing) == 1).all())


def test_excerpts_begin_anywhere_in_a_file_of_any_rate(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "long.wav", torch.linspace(0, 0.9, 8000).numpy(), 4000)  # 2 seconds that rise
    source, _ = read_mix(f"{tmp_path}:6", Tones())
    assert isinstance(source, Excerpt)
    drawn = [source(200, 0, torch.Generator().manual_seed(seed)).wave for seed in range(20)]
    middles = [float(wave[100]) for wave in drawn]
    assert {len(wave) for wave in drawn} == {200} and min(middles) < 0.3 < 0.6 < max(middles)
    rise = [float(wave[150] - wave[50]) for wave in drawn]
    assert rise == pytest.approx([0.9 * 0.05 / 2] * 20, abs=2e-3)  # 100 samples at 2000 a second
    short = source(6000, 0, torch.Generator()).wave  # longer than the file: silence after it
    assert len(short) == 6000 and not short[4001:].any() and short[3000:3900].any()


def test_training_mixes_anew_from_the_global_generator() -> None:
    tones, mixing = Tones(), Mixing(Tones(), White(), (0.0, 10.0), share=0.5)
    torch.manual_seed(0)
    pictures = [mixing(tones[0]).image for _ in range(30)]
    torch.manual_seed(0)
    assert torch.equal(mixing(tones[0]).image, pictures[0])
    plain = sum(torch.equal(picture, tones[0].image) for picture in pictures)
    assert 5 < plain < 25 and len({float(picture.sum()) for picture in pictures}) > 5
    with pytest.raises(ValueError, match="only sounds"):
        Mixing(tones, White(), (0.0, 0.0))(Sample(id="p", image=torch.zeros(1, 2, 2), target=0, boxes=no_boxes()))


def test_what_a_user_types_names_source_and_ratio(tmp_path: Path) -> None:
    tones = Tones()
    assert read_mix("white:6", tones) == (White(), (6.0, 6.0))
    source, ratios = read_mix("other:-6..3.5", tones)
    assert ratios == (-6.0, 3.5) and isinstance(source(10, 1, torch.Generator()), Other)
    for text in ("white", "white:loud", ":6", "white:inf", "white:3..", "white:6..-6", "white:1..2..3"):
        with pytest.raises(ValueError, match="expected white:DB"):
            read_mix(text, tones)
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_mix(f"{tmp_path / 'none'}:6", tones)
    with pytest.raises(ValueError, match="no sounds"):
        read_mix(f"{tmp_path}:6", tones)


def test_decibels_known_by_hand() -> None:
    reference = torch.tensor([3.0, 4.0])
    assert snr(torch.tensor([3.0, 3.5]), reference) == pytest.approx(20.0)  # error .5 beside 5
    assert snr(torch.zeros(2), reference) == 0
    assert snr(reference, reference) == math.inf
    orthogonal = torch.tensor([-4.0, 3.0])
    assert si_snr(7 * (reference + 0.1 * orthogonal), reference) == pytest.approx(20.0, abs=1e-4)
    assert math.isnan(si_snr(reference, torch.zeros(2)))


def _broken_folder(folder: Path) -> dict[str, Path]:
    """A folder with a sound that can be mixed in, and one of every kind that cannot."""
    soundfile = pytest.importorskip("soundfile")
    folder.mkdir()
    wave = torch.sin(torch.arange(4000.0)).numpy()
    paths = {name: folder / f"{name}.wav" for name in ("text", "empty", "silent", "nan", "short", "fine")}
    paths["text"].write_text("no sound")
    stored = {"empty": wave[:0], "silent": 0 * wave, "nan": wave * np.nan, "short": wave[:20], "fine": wave}
    for name, samples in stored.items():
        soundfile.write(paths[name], samples, 2000, subtype="FLOAT")
    return paths


def test_sounds_that_cannot_be_mixed_in_are_found_before_a_training(tmp_path: Path) -> None:
    paths = _broken_folder(tmp_path / "all")
    words = {"text": "decoded", "empty": "is empty", "silent": "is silent", "nan": "NaN", "short": "lasts 0.01 seconds"}
    for name, word in words.items():
        alone = tmp_path / name
        alone.mkdir()
        (alone / paths[name].name).write_bytes(paths[name].read_bytes())
        with pytest.raises(ValueError, match=rf"{name}\.wav.*{word}"):
            read_mix(f"{alone}:6", Tones())
        with pytest.raises(ValueError, match="none of the sounds"), pytest.warns(UserWarning, match="1 of 1"):
            read_mix(f"{alone}:6", Tones(), skip_broken=True)
    with pytest.warns(UserWarning, match=r"5 of 6 sounds in .* cannot be mixed in .*empty\.wav is empty"):
        source, _ = read_mix(f"{tmp_path / 'all'}:6", Tones(), skip_broken=True)
    assert source == Excerpt((paths["fine"],), 2000)


def test_the_quietest_sounds_are_mixed_like_any_other() -> None:
    sound, other = (torch.randn(100, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    plain, quiet = mix(sound, other, 3.0), mix(1e-30 * sound, 1e-36 * other, 3.0)
    assert torch.allclose(quiet.wave, plain.wave, atol=1e-5)
    with pytest.raises(ValueError, match="in decibels"):
        read_mix("white:7000", Tones())
