"""Studies: settings as values, jobs that are done once, rows that become the paper's tables."""

import contextlib
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from salmask.cli.main import main
from salmask.cli.study import StudyCommand as Command
from salmask.data import training_batches
from salmask.data.synthetic import write_folder
from salmask.evaluation.evaluate import compare
from salmask.explain.learned import top_cells
from salmask.outcome import Outcome
from salmask.report.checks import Checks, checks_part
from salmask.report.page import write_report
from salmask.study import STUDIES, Axis, Claim, Local, Row, Scale, Slurm, Source, Study, Variant, run_study
from salmask.study.engine import Task
from salmask.study.run import _apart
from salmask.study.studies import few_classes, fix, infilling
from salmask.study.work import METRICS_OF, StudyJob, _pictures, _reading, finished, layers_read, work
from salmask.terms import divergence_from_prior
from salmask.training.settings import RECIPE, ReadAs, Settings
from salmask.training.steps import Steps
from salmask.training.variant import TERMS, build_recipe, read_settings

TINY = Scale.of(images=8, batch_size=4, measured=4, held_out=1, layers=(3, 4), scale_crop=0.5, final=1.0, seeds=2)


class Here:
    """An engine of this process; counts what it was asked to do, and fails where it is told to."""

    def __init__(self, fail: str = "") -> None:
        self.fail, self.asked = fail, []

    def run(self, tasks, done) -> None:
        for task in tasks:
            self.asked.append(task.name)
            if self.fail and self.fail in task.name:
                done(task, 0.0, "ValueError: told to fail")
                continue
            work(task.folder, task.on, **task.options())
            done(task, 1.0, None)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    root = tmp_path_factory.mktemp("study")
    write_folder(root / "data", train=40, val=10, seed=3, size=64)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), root / "plain.safetensors")
    return Source(data=str(root / "data"), classifier=f"timm:test_resnet@{root / 'plain.safetensors'}", image_size=64)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture
def no_page(monkeypatch) -> None:
    """Leave the report of a study out, where it is the jobs that a test is about: its figures take longer than they."""
    monkeypatch.setattr("salmask.study.run.write_report", lambda *given, **named: None)


def small_study(**changes) -> Study:
    rows = (
        Row(name="center", explainer="center"),
        Row(name="tuned", candidates=(fix(), fix(1.0, 10.0)), seeds=2),
        Row(name="auto", variant=Variant.of(recipe="reader"), seeds=2),
        Row(name="top", variant=fix(top=0.25), place=0.25),
    )
    claims = (
        Claim(text="Tuning helps", row="tuned", against="auto"),
        Claim(text="It learns", row="auto", against="center"),
    )
    return dataclasses.replace(Study(name="small", title="A small study", rows=rows, claims=claims), **changes)


def run(study: Study, source: Source, out: Path, jobs: Path, engine=None, scale: Scale = TINY, say=lambda text: None):
    return run_study(study, source, scale, out=out, jobs=jobs, engine=engine or Here(), say=say)


# Settings


def test_every_study_of_the_table_is_sound_and_its_variants_build() -> None:
    for name, make in STUDIES.items():
        study = make(Scale())
        assert study.name == name and study.rows
        for row in study.rows:
            for variant in (*row.candidates, *([row.variant] if row.variant else [])):
                assert build_recipe(variant.learns).objective.terms
                again = Variant.of(**json.loads(json.dumps(variant.settings())))
                assert again == variant


def test_the_table_has_the_axes_of_the_paper() -> None:
    studies = {name: make(Scale()) for name, make in STUDIES.items()}
    variants = {name: [v for row in s.rows for v in (*row.candidates, row.variant) if v] for name, s in studies.items()}
    assert len([r for r in studies["objectives"].rows if r.candidates]) == 16  # (4 single + 4 pairs) x (FIX, CA)
    assert {dict(v.learns.changes).get("history") for v in variants["classifier"]} >= {"off", "sample"}
    assert {v.mask.layers for v in variants["layers"]} >= {(k,) for k in range(5)}
    assert {v.mask.head for v in variants["masks"]} == {"sigmoid", "concrete"}
    assert {v.learns.area_power for v in variants["masks"] if v.mask.area_condition} == {1.0, 2.0}
    assert any(v.mask.class_condition for v in variants["masks"]) and any(v.read.top for v in variants["masks"])
    assert {v.data.per_class for v in variants["few_shot"]} == {1, 2, 5, 10, 25, 125, None}
    assert {v.data.classes for v in variants["few_classes"]} == {1, 2, 5, 10, 25, 100, None}
    assert [r.name for r in few_classes(Scale(), total=10).rows][-2:] == ["5 of the classes", "all"]
    assert len([v for v in variants["sanity"] if v.data.shuffled]) == 2
    assert studies["sanity"].checks and ("FIX", "FIX, random labels") in studies["sanity"].pairs
    assert any(v.read.reads == "original" for v in variants["classifier"])
    assert any(v.learns.tv_border == 0 for v in variants["regularisers"])
    assert {r.explainer for r in studies["table1"].rows if r.explainer} >= {"full", "center", "gradcam"}
    assert [r.name for r in studies["table1"].rows][-2:] == ["best FIX", "best CA"]
    filled = infilling(Scale(), inpainter="x.safetensors")
    assert {r.variant.learns.infill_kept for r in filled.rows if r.variant} >= {
        None,
        "blur",
        "noise",
        "bank",
        "x.safetensors",
    }


