"""From sounds to pictures and back: an inverse, a fixed scale, and the laws of keep and remove for what is heard."""

import math

import pytest
import torch

from salmask.audio.front import MelBands
from salmask.audio.hearing import DOMAINS, Hearing, Shifted
from salmask.data import Sample, no_boxes
from salmask.masking import MeanColour, keep, remove

SMALL = {"sample_rate": 2000, "seconds": 0.2, "n_fft": 64, "window": 48, "hop": 16}


def _wave(samples: int = 400, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)).mul(0.2).clamp(-1, 1)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("taper", ["hamming", "hann"])
@pytest.mark.parametrize("samples", [400, 399, 130, 1])
def test_a_picture_is_heard_again_as_the_sound(domain: str, taper: str, samples: int) -> None:
    hearing = Hearing(**SMALL, domain=domain, taper=taper)
    wave = _wave(samples)
    heard = hearing.hear(wave)
    assert heard.picture.shape == (1, hearing.bins, hearing.frames)
    assert float(heard.picture.min()) >= 0 and float(heard.picture.max()) <= 1
    assert torch.allclose(hearing.sound(heard.picture, heard), wave, atol=1e-5)
    assert torch.allclose(hearing.sound(torch.ones_like(heard.picture) * heard.picture, heard), wave, atol=1e-5)


def test_kept_and_removed_sound_add_up_to_the_sound_where_masks_are_linear() -> None:
    masks = torch.rand(1, 1, 33, 26, generator=torch.Generator().manual_seed(1))
    silence, sums = MeanColour((0.0,)), {}
    for domain in DOMAINS:
        hearing = Hearing(**SMALL, domain=domain)
        heard = hearing.hear(_wave())
        sides = [hearing.sound(play(heard.picture[None], masks, silence)[0], heard) for play in (keep, remove)]
        sums[domain] = float((sides[0] + sides[1] - _wave()).abs().max())
    assert sums["linear"] < 1e-5
    assert sums["log"] > 1e-2  # (1 + X)^m - 1 + (1 + X)^(1 - m) - 1 is not X


def test_masks_in_the_log_domain_play_what_the_released_code_plays() -> None:
    hearing = Hearing(**SMALL, peak=None)
    heard, mask = hearing.hear(_wave()), 0.3
    spectrum = hearing.magnitudes(heard.picture[None])
    played = hearing.magnitudes((mask * heard.picture)[None])
    assert torch.allclose(played, (1 + spectrum) ** mask - 1, atol=1e-4)


def test_the_scale_is_fixed_and_no_sound_leaves_it() -> None:
    hearing = Hearing(**SMALL, peak=None)
    assert hearing.loudest == pytest.approx(float(torch.hamming_window(48, dtype=torch.float64).sum()))
    constant = hearing.hear(torch.ones(400)).picture
    assert float(constant.max()) == pytest.approx(1.0, abs=1e-5)  # reached by the loudest sound of all, at 0 Hz
    assert int(constant[0, :, 12].argmax()) == hearing.bins - 1  # the lowest frequency stands in the last row


def test_a_tone_stands_in_the_row_of_its_frequency() -> None:
    hearing = Hearing(**SMALL)
    tone = torch.sin(2 * math.pi * 250 * torch.arange(400) / 2000)
    row = int(hearing.hear(tone).picture[0, :, 12].argmax())
    assert row == hearing.bins - 1 - round(250 / 2000 * 64)


def test_quiet_recordings_are_heard_like_loud_ones_and_played_as_loud_as_they_are() -> None:
    hearing, wave = Hearing(**SMALL), _wave()
    loud, quiet = hearing.hear(wave), hearing.hear(wave / 100)
    assert torch.allclose(loud.picture, quiet.picture, atol=1e-5)
    assert torch.allclose(hearing.sound(quiet.picture, quiet), wave / 100, atol=1e-7)


