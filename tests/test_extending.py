"""From outside the package: a new CAM, infill, term, metric and data set each is one function and one name."""

import json

import pytest
import torch

import salmask
from salmask.data import Sample, no_boxes
from salmask.explain.cam import GradientCAM, grad_cam
from salmask.training.recipes import Recipe


@pytest.fixture(scope="module")
def classifier() -> salmask.Classifier:
    torch.manual_seed(0)
    return salmask.Classifier.from_timm("test_resnet", pretrained=False, num_classes=4, image_size=64)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_cam_is_a_rule_of_weights(classifier, images) -> None:
    def doubled(maps, gradients):
        return 2 * gradients.mean((2, 3), keepdim=True)

    masks = salmask.explain(classifier, images, explainer=GradientCAM(doubled)).masks
    assert torch.allclose(masks, 2 * salmask.explain(classifier, images, explainer=GradientCAM(grad_cam)).masks)


def test_an_infill_is_a_callable(classifier, images) -> None:
    def green(images, holes):
        return torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)

    assert salmask.keep(images, torch.zeros(4, 1, 64, 64), green)[:, 1].eq(1).all()
    options = {"recipe": "fix", "steps": 1, "batch_size": 4}
    own, mean = salmask.train(classifier, images, infill=green, **options), salmask.train(classifier, images, **options)
    assert any(not torch.equal(a, b) for a, b in zip(own.parameters(), mean.parameters(), strict=True))


def test_a_term_is_a_function_of_the_outcome(classifier, images, tmp_path) -> None:
    def quarter(outcome: salmask.Outcome) -> torch.Tensor:
        return (outcome.masks.mean((1, 2, 3)) - 0.25).square()

    recipe = Recipe(salmask.Objective({"quarter": (10.0, quarter)}))
    salmask.train(classifier, images, recipe=recipe, steps=15, batch_size=4, lr=0.01, log_every=1, out=tmp_path)
    log = [json.loads(line)["quarter"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(log) == 15 and sum(log[-3:]) < 0.5 * sum(log[:3])


def test_a_metric_is_a_function_of_the_case(classifier, images) -> None:
    corner = salmask.Metric("corner", lambda case: case.masks[:, 0, 0, 0], {}, "none", (0, 1), "this test")
    scores = salmask.evaluate(classifier, ["full", "empty"], images, metrics=[corner, "mask_mean"])
    assert (scores["full"]["corner"]["mean"], scores["empty"]["corner"]["mean"]) == (1, 0)
    assert str(scores).splitlines()[0].split() == ["explainer", "corner", "mask_mean"]


def test_a_data_set_is_samples_with_ids_targets_and_classes(classifier, images) -> None:
    class Grey:
        def __init__(self) -> None:
            self.classes = ["a", "b", "c", "d"]
            self.targets = [0, 1, 2, 3]
            self.ids = ["1", "2", "3", "4"]

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Sample:
            image = torch.full((3, 64, 64), 60 * index, dtype=torch.uint8)
            return Sample(id=self.ids[index], image=image, target=self.targets[index], boxes=no_boxes())

    masker = salmask.train(classifier, Grey(), recipe="fix", steps=1)
    scores = salmask.evaluate(classifier, {"masker": masker}, Grey(), metrics=("mask_mean",))
    assert [row["image"] for row in scores.rows if row["metric"] == "mask_mean"] == ["1", "2", "3", "4"]
