"""From outside the package: a new CAM, infill, term, metric and data set each is one function.

What is to go by a name, on the command line too, is one line of a table besides.
"""

import json
from functools import partial

import pytest
import torch

import salmask
from salmask import specs
from salmask.data import Sample, no_boxes
from salmask.data.layouts import LAYOUTS, Layout, has_split
from salmask.explain.cam import GradientCAM, grad_cam
from salmask.masking import MeanColour
from salmask.training.recipes import Recipe
from salmask.training.run import Loaded, Sight


class Plain:
    """Grey pictures by their names, each of a class of its own."""

    def __init__(self, ids: list[str]) -> None:
        self.ids, self.classes, self.targets = ids, ["a", "b", "c", "d"], list(range(len(ids)))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image = torch.full((3, 64, 64), 60 * index, dtype=torch.uint8)
        return Sample(id=self.ids[index], image=image, target=self.targets[index], boxes=no_boxes())


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
    masker = salmask.train(classifier, Plain(["1", "2", "3", "4"]), recipe="fix", steps=1)
    scores = salmask.evaluate(classifier, {"masker": masker}, Plain(["1", "2", "3", "4"]), metrics=("mask_mean",))
    assert [row["image"] for row in scores.rows if row["metric"] == "mask_mean"] == ["1", "2", "3", "4"]


# By name: one line of a table


def doubled(maps, gradients):
    return 2 * gradients.mean((2, 3), keepdim=True)


def test_a_line_of_a_table_names_a_cam(classifier, images, monkeypatch) -> None:
    monkeypatch.setattr(specs, "EXPLAINERS", {**specs.EXPLAINERS, "doubled": partial(GradientCAM, doubled)})
    loaded = Loaded(classifier, "own", Sight(64))
    title, explainer, _ = specs.load_explainer("doubled:layer=-1", loaded=loaded)
    assert title == "doubled:layer=-1"
    assert torch.equal(explainer(classifier, images).masks, GradientCAM(doubled)(classifier, images).masks)
    assert "doubled" in specs.list_explainers()


def test_a_line_of_a_table_names_an_infill(classifier, images, monkeypatch) -> None:
    monkeypatch.setitem(specs.INFILLS, "green", lambda colour, generator: MeanColour((0.0, 1.0, 0.0)))
    infill = specs.load_infill("green", classifier=classifier, generator=torch.Generator())
    assert salmask.remove(images, torch.ones(4, 1, 64, 64), infill)[:, 1].eq(1).all()
    occlusion = specs.load_explainer("occlusion:infill=green", loaded=Loaded(classifier, "own", Sight(64)))[1]
    assert occlusion.infill == MeanColour((0.0, 1.0, 0.0))


def test_a_line_of_a_table_names_a_recipe_of_a_new_term(monkeypatch) -> None:
    objective = salmask.Objective({"quarter": (10.0, lambda outcome: (outcome.masks.mean((1, 2, 3)) - 0.25) ** 2)})
    recipes = {**specs.RECIPES, "quarter": Recipe(objective)}
    monkeypatch.setattr(specs, "RECIPES", recipes)
    assert specs.load_recipe("quarter") is recipes["quarter"]


def test_a_line_of_a_table_names_a_metric(classifier, images, monkeypatch) -> None:
    corner = salmask.Metric("corner", lambda case: case.masks[:, 0, 0, 0], {}, "none", (0, 1), "this test")
    monkeypatch.setitem(salmask.METRICS, "corner", corner)
    scores = salmask.evaluate(classifier, ["full", "empty"], images, metrics=["corner"])
    assert (scores["full"]["corner"]["mean"], scores["empty"]["corner"]["mean"]) == (1, 0)


def test_a_line_of_a_table_names_a_reader(tmp_path, monkeypatch) -> None:
    class Lines(Plain):
        def __init__(self, root, split, **given):
            super().__init__((root / f"{split}.txt").read_text().split())

    monkeypatch.setitem(LAYOUTS, "lines", Layout(Lines, lambda root, split: (root / f"{split}.txt").is_file()))
    (tmp_path / "val.txt").write_text("a b c")
    data = salmask.open_data(f"lines:{tmp_path}", "val")
    assert data.ids == ["a", "b", "c"] and data[1].id == "b"
    assert has_split(f"lines:{tmp_path}", "val") and not has_split(f"lines:{tmp_path}", "train")