def test_a_variant_is_known_by_what_differs_from_the_default() -> None:
    assert Variant().settings() == {"recipe": RECIPE}
    assert Variant.of(recipe="ca", layers=[2, 3]).settings() == {"recipe": "ca", "layers": (2, 3)}
    own = Variant.of(recipe="ca", history="sample", pool_size=5, images=2.0)
    assert own.settings() == {"recipe": "ca", "history": "sample", "pool_size": 5, "images": 2.0}
    assert own.changed(history="off") == Variant.of(recipe="ca", history="off", pool_size=5, images=2.0)
    assert build_recipe(own.learns).pool_size == 5 and build_recipe(own.learns).history == "sample"
    assert fix(top=0.5).trained() == fix() == fix(reads="original").trained()
    told = fix(area_condition=True, area=0.5)
    assert told.trained() == fix(area_condition=True)
    assert fix(top=0.5).read.word() == "-top0.5" and fix().read.word() == ""
    assert told.read.word() == "-area0.5" and fix(reads="original").read.word() == "-original"
    assert len(fix(reads="timm:resnet18@a/b.pt").read.word()) == 9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Variant.of(recipe="best"), "no recipe 'best'"),
        (lambda: Variant.of(terms=(("love", 1.0),)), "no term 'love'"),
        (lambda: Variant.of(recipe="fix", weights=(("area", 1.0),)), "no term 'area'; the objective has"),
        (lambda: Variant.of(head="softmax"), "no head 'softmax'"),
        (lambda: Variant.of(area=0.5), "set both"),
        (lambda: Variant.of(classes=[1]), r"classes is a whole number or null, got \[1\]"),
        (lambda: Variant.of(historic="x"), "historic is a number, got 'x'"),
        (lambda: Variant.of(pool_size=True), "pool_size is a whole number, got True"),
        (lambda: Variant.of(layers=["deep"]), "layers is a list or null"),
        (lambda: Variant.of(hat=1), "no setting 'hat': expected one of .*recipe.*per_class.*images"),
        (lambda: Local(workers=0), "workers are 1 to 256"),
        (lambda: Row(name="a"), "needs one of variant, candidates and explainer, got 0"),
        (lambda: Row(name="a", variant=Variant(), explainer="full"), "got 2"),
        (lambda: Scale.of(images=0), "images must be positive"),
        (lambda: Scale.of(candidates=0), "candidates must be positive"),
        (lambda: Scale.of(measured=0), "measured must be positive"),
        (lambda: Scale.of(scale_crop=0.0), "0 < scale_crop <= scale_most <= 1, got 0.0 and 1.0"),
        (lambda: Scale.of(scale_crop=0.9, scale_most=0.5), "0 < scale_crop <= scale_most <= 1"),
        (lambda: Scale.of(scale_most=1.5), "0 < scale_crop <= scale_most <= 1"),
        (lambda: Scale.of(train_size=4), "train_size is 8 to 4096 pixels, got 4"),
        (
            lambda: Study(name="s", title="", rows=(Row(name="a", explainer="full"),) * 2),
            "two rows are named 'a'",
        ),
        (
            lambda: Study(
                name="s",
                title="",
                rows=(Row(name="a", explainer="full"),),
                claims=(Claim(text="", row="a", against="b"),),
            ),
            "speaks of row 'b'",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_settings_are_read_as_they_are_typed() -> None:
    texts = ["head=concrete", "temperature=0.5", "hard=false", "pool_size=5", "terms.area=2", "terms.max_class_kept=1"]
    assert Variant.of(**read_settings(texts)) == Variant.of(
        head="concrete",
        temperature=0.5,
        hard=False,
        pool_size=5,
        terms=(("area", 2.0), ("max_class_kept", 1.0)),
    )
    for wrong, words in {
        "heads=concrete": "no setting 'heads': expected one of .*head",
        "head": "got 'head'",
        "terms=1": "got 'terms=1'",
        "head.x=1": "got 'head.x=1'",
        "changes=1": "no setting 'changes'",
        "classes=[1]": "classes is a whole number or null",
        "historic=x": "historic is a number",
        "hard=maybe": "hard is true or false",
        "temperature=hot": "temperature is a number",
        "terms.area=big": "terms.area is a number",
    }.items():
        with pytest.raises(ValueError, match=words):
            read_settings([wrong])


def test_what_is_typed_reaches_the_scale() -> None:
    given = {"candidates": 1, "train_size": 32, "scale_crop": 0.4, "scale_most": 0.6, "seeds": 2, "as_released": True}
    command = Command(name="table1", out=Path("out"), data="data", **given)
    assert command._scale() == Scale.of(**given)
    assert Command(name="table1", out=Path("out"), data="data")._scale() == Scale()


def test_the_border_counts_in_total_variation_only_where_it_is_asked_for() -> None:
    logits = torch.zeros(1, 3)
    outcome = Outcome(torch.ones(1, 1, 4, 4), torch.zeros(1, dtype=torch.long), logits, logits, logits)
    plain, bare = (
        build_recipe(one.learns).objective(outcome).terms["total_variation"] for one in (fix(), fix(tv_border=0.0))
    )
    assert float(plain) == pytest.approx(0.3 * 16 / 2) and float(bare) == 0.0


def test_the_divergence_from_uniform_is_the_prior_s_at_one_over_k() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    outcome = Outcome(torch.ones(3, 1, 2, 2), logits.argmax(1), logits, logits, logits.flip(1))
    ours = TERMS["divergence_from_uniform"](outcome)
    assert torch.allclose(ours, divergence_from_prior(torch.full((5,), 0.2))(outcome))
    assert (ours > 0).all()


# Masks of the top pixels


def test_the_top_cells_are_as_many_as_asked_for_and_the_highest() -> None:
    logits = torch.tensor([[[[3.0, 1.0], [2.0, 0.0]]], [[[5.0, 5.0], [5.0, 5.0]]]])
    assert top_cells(logits, 0.5)[0].tolist() == [[[1.0, 0.0], [1.0, 0.0]]]
    assert top_cells(logits, 0.5)[1].tolist() == [[[1.0, 1.0], [0.0, 0.0]]]  # equal ones: in reading order
    assert top_cells(logits, 0.0).sum() == 0 and top_cells(logits, 1.0).mean() == 1


# Running


def test_a_study_leaves_rows_table_findings_and_a_page(source, jobs, tmp_path) -> None:
    outcome = run(small_study(), source, tmp_path / "out", jobs)
    assert outcome.failed == {} and outcome.complete == ("center", "tuned", "auto", "top")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary) == ["center", "tuned #0", "tuned #1", "auto #0", "auto #1", "top"]
    assert summary["top"]["mask_mean"]["mean"] == pytest.approx(0.25)
    assert {"om", "le", "f1", "sm", "pxap:boxes", "mask_mean"} <= summary["auto #0"].keys()
    text = (tmp_path / "out" / "study.md").read_text()
    assert "| tuned | 2 |" in text and "Tuning helps: " in text and "and 2 and 2 trainings" in text
    assert "Tuned tuned on boxes of held-out training images" in text
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    scores = [one["le"] for one in study["tuning"]["tuned"]]
    chosen = next(row["variant"] for row in study["rows"] if row["name"] == "tuned")
    assert chosen == study["tuning"]["tuned"][int(np.argmin(scores))]["variant"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "A small study" in page and "Tuning helps" in page
    assert (tmp_path / "out" / "figure_1.png").is_file()
    with Image.open(tmp_path / "out" / "strip.jpg") as sheet:  # image and four rows, a line of heads, four pictures
        assert sheet.size == (5 * 76, 20 + 4 * 76)
    assert "A row is a picture" not in page
    shutil.rmtree(tmp_path / "out" / "pictures")
    write_report(tmp_path / "out")
    assert "A row is a picture" in (tmp_path / "out" / "index.html").read_text()  # the strip stands for them


def test_the_mean_over_seeds_is_that_of_the_runs(source, jobs, tmp_path) -> None:
    run(small_study(), source, tmp_path / "out", jobs)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    mean = (summary["auto #0"]["f1"]["mean"] + summary["auto #1"]["f1"]["mean"]) / 2
    line = next(one for one in (tmp_path / "out" / "study.md").read_text().splitlines() if one.startswith("| auto "))
    assert f"{mean:.3f}" in line


def test_nothing_is_done_twice_and_the_report_is_made_again_from_rows_alone(source, jobs, tmp_path) -> None:
    run(small_study(), source, tmp_path / "one", jobs)
    again = Here()
    run(small_study(name="other"), source, tmp_path / "two", jobs, again)
    assert again.asked == []
    text = (tmp_path / "two" / "study.md").read_bytes()
    for name in ("study.md", "summary.json", "index.html", "figure_1.png"):
        (tmp_path / "two" / name).unlink()
    write_report(tmp_path / "two")
    assert (tmp_path / "two" / "study.md").read_bytes() == text


def test_other_settings_are_another_job_and_other_names_are_not(source, jobs, tmp_path) -> None:
    run(small_study(), source, tmp_path / "one", jobs)
    engine = Here()
    renamed = Study(name="r", title="", rows=(Row(name="of another name", variant=fix(), seeds=1),))
    run(renamed, source, tmp_path / "two", jobs, engine)
    assert engine.asked == [] or engine.asked == ["of another name"]  # trained already; measured if it was not chosen
    longer = Scale.of(**TINY.settings() | {"lr": 1e-3})
    run(renamed, source, tmp_path / "three", jobs, engine := Here(), scale=longer)
    assert engine.asked == ["of another name"]


def test_a_job_that_fails_is_named_and_tried_again_alone(source, jobs, tmp_path) -> None:
    study = small_study(rows=(*small_study().rows, Row(name="odd", variant=fix(0.2, 2.0))))
    outcome = run(study, source, tmp_path / "out", jobs, Here(fail="odd"))
    assert outcome.failed == {"odd": "ValueError: told to fail"}
    assert "odd" not in outcome.complete and len(outcome.complete) == 4
    assert "Failed: odd (ValueError: told to fail)" in (tmp_path / "out" / "study.md").read_text()
    engine = Here()
    outcome = run(study, source, tmp_path / "out", jobs, engine)
    assert engine.asked == ["odd"] and outcome.failed == {} and "odd" in outcome.complete


def test_a_row_whose_tuning_failed_is_named_left_out_and_tuned_again(source, tmp_path) -> None:
    tuned = Row(name="tuned", candidates=(fix(), fix(1.0, 10.0)))
    study = Study(name="s", title="S", rows=(Row(name="center", explainer="center"), tuned))
    outcome = run(study, source, tmp_path / "out", tmp_path / "jobs", Here(fail="tuned, tuning"))
    assert outcome.failed == {"tuned, tuning": "ValueError: told to fail"} and outcome.complete == ("center",)
    assert "Failed: tuned, tuning" in (tmp_path / "out" / "study.md").read_text()
    engine = Here()
    outcome = run(study, source, tmp_path / "out", tmp_path / "jobs", engine)
    assert engine.asked == ["tuned, tuning", "tuned, tuning", "tuned"]
    assert outcome.failed == {} and outcome.complete == ("center", "tuned")


class Trying(Here):
    """Goes on after a task that fails, as processes do."""

    def run(self, tasks, done) -> None:
        for task in tasks:
            try:
                super().run([task], done)
            except Exception as error:
                done(task, 0.0, f"{type(error).__name__}: {error}")


def test_a_source_sees_pictures_as_asked_for_also_from_the_file_of_a_job(source) -> None:
    seen = (("mean", (0.1, 0.2, 0.3)), ("std", (1.0, 1.0, 2.0)), ("fit", "squash"), ("depth", 12), ("outputs", None))
    asked = dataclasses.replace(source, classifier="timm:test_vit", seen=seen)
    assert Source.of(json.loads(json.dumps(dataclasses.asdict(asked)))) == asked
    own = dataclasses.replace(source, seen=(("fit", "pad"), ("depth", 12), ("colours", (2, 1, 0))))
    loaded = own.load()
    assert (loaded.sight.fit, loaded.sight.depth, loaded.sight.colours) == ("pad", 12, (2, 1, 0))
    assert _reading(own)[0].depth == 12
    with pytest.raises(ValueError, match=r"channels 0 to 2, asked for as red, green and blue are 0, 1, 9"):
        dataclasses.replace(source, seen=(("colours", (0, 1, 9)),)).load()


def test_the_command_takes_what_other_commands_take_of_pictures(tmp_path) -> None:
    command = Command(
        name="masks", out=tmp_path, data="DATA", classifier=("timm:x",), mean=(0.5,), std=(0.5,), crop=0.9
    )
    assert dict(command._source().seen).items() >= {"mean": (0.5,), "crop": 0.9, "fit": None}.items()


def test_tuning_sees_no_picture_of_val(source, tmp_path, no_page) -> None:
    shutil.copytree(source.data, tmp_path / "data", ignore=shutil.ignore_patterns("val*"))
    bare = dataclasses.replace(source, data=str(tmp_path / "data"))
    study = Study(name="s", title="S", rows=(Row(name="tuned", candidates=(fix(), fix(1.0, 10.0))),))
    with pytest.raises(ValueError, match=r"no row could be measured; first reason: .*val"):
        run(study, bare, tmp_path / "out", tmp_path / "jobs", Trying())
    seen = [
        json.loads(line)["image"] for path in (tmp_path / "jobs").glob("*/tuning/rows.jsonl") for line in path.open()
    ]
    assert len(list((tmp_path / "jobs").glob("*/tuning/summary.json"))) == 2
    assert seen and all(image.startswith("train/") for image in seen)


def test_a_job_that_was_killed_goes_on_from_its_checkpoint(source, tmp_path, monkeypatch, no_page) -> None:
    study = Study(name="s", title="S", rows=(Row(name="one", variant=fix()),))
    run(study, source, tmp_path / "whole", tmp_path / "whole_jobs")
    made, step, steps = Settings, Steps.step, []

    def one_step(self, number, batch):
        steps.append(number)
        if len(steps) == 2:
            raise RuntimeError("killed")
        return step(self, number, batch)

    monkeypatch.setattr("salmask.study.work.Settings", lambda **given: made(**{**given, "save_every": 1}))
    monkeypatch.setattr(Steps, "step", one_step)
    with pytest.raises(ValueError, match="killed"):
        run(study, source, tmp_path / "out", tmp_path / "jobs", Trying())
    assert run(study, source, tmp_path / "out", tmp_path / "jobs").failed == {}
    assert steps == [0, 1, 1]  # the first step is not done again
    whole, again = (next((tmp_path / jobs).glob("*/model.safetensors")) for jobs in ("whole_jobs", "jobs"))
    assert whole.read_bytes() == again.read_bytes()


def test_what_is_left_is_told_of_the_whole_study_and_a_masker_is_not_waited_for(
    source, tmp_path, monkeypatch, no_page
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("salmask.study.run.time", SimpleNamespace(perf_counter=lambda: clock.now))

    class Slow(Here):
        def run(self, tasks, done) -> None:
            for task in tasks:  # a minute for a training, six seconds to read a masker that is there
                clock.now += 60 if not (task.folder / "run.json").is_file() else 6
                super().run([task], done)

    cut = Row(name="cut", variant=fix(top=0.5))
    rows = (Row(name="tuned", candidates=(fix(), fix(1.0, 10.0))), cut, Row(name="longer", variant=fix(images=2.0)))
    told: list[str] = []
    study = Study(name="s", title="S", rows=rows)
    engine = Slow()
    run(study, source, tmp_path / "out", tmp_path / "jobs", engine, say=told.append)
    assert [line.split("]")[0] for line in told[:2]] == ["[1/5, 3 min left", "[2/5, 2 min left"]
    assert [line.split("]")[0] for line in told[-1:]] == ["[5/5, 0 min left"]
    assert engine.asked[:2] == ["tuned, tuning"] * 2
    one, other = (Task(tmp_path / name, "val", name) for name in ("one", "other"))
    again = dataclasses.replace(one, read=ReadAs(top=0.5))
    assert _apart([one, again, other]) == [one, other, again]


def test_one_candidate_is_trained_once_and_is_the_first(source, tmp_path, no_page) -> None:
    rows = (Row(name="tuned", candidates=(fix(1.0, 10.0), fix())),)
    engine = Here()
    scale = Scale.of(**TINY.settings() | {"candidates": 1})
    run(Study(name="s", title="S", rows=rows), source, tmp_path / "out", tmp_path / "jobs", engine, scale=scale)
    assert engine.asked == ["tuned"] and len(list((tmp_path / "jobs").iterdir())) == 1
    told = json.loads((tmp_path / "out" / "study.json").read_text())
    assert Variant.of(**told["rows"][0]["variant"]) == fix(1.0, 10.0) and told["tuning"] == {}


def test_training_has_its_own_size_and_crops_and_measuring_the_classifier_s(
    source, tmp_path, monkeypatch, no_page
) -> None:
    cut, trained, measured = [], [], []

    def batches(*arguments, **options):
        cut.append(options["augment"])
        for batch in training_batches(*arguments, **options):
            trained.append(tuple(batch.images.shape[-2:]))
            yield batch

    def compare_(explainers, metrics, dataset, **options):
        measured.append(tuple(dataset[0].image.shape[-2:]))
        return compare(explainers, metrics, dataset, **options)

    monkeypatch.setattr("salmask.training.variant.training_batches", batches)
    monkeypatch.setattr("salmask.study.work.compare", compare_)
    scale = Scale.of(**TINY.settings() | {"train_size": 32, "scale_crop": 0.4, "scale_most": 0.6})
    rows = (Row(name="tuned", candidates=(fix(), fix(1.0, 10.0))),)
    run(Study(name="s", title="S", rows=rows), source, tmp_path / "out", tmp_path / "jobs", scale=scale)
    assert set(trained) == {(32, 32)} and set(measured) == {(64, 64)} and len(measured) == 3
    assert {(one.size, one.scale) for one in cut} == {(32, (0.4, 0.6))}


# Networks that know more classes than the pictures show, and pictures without labels


@pytest.fixture(scope="module")
def wider(source, tmp_path_factory) -> Source:
    """Return the pictures of `source` with a network for twelve classes, listed in another order than the folders'."""
    root = tmp_path_factory.mktemp("wider")
    shutil.copytree(source.data, root / "data")
    folders = sorted(path.name for path in (root / "data" / "train").iterdir())
    (root / "data" / "classes.txt").write_text("\n".join(["first", *reversed(folders), "last"]) + "\n")
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=12).state_dict(), root / "wider.safetensors")
    spec = f"timm:test_resnet@{root / 'wider.safetensors'}"
    return dataclasses.replace(source, data=str(root / "data"), classifier=spec)


