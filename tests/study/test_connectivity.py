"""The line between two trainings: heights by hand, laws, clusters; and the study from end to end on a tiny scale."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from salmask.classifier import Classifier
from salmask.classifier.hold import fresh_statistics
from salmask.cli.main import main
from salmask.data import Batch, Subset, collate
from salmask.data.cues import CuePictures
from salmask.files import JSON
from salmask.masking import MeanColour, remove
from salmask.report.connection import read_connectivity
from salmask.report.connectivity import connectivity_part
from salmask.report.page import write_report
from salmask.rows.archive import pack
from salmask.rows.read import read_rows
from salmask.study.connect import Connection, Extent, Pictures
from salmask.study.connected import run_connectivity
from salmask.study.connectivity import (
    barrier_height,
    check_line,
    clusters_of,
    convexity_gap,
    in_between,
    places,
    ridge_height,
    silhouette,
    walk,
)
from salmask.study.evidence import Conflict, cue_scores, followed
from salmask.study.trials import VAL, main_trial, trial_losses, trials_of
from salmask.study.two_cues import NETWORK, TwoCues, small_network
from salmask.training.log import LOG
from salmask.training.run import Loaded, Sight, save_classifier

# Heights


def test_a_convex_loss_has_neither_barrier_nor_gap() -> None:
    along = places(11)
    assert barrier_height((along - 0.3) ** 2) == 0
    assert convexity_gap((along - 0.3) ** 2) == 0
    assert barrier_height(np.full(5, 0.7)) == 0 == convexity_gap(np.full(5, 0.7))


def test_a_concave_quadratic_has_its_vertex_as_barrier_and_gap() -> None:
    along = places(11)
    tilted = 4 * along * (1 - along) + 3 * along + 1  # the straight part takes no share in it
    assert barrier_height(tilted) == pytest.approx(1.0)
    assert convexity_gap(tilted) == pytest.approx(1.0)


def test_a_double_well_has_the_height_between_its_wells() -> None:
    """L = (s^2 - 1)^2 on s in [-1, 1]: wells at the ends, 1 in the middle."""
    s = 2 * places(21) - 1
    assert barrier_height((s**2 - 1) ** 2) == pytest.approx(1.0)
    assert convexity_gap((s**2 - 1) ** 2) == pytest.approx(1.0)


def test_the_gap_finds_wells_that_the_line_between_the_ends_passes_over() -> None:
    """From far outside of both wells, s in [-2, 2]: no point is above the line between the ends, at 9; the gap is 1."""
    s = 4 * places(41) - 2
    losses = (s**2 - 1) ** 2
    assert barrier_height(losses) == 0
    assert convexity_gap(losses) == pytest.approx(1.0)


def test_a_ridge_is_above_the_higher_end_and_a_loss_that_falls_in_a_step_has_a_gap_alone() -> None:
    s = 2 * places(21) - 1
    assert ridge_height((s**2 - 1) ** 2) == pytest.approx(1.0)
    step = np.array([4.0, 4, 4, 0, 0])
    assert ridge_height(step) == 0
    assert barrier_height(step) == pytest.approx(2.0)  # at the third of five points: 4 above 2
    assert convexity_gap(step) == pytest.approx(8 / 3)  # up to the first low point: 4 above 4/3
    tilted = np.array([0.0, 3.0, 1.0])
    assert ridge_height(tilted) == ridge_height(tilted[::-1]) == pytest.approx(2.0)


def slow_gap(losses: np.ndarray) -> float:
    best = 0.0
    for i, j in combinations(range(len(losses)), 2):
        for k in range(i, j + 1):
            t = (k - i) / (j - i)
            best = max(best, losses[k] - ((1 - t) * losses[i] + t * losses[j]))
    return best


def test_the_gap_is_that_of_three_plain_loops_no_less_than_the_barrier_and_the_same_from_the_other_end() -> None:
    losses = np.random.default_rng(0).normal(size=(50, 9))
    gaps, barriers = convexity_gap(losses), barrier_height(losses)
    assert gaps == pytest.approx(np.array([slow_gap(one) for one in losses]))
    assert (gaps >= barriers).all() and (barriers >= ridge_height(losses)).all() and (ridge_height(losses) >= 0).all()
    assert convexity_gap(losses[:, ::-1]) == pytest.approx(gaps)
    assert barrier_height(losses[:, ::-1]) == pytest.approx(barriers)


@pytest.mark.parametrize("points", [2, 1, 0, -3])
def test_fewer_than_three_points_are_refused(points) -> None:
    with pytest.raises(ValueError, match="at least 3 points"):
        places(points)
    with pytest.raises(ValueError, match="at least 3 points"):
        Extent(points=points)


# Lines


def loaded(seed: int, classes: int = 4, *, size: int = 32, network: str = NETWORK, mean: float = 0.4) -> Loaded:
    torch.manual_seed(seed)
    classifier = Classifier(small_network(classes), mean=(mean,) * 3, std=(0.25,) * 3, layers=None, image_size=size)
    return Loaded(classifier, network, Sight(size, "squash"), tuple("abcdefg"[:classes]))


def test_in_between_is_a_weighted_mean_with_exact_ends() -> None:
    first = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([5.0, 0.0]), "n": torch.tensor(7)}
    assert in_between(first, second, 0.25)["w"].tolist() == [2.0, 1.5]
    assert in_between(first, second, 0.25)["n"] == 3
    for place, end in ((0.0, first), (1.0, second)):
        assert all(torch.equal(in_between(first, second, place)[name], end[name]) for name in end)
        assert in_between(first, second, place)["w"] is not end["w"]


class Scaled(nn.Module):
    """Logits (s, 0), whatever the picture: its loss of class 0 is log(1 + exp(-s))."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.s + 0 * x.mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], 1)