def test_lmac_s_front_end_is_the_default() -> None:
    hearing = Hearing()
    assert (hearing.frames, hearing.bins) == (431, 513)
    assert Hearing.at(16_000, 5.0) == hearing
    assert Hearing.at(8000, 1.0).window == 186


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (torch.zeros(0), "N >= 1"),
        (torch.zeros(2, 5), "float samples"),
        (torch.tensor([0.0, float("nan")]), "NaN"),
        (torch.tensor([1, 2]), "float samples"),
    ],
)
def test_what_is_no_sound_is_refused(wave: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Hearing(**SMALL).hear(wave)


def test_sounds_beyond_full_scale_are_scaled_or_refused() -> None:
    assert float(Hearing(**SMALL).hear(3 * torch.ones(10)).picture.max()) <= 1
    with pytest.raises(ValueError, match="give a peak"):
        Hearing(**SMALL, peak=None).hear(3 * torch.ones(10))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hop": 40}, "half a window"),
        ({"window": 100}, "n_fft"),
        ({"domain": "mel"}, "domain is one of"),
        ({"taper": "flat"}, "taper is one of"),
        ({"seconds": 0.0}, "seconds"),
        ({"sample_rate": 10}, "sample rate"),
        ({"peak": 2.0}, "peak"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Hearing(**{**SMALL, **changes})  # type: ignore[arg-type]


def test_mel_bands_are_triangles_over_the_magnitudes_and_differentiable() -> None:
    hearing = Hearing(**SMALL)
    mel = MelBands(hearing, 6)
    picture = hearing.hear(_wave()).picture[None].requires_grad_()
    bands = mel(picture)
    assert bands.shape == (1, 1, 6, hearing.frames)
    edges = [700 * (10 ** (m / 2595) - 1) for m in torch.linspace(0, 2595 * math.log10(1 + 1000 / 700), 8).tolist()]
    magnitudes = hearing.magnitudes(picture)[0, 0, :, 5]
    slow = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        total = 0.0
        for place, size in enumerate(magnitudes.tolist()):
            hertz = 1000 * place / 32
            total += size * max(0.0, min((hertz - low) / (middle - low), (high - hertz) / (high - middle)))
        slow.append(math.log1p(total))
    assert torch.allclose(bands[0, 0, :, 5], torch.tensor(slow), atol=1e-4)
    bands.sum().backward()
    assert picture.grad is not None and bool(picture.grad.isfinite().all()) and bool(picture.grad.any())
    with pytest.raises(ValueError, match="too narrow"):
        MelBands(Hearing(16_000, 0.1, n_fft=64, window=64, hop=32), 33)


def test_pictures_with_noise_on_them_have_no_magnitude_below_silence() -> None:
    hearing = Hearing(**SMALL)
    noisy = (hearing.hear(_wave()).picture[None] + 0.5 * torch.randn(1, 1, 33, 26)).requires_grad_()
    bands = MelBands(hearing, 6)(noisy)
    bands.sum().backward()
    assert bool(bands.isfinite().all()) and noisy.grad is not None and bool(noisy.grad.isfinite().all())
    silence = torch.zeros(1, 1, 33, 26, requires_grad=True)
    MelBands(hearing, 6)(silence).sum().backward()
    assert silence.grad is not None and bool(silence.grad.any())  # at silence itself gradients pass


def test_training_turns_a_picture_in_time() -> None:
    sample = Sample(id="a", image=torch.arange(10.0).div(10).expand(1, 2, 10), target=0, boxes=no_boxes())
    torch.manual_seed(0)
    turned = {tuple(Shifted()(sample).image[0, 0].tolist()) for _ in range(40)}
    expected = {tuple(sample.image[0, 0].roll(by).tolist()) for by in range(-2, 3)}
    assert turned == expected


def test_pictures_of_either_domain_are_shown_alike_and_over_60_decibels() -> None:
    for domain in ("log", "linear"):
        hearing = Hearing(2000, 0.2, n_fft=64, window=64, hop=32, domain=domain)
        most = hearing.loudest
        magnitudes = torch.tensor([0.0, most / 1000, most / 10, most]).view(1, 1, 4, 1)
        shown = hearing.shown(hearing.pictures(magnitudes)).flatten().flip(0)
        expected = [0, math.log(2) / math.log(1001), math.log(101) / math.log(1001), 1]
        assert shown.tolist() == pytest.approx(expected, abs=1e-5)
