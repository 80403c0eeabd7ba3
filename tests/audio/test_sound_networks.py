"""Classifiers of sounds, where their maps lie, and the masker of transposed convolutions."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from salmask.api import evaluate
from salmask.audio.decoder import TransposedMasker
from salmask.audio.hearing import Hearing
from salmask.audio.network import Cnn14, SoundNetwork, sound_network
from salmask.audio.readers import open_sounds
from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS
from salmask.explain.learned import Learned
from salmask.masker import Masker
from salmask.training.maskers import MASKERS, load_masker, new_masker

HEARING = Hearing(2000, 0.5, n_fft=64, window=64, hop=32)


def _classifier(name: str = "cnn14-w2-d3-m12", hearing: Hearing = HEARING) -> Classifier:
    torch.manual_seed(0)
    network = sound_network(name, hearing, 3)
    return Classifier(network, mean=[0.0], std=[1.0], layers=network.layers, image_size=hearing.image_size)


def _pictures(count: int = 2, hearing: Hearing = HEARING) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([hearing.hear(torch.randn(900, generator=generator)).picture for _ in range(count)])


def test_width_and_depth_are_settings_of_cnn14() -> None:
    network = Cnn14(80, 50)
    assert [block[0].out_channels for block in network.blocks] == [64, 128, 256, 512, 1024, 2048]
    small = Cnn14(16, 4, width=3, depth=2)
    assert small(torch.rand(5, 1, 16, 20)).shape == (5, 4)
    with pytest.raises(ValueError, match="to nothing"):
        Cnn14(7, 4, width=3, depth=4)
    with pytest.raises(ValueError, match="audio:cnn14"):
        sound_network("cnn15", HEARING, 3)
    with pytest.raises(ValueError, match="no classifier of sounds"):
        sound_network("timm/none_such", HEARING, 3)
    with pytest.raises(ValueError, match="deit_tiny_patch16_224 takes pictures of one size alone"):
        sound_network("timm/deit_tiny_patch16_224", HEARING, 3)


def test_a_vision_network_of_timm_reads_the_mel_image() -> None:
    hearing = Hearing(2000, 2.0, n_fft=128, window=128, hop=64)
    classifier = _classifier("timm/resnet10t-m32", hearing)
    assert classifier.num_classes == 3 and len(classifier.layers) == 5
    maps = classifier.features(_pictures(hearing=hearing)).maps
    assert [tap.shape[2] for tap in maps] == [33, 17, 9, 5, 3][-len(maps) :] or maps[-1].shape[2] < maps[0].shape[2]


@pytest.mark.parametrize("hertz", [150, 400, 600])
def test_maps_lie_on_the_picture_where_their_frequencies_are(hertz: int) -> None:
    tone = torch.sin(2 * math.pi * hertz * torch.arange(1000) / 2000)
    picture = HEARING.hear(tone).picture[None]
    network = sound_network("cnn14-w2-d3-m12", HEARING, 3)
    assert isinstance(network, SoundNetwork)
    bands = network.mel(picture)
    row = int(picture[0, 0, :, 15].argmax())
    assert int(network.mel.lay_out(bands, (33, 32))[0, 0, :, 15].argmax()) == pytest.approx(row, abs=2)
    pooled = torch.nn.functional.avg_pool2d(bands, 2)
    laid = network.mel.lay_out(pooled, (33, 32))
    assert laid.shape == (1, 1, 17, 16)
    assert 2 * int(laid[0, 0, :, 7].argmax()) == pytest.approx(row, abs=4)


def test_a_constant_map_stays_constant_where_it_is_laid_out() -> None:
    network = sound_network("cnn14-w2-d3-m12", HEARING, 3)
    for rows in (12, 6, 3):
        assert torch.allclose(network.mel.lay_out(torch.ones(1, 2, rows, 5), (33, 32)), torch.ones(()))


def test_explainers_of_pictures_explain_sounds() -> None:
    classifier, pictures = _classifier(), _pictures()
    settings = {"smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 4}}
    for name in ("gradient", "smoothgrad", "integrated_gradients", "gradcam", "guided_backprop", "ablationcam"):
        explanation = EXPLAINERS[name](**settings.get(name, {}))(classifier, pictures)
        assert explanation.masks.shape == pictures.shape
        assert bool(explanation.masks.isfinite().all()) and bool(explanation.masks.any()), name


def test_a_channel_of_a_laid_out_map_is_ablated_and_not_a_column_of_it() -> None:
    classifier, pictures = _classifier(), _pictures(1)
    classifier.network.requires_grad_(False)
    target = classifier.logits(pictures).argmax(1)
    weights = []
    block = classifier.module_read(-1)
    own = classifier.logits(pictures)[0, target]
    maps = classifier.features(pictures).maps[-1]
    for channel in range(classifier.channels[-1]):

        def without(module: object, inputs: object, output: torch.Tensor, channel: int = channel) -> torch.Tensor:
            changed = output.clone()
            changed[:, channel] = 0
            return changed

        handle = block.register_forward_hook(without)
        weights.append((own - classifier.logits(pictures)[0, target]) / own.abs())
        handle.remove()
    slow = (torch.stack(weights).view(1, -1, 1, 1) * maps).sum(1, keepdim=True).relu()
    slow = torch.nn.functional.interpolate(slow, (33, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(EXPLAINERS["ablationcam"]()(classifier, pictures).masks, slow, atol=1e-5)


@pytest.mark.parametrize("frames", [32, 31, 20])
@pytest.mark.parametrize("layers", [None, (1, 2), (2,), (0,)])
def test_masks_of_transposed_convolutions_have_the_picture_s_size(frames: int, layers: tuple[int, ...] | None) -> None:
    classifier = _classifier()
    masker = TransposedMasker.for_classifier(classifier, layers, generator=torch.Generator().manual_seed(0))
    pictures = _pictures()[..., :frames].contiguous()
    masks = masker(classifier.features(pictures).maps, (33, frames))
    assert masks.shape == (2, 1, 33, frames)
    assert 0.2 < float(masks.detach().mean()) < 0.8
    assert masker.zoom((33, frames)) == 1


def test_gradients_reach_every_weight_of_the_decoder_and_the_seed_makes_it() -> None:
    classifier, pictures = _classifier(), _pictures()
    first, again = (
        TransposedMasker.for_classifier(classifier, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first.fingerprint() == again.fingerprint()
    first([tap.detach() for tap in classifier.features(pictures).maps], (33, 32)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in first.parameters())


def test_maskers_are_saved_and_loaded_as_what_they_are(tmp_path: Path) -> None:
    classifier, pictures = _classifier(), _pictures()
    for decoder, kind in MASKERS.items():
        masker = new_masker(classifier, decoder=decoder, generator=torch.Generator().manual_seed(0)).eval()
        masker.save_pretrained(tmp_path / decoder)
        loaded = load_masker(tmp_path / decoder)
        assert type(loaded) is kind
        maps = classifier.features(pictures).maps
        assert torch.equal(loaded(maps, (33, 32)), masker(maps, (33, 32)))
        assert torch.equal(Learned(loaded)(classifier, pictures).masks, masker(maps, (33, 32)))
    with pytest.raises(ValueError, match="format"):
        Masker.from_pretrained(tmp_path / "transposed")
    with pytest.raises(ValueError, match="decoder is one of"):
        new_masker(classifier, decoder="other")
    with pytest.raises(FileNotFoundError, match="no masker"):
        load_masker(tmp_path / "none")


def test_a_fine_tuning_begins_with_the_weights_of_its_first_stage() -> None:
    classifier = _classifier()
    first = new_masker(classifier, decoder="transposed", width=4, generator=torch.Generator().manual_seed(0))
    second = new_masker(classifier, decoder="transposed", width=4, start=first)
    assert second.fingerprint() == first.fingerprint()
    with pytest.raises(ValueError, match="width"):
        new_masker(classifier, decoder="transposed", width=5, start=first)


def test_sounds_that_are_heard_otherwise_than_the_network_hears_them_are_refused(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "0_ann_0.wav", torch.sin(torch.arange(900.0)).numpy(), HEARING.sample_rate)
    classifier, linear = _classifier(), replace(HEARING, domain="linear")
    scores = evaluate(
        classifier, ["center"], open_sounds(str(tmp_path), "ann", HEARING), metrics=["mask_mean"], targets=[1]
    )
    assert scores.rows
    with pytest.raises(ValueError, match=r"the classifier hears .*domain='log'.* open it with"):
        evaluate(classifier, ["center"], open_sounds(str(tmp_path), "ann", linear), metrics=["mask_mean"], targets=[1])