def test_a_walk_measures_the_network_at_every_place_and_leaves_the_ends_alone() -> None:
    ends = [Classifier(Scaled(s), mean=(0.0,) * 3, std=(1.0,) * 3, layers=[], image_size=8) for s in (-1.0, 3.0)]
    prints = [one.fingerprint() for one in ends]
    found = list(walk(*ends, [0, 0.25, 1], lambda one: one.logits(torch.zeros(1, 3, 8, 8))[0, 0].item()))
    assert found == [-1.0, 0.0, 3.0]
    assert [one.fingerprint() for one in ends] == prints


def test_a_network_against_itself_has_no_barrier_and_no_gap() -> None:
    one, images = loaded(0).classifier, torch.rand(12, 3, 32, 32)
    labels = torch.arange(12) % 4

    def loss(classifier: Classifier) -> float:
        with torch.no_grad(), classifier.frozen():
            return float(nn.functional.cross_entropy(classifier.logits(images).double(), labels))

    for statistics in ((), images.split(6)):
        losses = np.array(list(walk(one, copy.deepcopy(one), places(5), loss, statistics=statistics)))
        assert barrier_height(losses) == 0 == convexity_gap(losses)


def test_fresh_statistics_are_those_of_the_pictures_and_nothing_else_changes() -> None:
    one = loaded(0).classifier
    one.network.insert(0, nn.Dropout(0.9))
    layer, images = one.network[1][1], torch.rand(20, 3, 32, 32)
    weights = {name: value.clone() for name, value in one.network.named_parameters()}
    one.network.train()
    fresh_statistics(one, images.split(5))
    with torch.no_grad():
        seen = one.network[1][0]((images - one.mean) / one.std)
    assert layer.running_mean == pytest.approx(seen.mean((0, 2, 3)), abs=1e-5)
    batches = torch.stack([part.var((0, 2, 3)) for part in seen.split(5)]).mean(0)
    assert layer.running_var == pytest.approx(batches, abs=1e-5)
    assert layer.momentum == 0.1 and all(module.training for module in one.network.modules())
    assert all(torch.equal(value, weights[name]) for name, value in one.network.named_parameters())
    with pytest.raises(ValueError, match="at least one batch"):
        fresh_statistics(one, [])


