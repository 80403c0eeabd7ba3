"""L-MAC's loss and its fine-tuning: the published numbers, written out by hand."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from salmask.audio.hearing import Hearing
from salmask.audio.mixtures import Another, Mixing, mix, si_snr
from salmask.audio.readers import SoundSample
from salmask.classifier import Classifier
from salmask.data import no_boxes
from salmask.explain.learned import Learned
from salmask.masker import Masker
from salmask.metrics import METRICS
from salmask.metrics.case import Case
from salmask.objective import OBJECTIVES
from salmask.outcome import Outcome
from salmask.terms import ALIKE, area_unless_alike, energy_guidance
from salmask.training.lessons import absent_asked, nothing_kept
from salmask.training.recipes import RECIPES
from salmask.training.released import as_released
from salmask.training.settings import Settings
from salmask.training.train import train_masker
from salmask.training.variant import stream_of


def _outcome(masks: torch.Tensor, images: torch.Tensor, **logits: torch.Tensor) -> Outcome:
    count = len(masks)
    clean = logits.get("clean", torch.zeros(count, 3))
    targets = clean.argmax(1)
    return Outcome(masks, targets, clean, logits.get("kept", clean), logits.get("removed", clean), images=images)


def test_the_loss_is_the_published_one() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, kept, removed = (torch.randn(5, 3, generator=generator) for _ in range(3))
    masks, images = (torch.rand(5, 1, 4, 6, generator=generator) for _ in range(2))
    outcome = _outcome(masks, images, clean=clean, kept=kept, removed=removed)
    total = RECIPES["lmac"].objective(outcome).total.mean()
    y = clean.argmax(1)
    by_hand = 4 * F.cross_entropy(kept, y) - 0.2 * F.cross_entropy(removed, y) + 0.4 * masks.mean()
    assert float(total) == pytest.approx(float(by_hand), rel=1e-5)


def test_the_released_code_counts_the_area_once_for_each_of_16_sounds() -> None:
    weights = as_released(RECIPES["lmac"]).settings()["weights"]
    assert weights == {"max_class_kept": 4.0, "min_class_removed": 0.2, "area": pytest.approx(6.4)}
    assert as_released(RECIPES["lmac_tuned"]).settings()["weights"]["area_unless_alike"] == pytest.approx(6.4)
    assert as_released(RECIPES["fix"]).settings()["weights"] == RECIPES["fix"].settings()["weights"]


def test_the_class_predicted_is_explained_whatever_the_settings_say_unless_the_masker_is_told_one() -> None:
    masker, conditioned = Masker((4,), (4,)), Masker((4,), (4,), classes=3)
    assert RECIPES["lmac"].settled(Settings(target="label"), masker).target == "predicted"
    assert RECIPES["fix"].settled(Settings(target="label"), masker).target == "label"
    for target in ("label", "predicted"):
        assert RECIPES["lmac"].settled(Settings(target=target), conditioned).target == target  # type: ignore[arg-type]
    assert RECIPES["lmac"].settings()["target"] == "predicted" and "target" not in RECIPES["fix"].settings()
    with pytest.raises(ValueError, match="target is label or predicted"):
        RECIPES["lmac"].__class__(OBJECTIVES["lmac"], target="other")


def test_masks_like_the_picture_are_guided_by_its_loud_parts_and_others_by_their_area() -> None:
    images = torch.tensor([[0.0, 1.0, 0.3, 0.4]]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    alike = torch.tensor([0.1, 0.9, 0.5, 0.8])
    unlike = torch.tensor([0.9, 0.0, 0.9, 0.1])
    outcome = _outcome(torch.stack([alike, unlike]).view(2, 1, 2, 2), images)
    kept = unlike * images[0].flatten()
    cosine = float(kept @ images[0].flatten() / kept.norm() / images[0].norm())
    assert cosine < ALIKE
    loud = torch.tensor([0.0, 1.0, 0.0, 1.0])  # at least .35 of the loudest
    by_hand = -sum(math.log(m if on else 1 - m) for m, on in zip(alike.tolist(), loud.tolist(), strict=True)) / 4
    assert energy_guidance(outcome).tolist() == pytest.approx([by_hand, 0.0])
    assert area_unless_alike(outcome).tolist() == pytest.approx([0.0, float(unlike.mean())])


def test_guidance_reads_masks_on_a_grid_at_the_size_of_the_pictures() -> None:
    images = torch.rand(2, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    small = torch.full((2, 1, 2, 4), 0.7)
    whole = F.interpolate(small, (4, 8))
    assert torch.allclose(energy_guidance(_outcome(small, images)), energy_guidance(_outcome(whole, images)))
    silent = _outcome(torch.full((1, 1, 4, 8), 0.5), torch.zeros(1, 1, 4, 8))
    assert bool(energy_guidance(silent).isfinite().all()) and bool(area_unless_alike(silent).isfinite().all())
    with pytest.raises(ValueError, match="give Outcome"):
        energy_guidance(Outcome(small, torch.zeros(2, dtype=torch.long), torch.zeros(2, 3), None, None))


def test_gradients_of_the_guidance_reach_the_mask_and_are_finite_at_its_ends() -> None:
    images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([40.0, -40.0, 1.0, 0.5]).repeat(4).view(1, 1, 4, 4).requires_grad_()
    energy_guidance(_outcome(torch.cat([logits.sigmoid()]), images)).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


class _Sum(torch.nn.Module):
    """Two classes: the logit of the first is the sum of the pixels, of the second 0."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.stack([40 * pictures.flatten(1).sum(1) - 10, pictures.flatten(1).sum(1) * 0], 1)