def test_a_study_knows_classes_by_name_where_the_network_knows_more(wider, tmp_path, no_page) -> None:
    pictures = wider.folder("train", transform=None)
    listed = (Path(wider.data) / "classes.txt").read_text().split()
    assert all(
        listed[target] == name.split("/")[1] for target, name in zip(pictures.targets, pictures.ids, strict=True)
    )
    assert len(pictures.classes) == 12 and wider.classes() == 10
    rows = (Row(name="few", variant=fix(per_class=1)), Row(name="some", variant=fix(classes=2)))
    result = run(Study(name="s", title="S", rows=rows), wider, tmp_path / "out", tmp_path / "jobs")
    assert result.complete == ("few", "some") and not result.failed
    measured = _pictures(wider, "val", None, TINY, transform=lambda sample: sample)
    assert all(listed[target] in name for target, name in zip(measured.targets, measured.ids, strict=True))


def test_a_study_trains_on_decisions_where_a_row_asks_for_it(source, tmp_path, monkeypatch, no_page) -> None:
    asked = []
    step = Steps.step
    monkeypatch.setattr(Steps, "step", lambda self, *given: asked.append(self.settings.target) or step(self, *given))
    rows = (Row(name="label", variant=fix()), Row(name="none", variant=fix(target="predicted")))
    run(Study(name="s", title="S", rows=rows), source, tmp_path / "out", tmp_path / "jobs")
    assert set(asked[: len(asked) // 2]) == {"label"} and set(asked[len(asked) // 2 :]) == {"predicted"}
    assert fix(target="predicted").settings()["target"] == "predicted" and "target" not in fix().settings()
    with pytest.raises(ValueError, match="target is label or predicted, got 'guess'"):
        Variant.of(target="guess")


# As released


def test_a_job_is_known_by_its_content_alone_and_new_settings_change_no_old_job(source, tmp_path) -> None:
    told = {"data": "d", "classifier": "c"}
    masker = StudyJob(source=source, scale=Scale(), seed=1, variant=fix(top=0.5))
    naive = StudyJob(source=source, scale=Scale(), explainer="center")
    assert masker.folder(tmp_path, told).name == "27dd0a99bba6"  # a new setting at its default changes no job
    for of_the_table in ({"candidates": 1}, {"measured": 5}, {"seeds": 9}, {"final": 1.0}):
        same = dataclasses.replace(masker, scale=Scale.of(**of_the_table))
        assert same.folder(tmp_path, told) == masker.folder(tmp_path, told)
    for of_the_job in ({"as_released": True}, {"train_size": 32}, {"scale_crop": 0.4}, {"scale_most": 0.9}):
        other = dataclasses.replace(masker, scale=Scale.of(**of_the_job))
        assert other.folder(tmp_path, told) != masker.folder(tmp_path, told)
    released = dataclasses.replace(naive, scale=Scale.of(as_released=True))
    assert released.folder(tmp_path, told) != naive.folder(tmp_path, told)


def test_a_study_as_released_trains_and_measures_so_and_shares_no_job(source, tmp_path) -> None:
    pool = Variant.of(recipe="ca", history="sample", pool_size=2, pool_every=1)
    rows = (
        Row(name="center", explainer="center", place=1),
        Row(name="tuned", candidates=(fix(), fix(1.0, 10.0)), place=2),
        Row(name="pool", variant=pool, place=3),
    )
    claims = (Claim(text="A pool helps", row="pool", against="tuned"),)
    study = Study(name="s", title="S", rows=rows, claims=claims, axis=Axis(x="row"), checks=("center",), checked=2)
    scale = Scale.of(**TINY.settings() | {"as_released": True})
    with pytest.MonkeyPatch.context() as bare:
        bare.setattr("salmask.study.run.write_report", lambda *given, **named: None)
        assert run(study, source, tmp_path / "described", tmp_path / "jobs").failed == {}
    before = set((tmp_path / "jobs").iterdir())
    assert run(study, source, tmp_path / "released", tmp_path / "jobs", scale=scale).failed == {}
    assert len(set((tmp_path / "jobs").iterdir()) - before) == 4  # center, two candidates, pool
    histories = [json.loads(path.read_text())["recipe"]["history"] for path in (tmp_path / "jobs").glob("*/run.json")]
    assert sorted(one for one in histories if one != "off") == ["sample", "skip_update"]
    measured = {json.loads(line)["metric"] for line in (tmp_path / "released" / "rows.jsonl").open()}
    assert {"om:as_released", "le:as_released", "sm:as_released", "f1"} <= measured and not {"le", "om"} & measured
    text = (tmp_path / "released" / "study.md").read_text()
    assert "| om:as_released | le:as_released | f1 |" in text and "A pool helps: " in text and "Tuned tuned" in text
    assert (tmp_path / "released" / "figure_2.png").is_file()


def test_a_study_of_failures_alone_is_an_error(source, tmp_path) -> None:
    study = Study(name="s", title="", rows=(Row(name="odd", variant=fix()),))
    with pytest.raises(ValueError, match="no row could be measured; first reason: ValueError: told to fail"):
        run(study, source, tmp_path / "out", tmp_path / "jobs", Here(fail="odd"))


def test_conditions_heads_infills_and_subsets_all_train(source, tmp_path, monkeypatch, no_page) -> None:
    monkeypatch.setitem(METRICS_OF, "val", ("mask_mean",))
    variants = {
        "told its area": fix(area_condition=True, area_power=2.0, area=0.5),
        "told the class": fix(class_condition=True),
        "told its area, l1": fix(area_condition=True, area=0.5),
        "binary": fix(head="concrete", temperature=0.5, learnable=True),
        "soft": fix(head="concrete", hard=False),
        "Dabkowski & Gal": Variant.of(recipe="dabkowski_gal", weights=(("kept_confidence", 0.5), ("area_root", 4))),
        "margins": Variant.of(terms=(("kept_confidence", 1), ("removed_confidence", 1), ("area", 1))),
        "prior": Variant.of(terms=(("divergence_from_uniform", 1), ("area", 1))),
        "bank": fix(infill_kept="bank", infill_removed="blur", remask=True),
        "few": fix(per_class=1),
        "some classes": fix(classes=3),
        "shuffled": fix(shuffled=True),
        "alongside": Variant.of(recipe="ca", history="sample", pool_size=2, pool_every=1, lr=0.5),
    }
    rows = tuple(Row(name=name, variant=one) for name, one in variants.items())
    outcome = run(Study(name="all", title="All", rows=rows), source, tmp_path / "out", tmp_path / "jobs")
    assert outcome.failed == {} and set(outcome.complete) == set(variants)


def test_a_masker_is_read_with_another_classifier_and_is_trained_once(source, tmp_path, no_page) -> None:
    rows = (
        Row(name="own", variant=Variant.of(recipe="ca")),
        Row(name="original", variant=Variant.of(recipe="ca", reads="original")),
        Row(name="by name", variant=Variant.of(recipe="ca", reads=source.classifier)),
    )
    outcome = run(Study(name="r", title="R", rows=rows), source, tmp_path / "out", tmp_path / "jobs")
    assert outcome.failed == {} and len(list((tmp_path / "jobs").glob("*/run.json"))) == 1
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    means = {}
    for line in map(json.loads, lines):
        if line["metric"] == "mask_mean":
            means.setdefault(line["explainer"], []).append(line["value"])
    assert means["original"] == pytest.approx(means["by name"], abs=1e-5)
    assert means["original"] != pytest.approx(means["own"], abs=1e-5)


class Faked:
    """What `Slurm` uses of submitit: jobs that run at once, in this process."""

    def __init__(self) -> None:
        self.settings, self.started, self.helpers = {}, 0, self

    def AutoExecutor(self, folder):  # noqa: N802
        self.folder = folder
        return self

    def update_parameters(self, **settings):
        self.settings = settings

    def batch(self):
        return contextlib.nullcontext()

    def submit(self, function, *arguments, **options):
        self.started += 1
        try:
            function(*arguments, **options)
            wrong = None
        except Exception as error:
            wrong = error
        job = MagicMock()
        job.exception.return_value = wrong
        return job

    def as_completed(self, jobs):
        return jobs


def test_a_cluster_is_given_the_jobs_and_its_failures_are_told(source, tmp_path, monkeypatch, no_page) -> None:
    faked = Faked()
    monkeypatch.setitem(sys.modules, "submitit", faked)
    engine = Slurm(tmp_path / "logs", at_once=3, options=(("slurm_partition", "gpu"), ("timeout_min", 120)))
    study = Study(
        name="s", title="S", rows=(Row(name="center", explainer="center"), Row(name="cut", variant=fix(top=0.5)))
    )
    outcome = run(study, source, tmp_path / "out", tmp_path / "jobs", engine)
    assert outcome.failed == {} and faked.started == 2
    assert faked.settings == {"slurm_array_parallelism": 3, "slurm_partition": "gpu", "timeout_min": 120}
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "job.json").write_text("{}")
    told = []
    engine.run([Task(broken, "val", "broken")], lambda task, seconds, error: told.append((task.name, error)))
    assert told == [("broken", "'content'")]
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"install salmask\[cluster\]"):
        engine.run([Task(broken, "val", "broken")], lambda *told: None)