def test_without_fresh_statistics_a_line_has_a_barrier_that_is_not_the_weights() -> None:
    """Of one network whose channels carry another scale, with the statistics that go with it: the same function."""
    one = loaded(0).classifier
    images = torch.rand(40, 3, 32, 32)
    fresh_statistics(one, images.split(20))
    other = copy.deepcopy(one)
    with torch.no_grad():
        for stage in list(other.network)[:4]:
            stage[0].weight.mul_(8.0)
    fresh_statistics(other, images.split(20))
    labels = one.logits(images).argmax(1)

    def loss(classifier: Classifier) -> float:
        with torch.no_grad(), classifier.frozen():
            return float(nn.functional.cross_entropy(20 * classifier.logits(images), labels))

    with_, without = (
        float(barrier_height(np.array(list(walk(one, other, places(5), loss, statistics=statistics)))))
        for statistics in (images.split(20), ())
    )
    assert with_ < 0.01 * without


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: loaded(1, classes=5), "heads alike.*4 classes.*5"),
        (lambda: loaded(1, network="timm:resnet18"), "one architecture"),
        (lambda: replace(loaded(1), classes=("d", "c", "b", "a")), "heads alike.*order"),
        (lambda: loaded(1, mean=0.5), "see pictures alike"),
        (lambda: replace(loaded(1), view=Sight(48, "squash")), "see pictures alike"),
    ],
)
def test_checkpoints_without_a_line_between_them_are_refused(other, words) -> None:
    check_line({"a": loaded(0), "b": loaded(1)})
    with pytest.raises(ValueError, match=words):
        check_line({"a": loaded(0), "b": other()})


def test_one_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        check_line({"a": loaded(0)})


def test_another_architecture_is_named_with_what_differs() -> None:
    wider = loaded(1)
    wider.classifier.network[0][0] = nn.Conv2d(3, 24, 5, 2, 2, bias=False)
    with pytest.raises(ValueError, match=r"one architecture.*0\.0\.weight"):
        check_line({"a": loaded(0), "b": wider})


# Clusters


def gaps_of(groups: list[int], *, near: float = 0.05, far: float = 1.0) -> np.ndarray:
    labels = np.array(groups)
    gaps = np.where(labels[:, None] == labels[None], near, far)
    np.fill_diagonal(gaps, 0)
    return gaps


def test_clusters_are_those_of_the_gaps_and_their_number_is_found() -> None:
    for groups in ([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 2, 2, 0, 2, 1], [0, 1, 1]):
        assert clusters_of(gaps_of(groups)).tolist() == groups
    assert silhouette(gaps_of([0, 0, 1, 1]), np.array([0, 0, 1, 1])) == pytest.approx(0.95)


def test_a_number_of_clusters_is_taken_as_given() -> None:
    gaps = gaps_of([0, 0, 1, 1, 2, 2])
    assert len(set(clusters_of(gaps, 2).tolist())) == 2
    assert clusters_of(gaps, 1).tolist() == [0] * 6
    assert clusters_of(gaps, 6).tolist() == list(range(6))
    with pytest.raises(ValueError, match="1 to 6 clusters"):
        clusters_of(gaps, 7)


def test_networks_without_a_gap_are_one_cluster_and_two_networks_are_not_split() -> None:
    assert clusters_of(np.zeros((4, 4))).tolist() == [0] * 4
    assert clusters_of(gaps_of([0, 1])).tolist() == [0, 0]
    assert np.isnan(silhouette(np.zeros((4, 4)), np.zeros(4, int)))


# Evidence


class ReadsMark(nn.Module):
    """Says the class of the mark: the one whose colour its corner is nearest to."""

    def __init__(self) -> None:
        super().__init__()
        colours = torch.tensor([[0.9, 0.15, 0.15], [0.15, 0.75, 0.2], [0.2, 0.3, 0.95], [0.95, 0.85, 0.15]])
        self.colours = nn.Parameter(colours)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corner = x[:, :, 2:6, 2:6].mean((2, 3))
        return -20 * (corner[:, None] - self.colours).square().sum(2)


@pytest.fixture(scope="module")
def conflict() -> Conflict:
    return Conflict.of(CuePictures(24, seed=0, cues={"shape": 1.0, "mark": 0.0}))