def test_average_drop_takes_one_softmax() -> None:
    """The published recipe takes a second softmax of the probabilities 1 and 0, which makes .5 and more of a drop 1."""
    from salmask.classifier import Classifier

    classifier = Classifier(_Sum(), mean=[0.0], std=[1.0], layers=[], image_size=8, outputs="logits")
    pictures = torch.full((1, 1, 8, 8), 0.5)
    case = Case(
        torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long), ["a"], images=pictures, classifier=classifier
    )
    drop = float(METRICS["average_drop"](case))
    twice = [float(torch.tensor([p, 1 - p]).softmax(0)[0]) for p in (1.0, 0.0)]
    assert drop == pytest.approx(1.0, abs=1e-4)
    assert (twice[0] - twice[1]) / twice[0] == pytest.approx(0.632, abs=1e-3)


class Tones:
    """Two classes of tones, in memory: 300 and 700 hertz at any phase."""

    def __init__(self) -> None:
        self.hearing = Hearing(2000, 0.1, n_fft=64, window=64, hop=32, domain="linear")
        self.classes, self.targets, self.ids = ["low", "high"], [0, 1] * 8, [str(number) for number in range(16)]

    def __len__(self) -> int:
        return 16

    def wave(self, index: int) -> torch.Tensor:
        return torch.sin(torch.arange(200.0) * 2 * math.pi * (300, 700)[index % 2] / 2000 + index)

    def __getitem__(self, index: int) -> SoundSample:
        wave, target = self.wave(index), self.targets[index]
        picture = self.hearing.hear(wave).picture
        return SoundSample(id=self.ids[index], image=picture, target=target, boxes=no_boxes(), wave=wave)


class Bands(torch.nn.Module):
    """Logits: the share of the loudness in the lower and the upper half; 0 for neither. Its map knows the frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.read = Placed()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.read(x)[:, :1].mean(3)[:, 0]
        high, low = x[:, :17].sum(1), x[:, 17:].sum(1)
        total = (low + high + 0.05)[:, None]
        return 8 * torch.stack([low, high, 0.3 * total[:, 0]], 1) / total - 4


class Placed(torch.nn.Module):
    """A picture and its frequency."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.linspace(1, -1, x.shape[2])[:, None].expand_as(x)
        return torch.cat([x, rows], 1)