def test_several_local_processes_carry_out_tasks_and_say_why_one_failed(source, tmp_path) -> None:
    job = StudyJob(source=source, scale=TINY, explainer="center")
    job.write(tmp_path / "job", source.fingerprint())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "job.json").write_text("{}")
    told = {}
    tasks = [Task(tmp_path / name, "val", name) for name in ("job", "broken")]
    Local(workers=2, threads=1).run(tasks, lambda task, seconds, error: told.update({task.name: error}))
    assert told == {"job": None, "broken": "KeyError: 'content'"}
    assert finished(tmp_path / "job", "val", TINY.measured).is_file()
    assert "Traceback" in (tmp_path / "broken" / "failed.txt").read_text()


# Checks of maps


def test_checks_hold_curves_pairs_and_strips_and_are_reported_from_the_folder_alone(
    source, jobs, tmp_path, monkeypatch
) -> None:
    rows = (
        Row(name="gradcam", explainer="gradcam"),
        Row(name="FIX", variant=fix(), seeds=2),
        Row(name="random labels", variant=fix(shuffled=True)),
    )
    study = Study(
        name="s", title="S", rows=rows, checks=("FIX", "gradcam"), pairs=(("FIX", "random labels"),), checked=2
    )
    out = tmp_path / "out"
    assert run(study, source, out, jobs).failed == {}
    found = json.loads((out / "checks.json").read_text())
    assert len(found["images"]) == 2
    asked = {(row["explainer"], row["check"]) for row in found["rows"]}
    parts = {"classifier, cascading", "classifier, independent", "masker, cascading", "masker, independent"}
    assert asked >= {("FIX #0", one) for one in parts}
    assert ("gradcam", "classifier, cascading") in asked and ("gradcam", "masker, cascading") not in asked
    compared = {(row["explainer"], row["step"]) for row in found["rows"] if row["check"] == "maps"}
    assert compared >= {("FIX #0", "FIX #1"), ("FIX #0", "random labels"), ("FIX #0", "random labels, another picture")}
    text = (out / "study.md").read_text()
    assert "| FIX #0 and random labels |" in text and "| FIX #0, all of its classifier randomised |" in text
    assert "Similarity falls as the classifier is randomised: " in text
    assert "than two trainings of FIX: difference" in text
    page = (out / "index.html").read_text()
    assert "How alike the maps are" in page and "FIX #0, masker, cascading" in page
    for name in ("study.md", "index.html"):
        (out / name).unlink()
    shutil.rmtree(jobs / "none", ignore_errors=True)
    write_report(out)
    assert (out / "study.md").read_text() == text and (out / "index.html").read_text() == page
    again = Here()
    monkeypatch.setattr("salmask.study.run.write_report", lambda *given, **named: None)
    run(study, source, out, jobs, again)
    assert again.asked == []