def test_a_reader_of_the_mark_follows_the_mark_and_the_whole_drop_is_there(conflict) -> None:
    classifier = Classifier(ReadsMark(), mean=(0.0,) * 3, std=(1.0,) * 3, layers=[], image_size=48)
    says = {cue: value.numpy() for cue, value in conflict.says(classifier).items()}
    assert says["mark"].mean() == 1 and says["shape"].mean() == 0 and followed(says) == "mark"
    scores = cue_scores(classifier, conflict, torch.ones(24, 1, 48, 48), conflict.said["mark"])
    assert torch.allclose(scores["drop:mark"], torch.ones(24).double(), atol=1e-5)
    assert torch.allclose(scores["lift:mark"], torch.ones(24).double(), atol=1e-5)  # a full map names nothing
    assert torch.allclose(scores["share:mark"], conflict.pixels["mark"].mean((1, 2, 3)).double(), atol=1e-6)


def test_share_and_lift_are_those_computed_by_hand(conflict) -> None:
    classifier = Classifier(ReadsMark(), mean=(0.0,) * 3, std=(1.0,) * 3, layers=[], image_size=48)
    masks = 0.5 * conflict.pixels["mark"] + conflict.pixels["shape"]
    scores = cue_scores(classifier, conflict, masks, conflict.said["mark"])
    mark, shape = (float(conflict.pixels[cue][0].sum()) for cue in ("mark", "shape"))
    assert float(scores["share:mark"][0]) == pytest.approx(0.5 * mark / (0.5 * mark + shape))
    assert float(scores["lift:shape"][0]) == pytest.approx(48**2 / (0.5 * mark + shape))
    hidden = remove(conflict.images, masks * conflict.pixels["mark"], MeanColour.of(classifier))
    before, after = (
        classifier.logits(one).softmax(1)[0, conflict.said["mark"][0]] for one in (conflict.images, hidden)
    )
    assert before > after and float(scores["drop:mark"][0]) == pytest.approx(1.0)
    empty = cue_scores(classifier, conflict, torch.zeros(24, 1, 48, 48), conflict.said["mark"])
    assert all(bool(value.isnan().all()) for value in empty.values())


def test_trials_measure_a_picture_in_conflict_against_the_class_of_each_cue(conflict) -> None:
    """A reader of the mark has no loss in conflict by the mark, and is never right by the shape."""
    classifier = Classifier(ReadsMark(), mean=(0.0,) * 3, std=(1.0,) * 3, layers=[], image_size=48)
    alone = TwoCues().alone_sets(8)
    val = CuePictures(8, seed=1, cues={"shape": 1.0, "mark": 1.0})
    trials = trials_of(collate([val[index] for index in range(8)]), conflict, alone)
    found = trial_losses(classifier, trials)
    names = {VAL: 1, "shape in conflict": 0, "mark in conflict": 1, "mark alone": 1}
    assert {name: float(found[f"accuracy:{name}"].mean()) for name in names} == names
    assert found["accuracy:shape alone"].mean() < 1 and len(found["loss:shape alone"]) == 8
    guess = classifier.logits(conflict.images).double().log_softmax(1)
    by_hand = -guess.gather(1, conflict.said["shape"][:, None])[:, 0].detach()
    assert found["loss:shape in conflict"] == pytest.approx(by_hand)
    assert main_trial(["shape", "mark"]) == "shape in conflict" and main_trial([]) == VAL
    assert list(trial_losses(classifier, trials_of(collate([val[0]]), None, {}))) == ["loss:val", "accuracy:val"]


def test_a_cue_alone_is_alone() -> None:
    for cue, pictures in TwoCues().alone_sets(4).items():
        assert list(pictures.said(0)) == [cue] and pictures.said(2)[cue] == pictures.targets[2]


def test_a_tie_follows_no_cue() -> None:
    assert followed({"shape": np.array([1.0, 0]), "mark": np.array([0, 1.0])}) is None


# From end to end

TINY = Extent(
    points=3, measured=12, mapped=6, steps=3, batch_size=8, statistics=2, explainers=("gradcam", "fix", "in_turn"),
    layers=(1, 2),
)  # fmt: skip
SOURCE = TwoCues(each=1, side=32, pictures=32, epochs=1.0, start_pictures=32, start_epochs=1.0)


