"""Training a classifier on a folder: it learns, follows its seed, and refuses labels that do not fit."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.data import Sample, no_boxes, training_batches
from salmask.training.classifier import FitSettings, accuracy, fit_classifier


class Colours:
    """`count` pictures whose class is the brightest channel."""

    def __init__(self, count: int, *, classes: int = 3, seed: int = 0) -> None:
        self.classes = [str(k) for k in range(classes)]
        self.targets = [k % classes for k in range(count)]
        self.ids = [f"{k}.png" for k in range(count)]
        self.seed = seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        g = Generator().manual_seed(1000 * self.seed + index)
        image = torch.randint(0, 120, (3, 16, 16), dtype=torch.uint8, generator=g)
        image[self.targets[index] % 3] += 100
        return Sample(self.ids[index], image, self.targets[index], no_boxes())


def new_classifier(classes: int = 3) -> Classifier:
    torch.manual_seed(0)
    return Classifier(SmallNet(classes), mean=(0.5,) * 3, std=(0.25,) * 3, layers=("stem", "deep"), image_size=16)


SETTINGS = FitSettings(epochs=4, batch_size=16, lr=0.1, precision="32-true")


def test_a_network_learns_what_the_pictures_show() -> None:
    classifier, test = new_classifier(), Colours(60, seed=1)
    before = accuracy(classifier, test)
    fitted = fit_classifier(classifier, Colours(96), settings=SETTINGS)
    assert fitted is classifier
    assert not any(module.training for module in classifier.network.modules())
    assert before < 0.7 and accuracy(classifier, test) > 0.9


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_a_training_equals_its_step_written_out(momentum) -> None:
    """SGD with Nesterov's momentum as it was asked for, one cycle, smoothed labels, decay of weights alone."""
    settings = replace(SETTINGS, epochs=1, momentum=momentum, weight_decay=0.05, label_smoothing=0.2)
    data = Colours(96)
    fitted = fit_classifier(new_classifier(), data, settings=settings)
    classifier = new_classifier()
    network = classifier.network.train()
    rates = torch.optim.lr_scheduler.OneCycleLR
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=settings.momentum, nesterov=True)
    schedule = rates(sgd, 0.1, total_steps=7, pct_start=0.25, cycle_momentum=False)
    for batch, _ in zip(training_batches(data, batch_size=16, seed=0), range(6), strict=False):
        log_p = classifier.logits(batch.images).log_softmax(1)
        own = log_p.gather(1, batch.targets[:, None])[:, 0]
        loss = -(0.8 * own + 0.2 * log_p.mean(1)).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        schedule.step()
    for ours, theirs in zip(fitted.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_accuracy_counts_every_picture_once_and_changes_nothing() -> None:
    classifier, test = new_classifier(), Colours(13)
    classifier.network.train()
    state = copy.deepcopy(classifier.network.state_dict())
    with torch.no_grad():
        classifier.network.eval()
        images = torch.stack([test[k].image for k in range(13)]) / 255
        right = (classifier.logits(images).argmax(1) == torch.tensor(test.targets)).float().mean()
        classifier.network.train()
    assert accuracy(classifier, test, batch_size=5) == pytest.approx(float(right))
    assert all(torch.equal(state[key], value) for key, value in classifier.network.state_dict().items())
    assert classifier.network.training


@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)])
def test_the_seed_decides_the_run(seeds) -> None:
    states = []
    for noise, seed in enumerate(seeds):
        classifier = new_classifier()
        torch.manual_seed(noise)
        fit_classifier(classifier, Colours(32), settings=FitSettings(epochs=1, batch_size=8, seed=seed))
        states.append(classifier.fingerprint())
    assert (states[0] == states[1]) == (seeds[0] == seeds[1])


def test_epochs_are_full_passes() -> None:
    read = []

    def watched(steps):
        for step in steps:
            read.append(step)
            yield step

    fit_classifier(new_classifier(), Colours(32), settings=FitSettings(epochs=1.5, batch_size=8), progress=watched)
    assert read == list(range(6))


def test_labels_beyond_the_network_s_classes_are_refused_before_anything_moves() -> None:
    classifier = new_classifier(3)
    before = classifier.fingerprint()
    with pytest.raises(ValueError, match="the data has 5 classes, the network tells 3 apart"):
        fit_classifier(classifier, Colours(20, classes=5), settings=SETTINGS)
    assert classifier.fingerprint() == before


class Breaking(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan if self.training else super().forward(x)


def test_a_loss_that_is_no_number_is_one_clear_error() -> None:
    classifier = Classifier(Breaking(3), mean=(0.5,) * 3, std=(0.25,) * 3, layers=("stem", "deep"), image_size=16)
    with pytest.raises(ValueError, match=r"the loss is not a number: lower the learning rate \(--lr\)"):
        fit_classifier(classifier, Colours(16), settings=FitSettings(epochs=1, batch_size=8))


def test_biases_and_scales_do_not_decay() -> None:
    still = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    torch.manual_seed(0)
    classifier = Classifier(still, mean=(0.5,) * 3, std=(0.25,) * 3, layers=("0",), image_size=16)
    with torch.no_grad():
        still[4].weight.zero_()  # no gradient reaches what lies before
        still[4].bias.zero_()
    scale, weight = still[1].weight.detach().clone(), still[0].weight.detach().clone()
    fit_classifier(classifier, Colours(9), settings=FitSettings(epochs=1, batch_size=9, weight_decay=0.5))
    torch.testing.assert_close(still[1].weight.detach(), scale, rtol=0, atol=1e-6)
    assert float((still[0].weight.detach() / weight).max()) < 1