def made_checks(**values) -> Checks:
    """Four images; spearman by "explainer/check/step"."""
    return Checks({(*name.split("/"), "spearman"): np.array(column) for name, column in values.items()})


def test_a_check_says_falls_only_where_the_curve_does() -> None:
    falling = {f"a/masker, cascading/{k}": [1 - 0.2 * k - 0.01 * i for i in range(4)] for k in range(1, 5)}
    level = {f"a/masker, cascading/{k}": [1.0] * 4 for k in range(1, 5)}
    gone = falling | {"a/masker, cascading/4": [float("nan")] * 4}
    assert "randomised: confirmed for the maps of a" in checks_part(made_checks(**falling)).findings[0]
    assert "below one half from 3 on (module 3)" in checks_part(made_checks(**falling)).findings[0]
    assert "randomised: not told apart for the maps of a" in checks_part(made_checks(**level)).findings[0]
    assert "4 of 4 maps are constant at the end" in checks_part(made_checks(**gone)).findings[0]


def test_pairs_are_held_against_maps_of_other_pictures_and_other_trainings() -> None:
    alike = {"a #0/maps/a #1": [0.9, 0.8, 0.9, 0.8], "a #0/maps/a #1, another picture": [0.1, 0.2, 0.1, 0.3]}
    apart = {"a #0/maps/b": [0.1, 0.3, 0.2, 0.2], "a #0/maps/b, another picture": [0.3, 0.1, 0.2, 0.2]}
    first, second = checks_part(made_checks(**alike, **apart)).findings
    assert first.startswith("Maps of a #0 and a #1 are alike: Spearman 0.850")
    assert "b are not told from unrelated maps" in second
    assert "surely less alike than two trainings of a: difference −0.650" in second
    empty = {name: [float("nan")] * 4 for name in apart}
    assert "those of one of them are constant" in checks_part(made_checks(**empty)).findings[0]