def tiny(out: Path, said: list[str], extent: Extent = TINY) -> Connection:
    (out / "parts" / "networks").mkdir(parents=True, exist_ok=True)
    networks = SOURCE.networks(out / "parts" / "networks", said.append)
    pictures = Pictures(
        SOURCE.train_set(), SOURCE.val_set(12), SOURCE.conflict_set(6), SOURCE.alone_sets(6), methodcaller("transform")
    )
    return Connection(networks, pictures, extent, out, said.append)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("connectivity")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the training has collapsed")
        run_connectivity(tiny(out, []), about={"data": "built-in", "command": "salmask study connectivity"})
    return out


def described(study: Path) -> JSON:
    return json.loads((study / "connectivity.json").read_text())


def test_the_study_leaves_its_tables_its_page_and_its_sheets(study) -> None:
    for name in ("index.html", "study.md", "rows.jsonl", "figure_1.png", "maps_gradcam.jpg", "maps_in_turn.jpg"):
        assert (study / name).is_file()
    text = (study / "study.md").read_text()
    for words in ("Barriers", "Which cue do the maps name", "How alike are the maps", "taken anew"):
        assert words in text
    page = (study / "index.html").read_text()
    assert "convexity gap" in page and "Along the lines" in page
    content = described(study)
    assert len(content["paths"]) == 3 and content["fresh_statistics"] is True
    measured = {"loss:val", "accuracy:val", "loss:mark alone", "kept", "removed", "drop:mark", "says:shape"}
    assert set(content["paths"][0]["values"]) >= measured
    trials = ["val", "shape in conflict", "mark in conflict", "shape alone", "mark alone"]
    assert list(content["trials"]) == trials and content["clustered_by"] == "shape in conflict"
    for path in content["paths"]:
        assert list(path["heights"]) == trials
        for heights in path["heights"].values():
            assert heights["gap"]["mean"] >= heights["barrier"]["mean"] >= heights["ridge"]["mean"] >= 0
            assert heights["barrier"]["low"] <= heights["barrier"]["high"]


def test_clusters_are_those_of_the_gaps_in_the_loss_that_the_file_names(study) -> None:
    content = described(study)
    for name, one in content["trials"].items():
        gaps = np.zeros((3, 3))
        for path in content["paths"]:
            a, b = path["ends"]
            gaps[a, b] = gaps[b, a] = convexity_gap(np.array(path["values"][f"loss:{name}"]))
        assert one["clusters"] == clusters_of(gaps).tolist()


def test_maskers_learn_from_built_in_pictures_as_they_are(study, monkeypatch) -> None:
    """A mark counts in its corner alone: of cropped or mirrored pictures a network that follows it says anything."""
    connection, shown = tiny(study, []), []

    def record(*_: object, batches: Callable[[int], Iterator[Batch]], **__: object) -> None:
        shown.append(next(batches(0)))

    monkeypatch.setattr("salmask.study.connect.train_run", record)
    connection._train("fix", "mark 1", study / "nowhere", 0)
    pictures = {tuple(sample.image.flatten().tolist()) for sample in map(SOURCE.train_set().__getitem__, range(32))}
    seen = (255 * shown[0].images).round().to(torch.uint8)
    assert {tuple(one.flatten().tolist()) for one in seen} <= pictures


def test_a_collapsed_training_is_begun_anew_once_and_then_listed(study, monkeypatch) -> None:
    connection, seeds = tiny(study, []), []
    bad = {"mark 1": 1, "both 1": 2}

    def train(name: str, network: str, folder: Path, seed: int) -> None:
        seeds.append((network, seed))
        folder.mkdir(parents=True, exist_ok=True)
        empty = float(seed < bad.get(network, 0))
        (folder / LOG).write_text(json.dumps({"step": 3, "empty": empty, "full": 0.0}) + "\n")

    monkeypatch.setattr(connection, "_train", train)
    monkeypatch.setattr(connection, "out", study / "again")
    assert connection.collapsed("reader") == ["both 1"]
    assert seeds == [("shape 1", 0), ("both 1", 0), ("both 1", 1), ("mark 1", 0), ("mark 1", 1)]
    assert connection.collapsed("gradcam") == []


