"""Evaluating: hand-made explainers and classifier whose every row is known; killed, resumed, failing, refused."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from salmask.classifier import Classifier
from salmask.data import Batch
from salmask.evaluation.evaluate import COLUMNS, Rules, evaluate_explainers
from salmask.explain.base import Explainer, Explanation, Passes
from salmask.masking import MeanColour
from salmask.metrics.case import Metric
from salmask.report.page import write_report
from salmask.report.tables import summarize
from salmask.rows.read import read_counts, read_meta, read_rows

SIZE = 8
COUNT = 10
IDS = [f"val/{'ab'[i % 2]}/{i}.png" for i in range(COUNT)]


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.tap = nn.Identity()

    def forward(self, images):
        half = images.shape[-1] // 2
        images = self.tap(images)
        return torch.stack([images[..., :half].sum((1, 2, 3)), images[..., half:].sum((1, 2, 3))], 1)


class SumsHalves(Classifier):
    """Classifier that adds up the left and the right half: class 0 or 1, whichever is brighter."""

    calls = 0

    def __init__(self):
        super().__init__(Halves(), mean=(0.0,) * 3, std=(1.0,) * 3, layers=("tap",), image_size=SIZE)
        self.calls = 0

    def logits(self, images):
        self.calls += 1
        return super().logits(images)


def batches(size: int = 4, *, boxes: bool = True) -> list[Batch]:
    images = torch.zeros(COUNT, 3, SIZE, SIZE)
    targets = torch.arange(COUNT) % 2
    for i in range(COUNT):  # the bright half is the label, but for image 7
        left = (i % 2 == 0) != (i == 7)
        images[i, :, :, : SIZE // 2 if left else SIZE] = 0.5 + i / 40
        if not left:
            images[i, :, :, : SIZE // 2] = 0
    box = [torch.tensor([[0.0, 0.0, 4.0, 8.0]]) if boxes else torch.zeros(0, 4) for _ in IDS]
    return [
        Batch(IDS[i : i + size], images[i : i + size], targets[i : i + size], box[i : i + size], [None] * size)
        for i in range(0, COUNT, size)
    ]


def batches_whole(size: int) -> list[Batch]:
    return [one._replace(pixels=one.pixels[: len(one.ids)]) for one in batches(size)]


@dataclass
class Half(Explainer):
    """Keeps the half of the explained class; notes what it was asked."""

    scale: float = 1.0
    seen: list = field(default_factory=list, init=False)
    wants: frozenset = frozenset({"ids"})

    def __call__(self, classifier, images, targets, *, ids):
        self.seen += ids
        masks = torch.zeros(len(images), 1, SIZE, SIZE)
        for i, target in enumerate(targets.tolist()):
            masks[i, :, :, SIZE // 2 * target : SIZE // 2 * (target + 1)] = self.scale
        return Explanation(masks, targets, classifier.logits(images), Passes(2, 1))


class Full:
    def __call__(self, classifier, images, targets):
        masks = torch.ones(len(images), 1, SIZE, SIZE)
        return Explanation(masks, targets, classifier.logits(images), Passes(0))


def metric(name, function, *, compute=None, needs=frozenset()) -> Metric:
    return Metric(name, function, {"how": name}, "up", (0.0, 1.0), "by hand", needs, compute)


METRICS = {
    "area": metric("area", lambda case: case.masks.mean((1, 2, 3))),
    "target": metric("target", lambda case: case.targets.double()),
    "correct": metric("correct", lambda case: case.correct.double()),
    "boxes": metric(
        "boxes", lambda case: torch.tensor([float(len(b)) for b in case.boxes]), needs=frozenset({"boxes"})
    ),
    "trimap": metric("trimap", lambda case: case.masks.mean((1, 2, 3)), needs=frozenset({"pixels"})),
    "bright": metric(
        "bright",
        lambda case: torch.stack([(case.masks > 0.5).sum((1, 2, 3)), torch.full((len(case.ids),), SIZE**2)], 1),
        compute=lambda counts: float(counts[:, 0].sum() / counts[:, 1].sum()),
    ),
}


def numbers_only(out: Path) -> dict:
    """Return the summary without drawing the page, which has tests of its own."""
    return summarize(read_rows(out), read_counts(out), read_meta(out)).as_dict()


@pytest.fixture(autouse=True)
def no_page(request, monkeypatch):
    if "writes_the_page" not in request.node.name:
        monkeypatch.setattr("salmask.evaluation.evaluate.write_report", numbers_only)


def run(out: Path, explainers=None, *, data=None, rules=None, metrics=None, **more):
    return evaluate_explainers(
        explainers or {"half": Half(), "full": Full()},
        metrics or METRICS,
        batches_whole(4) if data is None else data,
        more.pop("classifier", SumsHalves()),
        rules=rules or Rules("label", infill=MeanColour((0.0, 0.0, 0.0))),
        out=out,
        **{"pictures": 3, "about": {"data": "toy"}} | more,
    )


def rows_of(out: Path) -> dict:
    """Rows without the clock, in any order."""
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    table = {(one["explainer"], one["image"], one["metric"]): one["value"] for one in lines}
    assert len(table) == len(lines)  # no row twice
    return {key: value for key, value in table.items() if key[2] != "seconds"}


def test_every_row_is_as_computed_by_hand(tmp_path):
    summary = run(tmp_path)
    assert summary["half"]["area"]["mean"] == 0.5 and summary["full"]["area"]["mean"] == 1
    assert summary["half"]["bright"]["mean"] == 0.5 and summary["full"]["bright"]["mean"] == 1
    assert summary["half"]["target"]["mean"] == 0.5
    # image 7 is the one that the classifier gets wrong; its labelled half is black
    assert summary["half"]["correct"]["mean"] == summary["half"]["acc_whole"]["mean"] == 0.9
    rows = rows_of(tmp_path)
    for i, image in enumerate(IDS):
        assert rows["half", image, "acc_whole"] == (i != 7)
        # all black leaves a tie, which argmax gives to class 0
        assert rows["half", image, "acc_kept"] == (i != 7)
        assert rows["half", image, "acc_removed"] == (i % 2 == 0)
    assert [summary["half"][name]["mean"] for name in ("passes", "passes_forward", "passes_backward")] == [3, 2, 1]
    assert (summary["half"]["degenerate"]["mean"], summary["full"]["degenerate"]["mean"]) == (0, 1)
    assert summary["half"]["seconds"]["mean"] > 0


def test_files_are_those_of_the_contract(tmp_path):
    run(tmp_path)
    write_report(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["target"] == "label" and meta["data"] == "toy" and meta["seed"] == 0
    assert set(meta["explainers"]) == {"half", "full"} and meta["explainers"]["half"]["settings"]["scale"] == 1.0
    assert set(meta["metrics"]) == set(METRICS) - {"trimap"} | set(COLUMNS)
    assert "no pixel masks" in meta["left_out"]["trimap"]
    assert meta["metrics"]["bright"]["set_level"] and meta["metrics"]["area"]["protocol"] == {"how": "area"}
    names = {path.name for path in (tmp_path / "pictures" / "half").iterdir()}
    assert names == {f"val__{'ab'[i % 2]}__{i}.png.png" for i in range(3)}
    with np.load(tmp_path / "counts" / "half" / "bright.npz") as file:
        assert file["ids"].tolist() == sorted(IDS) and file["counts"].shape == (COUNT, 2)
    assert json.loads((tmp_path / "summary.json").read_text())["half"]["area"]["n"] == COUNT
    assert "<html" in (tmp_path / "index.html").read_text()


def test_evaluating_writes_the_page(tmp_path):
    assert run(tmp_path) == json.loads((tmp_path / "summary.json").read_text())
    assert "trimap is left out" in (tmp_path / "index.html").read_text()


def test_batch_size_changes_no_row(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", data=iter(batches_whole(3)))  # an iterator, read once
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


class Killed(BaseException):
    pass


@dataclass
class Dies(Explainer):
    """Passes calls on to another explainer, until the n-th."""

    inner: Half
    after: int
    wants: frozenset = frozenset({"ids"})

    def __call__(self, *args, **kwargs):
        self.after -= 1
        if self.after < 0:
            raise Killed
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize("cut", [0, 7, 150])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, calls, cut):
    run(tmp_path / "whole", {"half": Half()})
    with pytest.raises(Killed):
        run(tmp_path / "cut", {"half": _like_half(Dies(Half(), calls))})
    path = tmp_path / "cut" / "rows.jsonl"
    path.write_bytes(path.read_bytes()[: -cut or None])  # a kill in the middle of a write
    left = path.read_bytes()
    again = Half()
    run(tmp_path / "cut", {"half": again})
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    blocks = left.count(b'"degenerate"')  # the last row of a block
    blocks -= bool(left) and cut == 7  # its last row is half written
    assert len(again.seen) == COUNT - blocks
    ours, theirs = (read_counts(tmp_path / name)["half"]["bright"] for name in ("cut", "whole"))
    assert ours["ids"] == theirs["ids"] and (ours["replicates"] == theirs["replicates"]).all()


def _like_half(explainer):
    """Give an explainer the recorded settings of `Half`, so that only its behaviour differs."""
    alike = {"settings": {"scale": 1.0, "wants": ["ids"]}, "kind": "Half"}
    explainer.__class__ = type("Alike", (type(explainer),), alike)
    return explainer


def test_a_finished_run_computes_nothing_again(tmp_path):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".npz"}
    half = Half()
    run(tmp_path, {"half": half, "full": Full()})
    assert half.seen == []
    assert {path: path.read_bytes() for path in before} == before


def test_explainers_may_be_added_later(tmp_path):
    run(tmp_path, {"half": Half()})
    summary = run(tmp_path, {"full": Full()})
    assert set(summary) == {"half", "full"} and summary["half"]["area"]["n"] == COUNT
    assert set(json.loads((tmp_path / "meta.json").read_text())["explainers"]) == {"half", "full"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rules": Rules("predicted", infill=MeanColour((0.0, 0.0, 0.0)))}, "'target'"),
        ({"rules": Rules("label", infill=MeanColour((0.5, 0.0, 0.0)))}, "'infill'"),
        ({"rules": Rules("label", infill=MeanColour((0.0, 0.0, 0.0)), seed=1)}, "'seed'"),
        ({"about": {"data": "other"}}, "'data'"),
        ({"metrics": {"area": METRICS["area"]}}, "'metrics'"),
        ({"explainers": {"half": Half(scale=0.5)}}, "'explainer half'"),
    ],
)
def test_rows_of_other_settings_are_refused(tmp_path, change, named):
    run(tmp_path)
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"holds rows of another setting of {named}.*choose another --out"):
        run(tmp_path, **change)
    assert (tmp_path / "rows.jsonl").read_bytes() == before


@dataclass
class Fragile(Explainer):
    """Raises where a bad image is in the batch."""

    bad: tuple = (IDS[2], IDS[5])
    how: str = "raise"
    wants: frozenset = frozenset({"ids"})

    def __call__(self, classifier, images, targets, *, ids):
        if set(ids) & set(self.bad) and self.how == "raise":
            raise RuntimeError("no gradient here")
        made = Half()(classifier, images, targets, ids=ids)
        for i, one in enumerate(ids):
            if one in self.bad:
                made.masks[i] = float("nan")
        return made


@pytest.mark.parametrize(("how", "error"), [("raise", "RuntimeError: no gradient here"), ("nan", "NaN or infinite")])
def test_a_failing_image_loses_only_itself(tmp_path, how, error):
    with pytest.warns(UserWarning, match=rf"fragile failed on 2 images, first on {IDS[2]} \(.*{error}"):
        summary = run(tmp_path, {"fragile": Fragile(how=how), "full": Full()})
    assert summary["fragile"]["area"]["n"] == COUNT - 2 and summary["full"]["area"]["n"] == COUNT
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [one["image"] for one in failures] == [IDS[2], IDS[5]]
    assert all(one["explainer"] == "fragile" and error in one["error"] for one in failures)
    rows = read_rows(tmp_path)
    assert rows.present["fragile"].sum() == COUNT - 2


def test_failed_images_are_tried_again_and_recorded_once(tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match="fragile failed on 2 images"):
            run(tmp_path, {"fragile": Fragile()})
    assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 2


def test_an_explainer_that_always_fails_leaves_the_others(tmp_path):
    with pytest.warns(UserWarning, match=f"fragile failed on {COUNT} images"):
        summary = run(tmp_path, {"fragile": Fragile(bad=tuple(IDS)), "full": Full()})
    assert set(summary) == {"full"}
    assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == COUNT


def test_explainers_that_all_fail_are_an_error_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match=f"nothing was measured: fragile failed on {COUNT} images, first on {IDS[0]}"):
        run(tmp_path, {"fragile": Fragile(bad=tuple(IDS))})


def test_maps_outside_the_range_need_a_normaliser(tmp_path):
    explainers = {"raw": Half(scale=3.0)}
    with pytest.raises(ValueError, match=r"'raw' span \[0, 3\].*normalize=\{'raw': 'minmax'\}"):
        run(tmp_path / "a", explainers)
    rules = Rules("label", infill=MeanColour((0.0, 0.0, 0.0)), normalize={"raw": "minmax"})
    assert run(tmp_path / "b", explainers, rules=rules)["raw"]["area"]["mean"] == 0.5
    assert json.loads((tmp_path / "b" / "meta.json").read_text())["explainers"]["raw"]["normalize"] == "minmax"


def test_the_explained_class_is_the_rules(tmp_path):
    wrong = IDS[7]
    for name, target, expected in (("a", "label", 1), ("b", "predicted", 0), ("c", lambda b, z: 1 - b.targets, 0)):
        run(tmp_path / name, rules=Rules(target, infill=MeanColour((0.0, 0.0, 0.0))))
        assert rows_of(tmp_path / name)["half", wrong, "target"] == expected
    with pytest.raises(ValueError, match="target must be one of"):
        Rules("best")


def test_metrics_that_the_data_cannot_serve_are_left_out_with_the_reason(tmp_path):
    data = [one._replace(boxes=[torch.zeros(0, 4)] * len(one.ids)) for one in batches_whole(4)]
    assert "boxes" not in run(tmp_path, data=data)["half"]
    assert "no boxes" in json.loads((tmp_path / "meta.json").read_text())["left_out"]["boxes"]


def test_where_none_of_the_metrics_can_be_measured_nothing_is(tmp_path):
    data = [one._replace(boxes=[torch.zeros(0, 4)] * len(one.ids)) for one in batches_whole(4)]
    with pytest.raises(ValueError, match=r"none of the metrics .* \(boxes: the data's first batch has no boxes\)"):
        run(tmp_path / "out", data=data, metrics={"boxes": METRICS["boxes"]})
    assert not (tmp_path / "out").exists()


def test_each_explainer_may_have_its_own_classifier(tmp_path):
    class Turned(SumsHalves):
        def logits(self, images):
            return super().logits(images).flip(1)

    summary = run(tmp_path, classifier={"half": SumsHalves(), "full": Turned()})
    assert summary["half"]["correct"]["mean"] == 0.9 and summary["full"]["correct"]["mean"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no classifier for explainer 'half'"):
        run(tmp_path / "b", classifier={"full": Turned()})


def test_the_scoring_classifier_reads_the_pictures_only(tmp_path):
    class Always(SumsHalves):
        def logits(self, images):
            return super().logits(images) * 0 + torch.tensor([0.0, 1.0])

    rules = Rules("label", infill=MeanColour((0.0, 0.0, 0.0)), scoring=Always())
    summary = run(tmp_path, rules=rules)
    assert summary["half"]["acc_whole"]["mean"] == 0.5 and summary["half"]["correct"]["mean"] == 0.9


class Known(list):
    """What a data set says of itself without reading a picture."""

    ids, classes, targets = IDS, ["a", "b"], [i % 2 for i in range(COUNT)]


def test_pictures_are_spread_over_known_ids(tmp_path):
    class Loader(list):
        dataset = Known()

    run(tmp_path / "a", data=Loader(batches_whole(4)))
    chosen = sorted(path.stem for path in (tmp_path / "a" / "pictures" / "full").iterdir())
    assert chosen == sorted(IDS[i].replace("/", "__") for i in (0, 4, 9))
    run(tmp_path / "b", pictures=[IDS[6]])
    assert len(list((tmp_path / "b" / "pictures" / "full").iterdir())) == 1


def test_progress_wraps_the_batches(tmp_path):
    seen = []

    def progress(items):
        for item in items:
            seen.append(item)
            yield item

    run(tmp_path, progress=progress)
    assert len(seen) == 3


def test_a_metric_of_the_wrong_shape_is_named(tmp_path):
    wrong = replace(METRICS["area"], name="mean_area", function=lambda case: case.masks.mean().view(1))
    with pytest.raises(ValueError, match="metric 'mean_area' must give one value per image"):
        run(tmp_path, metrics={"mean_area": wrong})


def test_no_images_and_no_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one batch"):
        run(tmp_path, data=[])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        run(tmp_path / "file")


def test_values_that_are_not_finite_are_null_and_counted(tmp_path):
    holed = metric("holed", lambda case: torch.where(case.targets == 1, torch.nan, 0.25))
    summary = run(tmp_path, metrics={"holed": holed})
    assert (summary["half"]["holed"]["mean"], summary["half"]["holed"]["missing"]) == (0.25, 5)
    assert '"value": null' in (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": [one._replace(images=one.images * 0.5) for one in batches_whole(4)]}, "first picture"),
        ({"data": [one._replace(ids=[f"other/{image}" for image in one.ids]) for one in batches_whole(4)]}, "first"),
        ({"data": [one._replace(images=one.images.repeat(1, 1, 2, 2)) for one in batches_whole(4)]}, "first picture"),
    ],
)
def test_rows_of_other_data_are_not_mixed_in(tmp_path, change, named):
    """The words for data and classifier may be the same: what was measured is on record, too."""
    run(tmp_path, about={"data": "val", "classifier": "net"})
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"another setting of '{named}"):
        run(tmp_path, {"more": Full()}, about={"data": "val", "classifier": "net"}, **change)
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_rows_of_other_weights_are_not_mixed_in(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.tap, self.by = nn.Identity(), nn.Parameter(torch.tensor(by))

        def forward(self, images):
            return self.tap(images * self.by).mean((2, 3))[:, :2]

    def network(by):
        return Classifier(Scaled(by), mean=(0.0,) * 3, std=(1.0,) * 3, layers=("tap",), image_size=SIZE)

    def measure(by):
        return evaluate_explainers(
            {"full": Full()},
            {"area": METRICS["area"]},
            batches_whole(4),
            network(by),
            rules=Rules("label"),
            out=tmp_path,
        )

    measure(1.0)
    with pytest.raises(ValueError, match="another setting of 'explainer full'"):
        measure(2.0)


def test_pictures_are_written_whole(tmp_path, monkeypatch):
    run(tmp_path / "a")
    assert not [path for path in (tmp_path / "a").rglob("*") if path.name.startswith(".")]
    monkeypatch.setattr("PIL.Image.Image.save", killed_after_a_byte)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b")
    assert not list((tmp_path / "b" / "pictures").rglob("*.png"))


def killed_after_a_byte(image, path, **options):
    Path(path).write_bytes(b"x")
    raise KeyboardInterrupt


def test_rows_of_another_normalisation_of_the_same_weights_are_not_mixed_in(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    one, other = (
        Classifier(network.eval(), mean=[mean] * 3, std=[0.5] * 3, layers=["0"], image_size=16) for mean in (0.0, 0.5)
    )
    assert one.fingerprint() == other.fingerprint()
    run(tmp_path, {"full": Full()}, classifier=one)
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ValueError, match="another setting of 'explainer full'"):
        run(tmp_path, {"full": Full()}, classifier=other)
    assert (tmp_path / "rows.jsonl").read_bytes() == before