# The command


def test_the_command_runs_a_study_of_one_s_own(source, tmp_path, capsys) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from salmask.study import Row, Study\n"
        "def study(scale):\n"
        "    return Study(name='mine', title='Mine', rows=[Row(name='center', explainer='center')])\n"
    )
    spec = ["--data", source.data, "--classifier", source.classifier, "--image-size", "64", "--measured", "4"]
    out = tmp_path / "out"
    assert main(["study", str(own), *spec, "--out", str(out), "--jobs", str(tmp_path / "jobs")]) == 0
    assert "| center |" in (out / "study.md").read_text()
    assert "report:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tables"], "no study 'tables': expected table1"),
        (["none.py"], "no file none.py"),
        (["table1", "--data", "."], "needs --classifier"),
        (["table1", "--classifier", "timm:resnet18"], "--classifier goes with --data"),
        (["infilling", "--inpainter", "none.safetensors"], "no inpainter at none.safetensors"),
        (["table1", "--images", "0"], "images must be positive"),
        (["table1", "--candidates", "0"], "candidates must be positive"),
        (["table1", "--train-size", "4"], "train_size is 8 to 4096"),
        (["table1", "--scale-crop", "0.8", "--scale-most", "0.4"], "0 < scale_crop <= scale_most <= 1"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize(
    ("maps", "layers", "wanted"),
    [(5, (3, 4), (3, 4)), (3, (3, 4), None), (3, (1,), (1,)), (3, (1, 4), (1, 4))],
)
def test_a_network_of_fewer_maps_has_its_deepest_read(maps, layers, wanted) -> None:
    assert layers_read(layers, maps) == wanted