def test_fine_tunings_share_their_start_and_have_heads_and_orders_of_their_own(study) -> None:
    names = [one.name for one in SOURCE.fine_tunings]
    assert names == ["shape 1", "both 1", "mark 1"] and len({one.seed for one in SOURCE.fine_tunings}) == 3
    assert [one["name"] for one in described(study)["networks"]] == names


def test_the_report_is_made_again_from_the_archive_alone(study, tmp_path) -> None:
    for path in study.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = (tmp_path / "index.html").read_bytes()
    pack(tmp_path)
    for name in ("index.html", "study.md"):
        (tmp_path / name).unlink()
    write_report(tmp_path, title=described(study)["title"])
    assert (tmp_path / "study.md").read_text() == (study / "study.md").read_text()
    assert len((tmp_path / "index.html").read_bytes()) == len(before)


def test_a_second_run_trains_nothing_and_one_of_other_settings_is_refused(study) -> None:
    said: list[str] = []
    run_connectivity(tiny(study, said), about={})
    assert not [line for line in said if "network" in line or "masker" in line or "paths" in line]
    with pytest.raises(ValueError, match="another study: points was 3, now it is 5"):
        tiny(study, [], replace(TINY, points=5))


def test_checkpoints_in_another_order_are_another_study_for_pairs_go_by_it(study) -> None:
    one = tiny(study, [])
    turned = dict(reversed(one.networks.items()))
    with pytest.raises(ValueError, match="another study: checkpoints was"):
        Connection(turned, one.pictures, one.extent, study, print)


def test_pictures_seen_in_another_way_are_another_study(study) -> None:
    one = tiny(study, [])
    padded = {name: replace(own, view=replace(own.view, fit="pad")) for name, own in one.networks.items()}
    with pytest.raises(ValueError, match="another study: seen was"):
        Connection(padded, one.pictures, one.extent, study, print)


def test_a_wrong_explainer_is_refused_before_anything_is_made(study, tmp_path) -> None:
    one = tiny(study, [])
    with pytest.raises(ValueError, match="gradkam"):
        Connection(one.networks, one.pictures, replace(one.extent, explainers=("gradkam",)), tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


def test_statistics_are_taken_anew_of_two_pictures_at_least(study) -> None:
    one = tiny(study, [])
    small = object.__new__(Connection)
    small.__dict__.update(vars(one) | {"extent": replace(TINY, batch_size=1)})
    small.__dict__.pop("_statistics", None)
    assert [len(part) for part in small._statistics] == [2, 2]
    small.__dict__.pop("_statistics")
    small.pictures = replace(one.pictures, train=Subset(one.pictures.train, [0]))
    with pytest.raises(ValueError, match="two training pictures at least, got 1"):
        _ = small._statistics


def test_a_broken_part_is_named(study) -> None:
    path = next((study / "parts" / "maps").glob("*gradcam*.npz"))
    content = path.read_bytes()
    path.write_bytes(content[:50])
    with pytest.raises(ValueError, match=rf"{path.name}: cannot be read.*delete it"):
        run_connectivity(tiny(study, []), about={})
    path.write_bytes(content)


def test_in_turn_reads_the_explained_network(study) -> None:
    """One masker, and another map of every network."""
    connection = tiny(study, [])
    maps = [connection.maps("in_turn", name)["val"] for name in connection.networks]
    explainers = [connection.explainer("in_turn", name) for name in connection.networks]
    assert len({one.masker.fingerprint() for one in explainers}) == 1
    assert not np.array_equal(maps[0], maps[1])


# What the report makes of known answers


def known(tmp_path: Path, *, fooled: bool = False, collapsed: list[str] | None = None) -> Path:
    """Write a study of four networks, two that follow each cue, whose maps name it, or in one case the other."""
    names, cues, ids = ["a", "b", "c", "d"], ["shape", "mark"], [f"p{k}" for k in range(6)]
    labels = [0, 0, 1, 1]
    gap = {True: 0.1, False: 1.0}
    lines = []
    for place, name in enumerate(names):
        true = labels[place] if not (fooled and name == "d") else 0
        for image in ids:
            for number, cue in enumerate(cues):
                ahead = number == true
                for metric, value in (("lift", 3.0 if ahead else 0.5), ("share", 0.4), ("drop", 0.9 if ahead else 0.1)):
                    row = {"image": image, "explainer": f"rise, {name}", "metric": f"{metric}:{cue}", "value": value}
                    lines.append(json.dumps(row))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    paths, pairs = [], list(combinations(range(4), 2))
    for a, b in pairs:
        height = {"mean": gap[labels[a] == labels[b]], "low": 0.0, "high": 2.0, "n": 6}
        flat, low = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 6}, height | {"mean": height["mean"] / 2}
        heights = {
            "val": {"barrier": flat, "gap": flat, "ridge": flat},
            "shape in conflict": {"barrier": height, "gap": height, "ridge": low},
        }
        measured = ("loss:val", "loss:shape in conflict", "accuracy:val", "kept", "removed")
        values = {name: [0.2, height["mean"], 0.2] for name in measured}
        values |= {f"{kind}:{cue}": [0.5, 0.5, 0.5] for kind in ("says", "drop", "share") for cue in cues}
        paths.append({"ends": [a, b], "heights": heights, "values": values})
    alike = [[0.8 if labels[a] == labels[b] else 0.2 for a, b in pairs] for _ in ids]
    content = {
        "title": "Known",
        "points": [0.0, 0.5, 1.0],
        "fresh_statistics": False,
        "pictures": {"path": 6, "maps": 6},
        "cues": cues,
        "ids": ids,
        "networks": [
            {
                "name": name,
                "accuracy": {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 6},
                "says": {cue: [int(number == labels[place])] * 6 for number, cue in enumerate(cues)},
            }
            for place, name in enumerate(names)
        ],
        "paths": paths,
        "clustered_by": "shape in conflict",
        "trials": {
            "val": {"clusters": [0, 0, 0, 0], "silhouette": None},
            "shape in conflict": {"clusters": labels, "silhouette": 0.9},
        },
        "collapsed": {"rise": collapsed or []},
        "explainers": ["rise"],
        "similarity": {"rise": {"spearman": {"pairs": alike, "other": [[0.1] * 4] * 6}}},
    }
    (tmp_path / "connectivity.json").write_text(json.dumps(content))
    return tmp_path