def _told(out: Path, *, share: float, recipe: str = "lmac", **settings: float) -> tuple[Classifier, Masker]:
    """Return a classifier of tones and a masker that is told the class, trained on a share of mixtures."""
    tones = Tones()
    size = tones.hearing.bins
    classifier = Classifier(Bands(), mean=[0.0], std=[1.0], layers=["read"], image_size=size, outputs="logits")
    generator = torch.Generator().manual_seed(0)
    masker = Masker.for_classifier(classifier, layers=[0], stride=1, width=16, classes=3, generator=generator)
    chosen = Settings(epochs=80, batch_size=8, lr=0.005, decay_at=(0.7,), precision="32-true", **settings)  # type: ignore[arg-type]
    stream = stream_of(tones, chosen, Mixing(tones, Another(tones), (-6.0, 6.0), share=share))
    train_masker(masker, classifier, stream, 16, recipe=RECIPES[recipe], settings=chosen, out=out)
    return classifier, masker


def test_a_masker_that_is_told_the_class_separates_mixtures_like_those_it_was_trained_on(tmp_path: Path) -> None:
    classifier, masker = _told(tmp_path, share=1.0)
    tones = Tones()
    mixture = mix(tones.wave(2), tones.wave(5), 0.0)
    heard = tones.hearing.hear(mixture.wave)
    for target, (own, other) in enumerate([(mixture.sound, mixture.other), (mixture.other, mixture.sound)]):
        masks = Learned(masker)(classifier, heard.picture[None], torch.tensor([target])).masks
        kept = tones.hearing.sound(masks[0] * heard.picture, heard)
        assert si_snr(kept, own) > 8 > -8 > si_snr(kept, other)


def test_a_masker_that_was_asked_for_absent_classes_does_not_write_what_is_not_there(tmp_path: Path) -> None:
    classifier, masker = _told(tmp_path, share=0.5, absent=0.4)  # without: .62 and .48 of the absent class
    tones = Tones()
    for target in (0, 1):
        picture = tones[target].image[None]
        for asked in (target, 1 - target):
            mask = Learned(masker)(classifier, picture, torch.tensor([asked])).masks
            heard = float(classifier.logits(mask * picture).softmax(1)[0, asked])
            assert heard > 0.9 if asked == target else heard < 0.15


def test_classes_that_are_asked_for_though_absent_are_unlikely_ones() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5))
    classifier = Classifier(network, mean=[0.0], std=[1.0], layers=[], image_size=2, outputs="logits")
    logits = torch.tensor([[3.0, 2.9, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0, 0.0]]).repeat(200, 1)
    targets = torch.tensor([0, 1]).repeat(200)
    asked, absent = absent_asked(classifier, logits, targets, 0.3, torch.Generator().manual_seed(0))
    assert 80 < int(absent.sum()) < 160 and torch.equal(asked[~absent], targets[~absent])
    assert set(asked[absent & (targets == 0)].tolist()) == {2, 3, 4}  # 1 is likely: it may be there
    assert set(asked[absent & (targets == 1)].tolist()) == {0, 3, 4}


def test_of_an_absent_class_nothing_is_to_be_kept() -> None:
    masks = torch.tensor([0.25, 0.5]).view(2, 1, 1, 1)
    kept = torch.tensor([[0.0, 2.0, 1.0], [60.0, 0.0, 0.0]])
    outcome = Outcome(masks, torch.tensor([1, 0]), kept, kept, None)
    by_hand = -math.log(1 - math.exp(2) / (1 + math.exp(2) + math.exp(1))) + 0.25
    assert nothing_kept(outcome).tolist() == pytest.approx([by_hand, 60 - math.log(2) + 0.5])


@pytest.mark.parametrize(("recipe", "classes"), [("lmac", None), ("reader", 3), ("casm_f", 3)])
def test_absent_classes_are_refused_where_they_mean_nothing(recipe: str, classes: int | None, tmp_path: Path) -> None:
    tones = Tones()
    size = tones.hearing.bins
    classifier = Classifier(Bands(), mean=[0.0], std=[1.0], layers=["read"], image_size=size, outputs="logits")
    masker = Masker.for_classifier(classifier, layers=[0], stride=1, classes=classes)
    settings = Settings(epochs=1, batch_size=8, absent=0.2, precision="32-true")
    with pytest.raises(ValueError, match="not there"):
        train_masker(
            masker,
            classifier,
            stream_of(tones, settings, None),
            16,
            recipe=RECIPES[recipe],
            settings=settings,
            out=tmp_path,
        )