def test_the_report_says_what_is_known(tmp_path) -> None:
    folder = known(tmp_path)
    part = connectivity_part(read_connectivity(folder), read_rows(folder), folder)
    text = part.markdown()
    assert (
        "By the loss on shape in conflict: 2 clusters, silhouette 0.900, largest gap 1.000; a cluster goes with one "
        "cue for 4/4 [0.510, 1.000] of the networks." in text
    )
    assert "On shape in conflict, the convexity gap is larger between clusters than within: 0.100" in text
    assert "over 2 pairs, 1.000" in text and "where a ridge above the higher end has 0.500" in text
    assert "By the loss on val: 1 cluster, largest gap 0.000; a cluster goes with one cue for 2/4" in text
    assert "| shape in conflict | a, b; c, d | 0.900 | 4/4" in text and "| val | a, b, c, d | – | 2/4" in text
    assert "rise names the cue that a network follows for 4 of 4 networks, at least 90 %" in text
    assert "Fooled" not in text and "interpolated as weights are" in text
    assert (
        "| rise | Spearman | 0.800" in text
        and "more alike within a cluster than between clusters: Spearman, difference 0.600" in text
    )


def test_a_fooled_explainer_is_named_with_what_it_names(tmp_path) -> None:
    folder = known(tmp_path, fooled=True)
    text = connectivity_part(read_connectivity(folder), read_rows(folder), folder).markdown()
    assert "for 3 of 4 networks, less than 90 %; picture by picture in 0.750" in text
    assert "Fooled on d (names the shape)." in text


def test_a_collapsed_training_counts_for_nothing(tmp_path) -> None:
    folder = known(tmp_path, fooled=True, collapsed=["d"])
    text = connectivity_part(read_connectivity(folder), read_rows(folder), folder).markdown()
    assert "for 3 of 3 networks, at least 90 %; picture by picture in 1.000" in text
    assert "Trainings that collapsed, left out: d." in text and "Fooled" not in text


def test_maps_are_compared_by_cue_too_where_clusters_are_something_else(tmp_path) -> None:
    folder = known(tmp_path)
    content = json.loads((folder / "connectivity.json").read_text())
    content["clustered_by"] = "val"  # one cluster of all
    (folder / "connectivity.json").write_text(json.dumps(content))
    text = connectivity_part(read_connectivity(folder), read_rows(folder), folder).markdown()
    assert "more alike of one cue than of different cues: Spearman, difference 0.600" in text
    assert "within a cluster than" not in text


def test_a_share_that_is_tied_names_the_first_cue_of_nobody(tmp_path) -> None:
    folder = known(tmp_path)
    part = connectivity_part(read_connectivity(folder), read_rows(folder), folder)
    (line,) = next(table for table in part.tables if table.title.startswith("Which cue")).lines
    assert line[1].startswith("4/4") and line[4].startswith("4/4") and line[3].startswith("0/4"), line


def test_a_file_of_something_else_is_refused(tmp_path) -> None:
    folder = known(tmp_path)
    content = json.loads((folder / "connectivity.json").read_text())
    content["paths"].pop()
    (folder / "connectivity.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a path for each two of 4 networks"):
        read_connectivity(folder)
    (folder / "connectivity.json").write_text(
        json.dumps(json.loads(known(tmp_path).joinpath("connectivity.json").read_text()) | {"clustered_by": "smell"})
    )
    with pytest.raises(ValueError, match="expected clusters by smell"):
        read_connectivity(folder)
    (folder / "connectivity.json").write_text('{"title": 3}')
    with pytest.raises(ValueError, match=r"connectivity\.json: expected the entry"):
        read_connectivity(folder)


# The command


def refused(capsys, *arguments: str) -> str:
    assert main(["study", "connectivity", *arguments]) == 1
    return capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, capsys) -> None:
    out = str(tmp_path / "out")
    assert "at least 3 points" in refused(capsys, "--points", "2", "--out", out)
    assert "goes with --data" in refused(capsys, "--classifier", "timm:resnet18", "--out", out)
    assert "texture or mark" in refused(capsys, "--cue", "smell", "--out", out)
    assert "--seeds, --lr are of no use to the study connectivity" in refused(
        capsys, "--lr", "1", "--seeds", "2", "--out", out
    )
    path = tmp_path / "one.safetensors"
    save_classifier(path, loaded(0))
    assert "1 to 3 clusters of 3 networks, got 9" in refused(capsys, "--clusters", "9", "--networks", "1", "--out", out)
    error = refused(capsys, "--data", str(tmp_path), "--classifier", f"{NETWORK}@{path}", "--out", out)
    assert "at least two checkpoints" in error
    other = tmp_path / "two.safetensors"
    save_classifier(other, loaded(0, mean=0.5))
    both = [f"{NETWORK}@{path}", f"{NETWORK}@{other}"]
    assert "see pictures alike" in refused(capsys, "--data", str(tmp_path), "--classifier", *both, "--out", out)
    own = ["--data", str(tmp_path), "--classifier", *both, "--out", out]
    assert "--cue is of built-in pictures, and --data is given" in refused(capsys, "--cue", "texture", *own)
    twice = refused(capsys, "--data", str(tmp_path), "--classifier", both[0], both[0], "--out", out)
    assert "two checkpoints are named one" in twice


def test_seed_and_images_of_the_command_are_those_of_the_study(tmp_path, monkeypatch) -> None:
    asked = []

    def stop(options, settings, out):
        asked.append((settings.seed, settings.steps, settings.batch_size))
        raise ValueError("stopped")

    monkeypatch.setattr("salmask.cli.connectivity._builtin", stop)
    out = str(tmp_path / "out")
    assert main(["study", "connectivity", "--seed", "3", "--images", "90", "--out", out]) == 1
    assert main(["study", "connectivity", "--images", "90", "--batch-size", "9", "--out", out]) == 1
    assert asked == [(3, 3, 40), (0, 10, 9)]


def test_one_pair_is_no_kind_of_pairs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("salmask.report.connectivity.FEWEST", 3)  # here two are within
    folder = known(tmp_path)
    text = connectivity_part(read_connectivity(folder), read_rows(folder), folder).markdown()
    assert "the convexity gap is of too few pairs to be compared" in text
    assert "are of too few pairs to be called more alike within a cluster" in text
