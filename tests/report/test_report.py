"""From files to tables, figures, sentences and the page: the same bytes, nothing fetched, errors that name the line."""

import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salmask.report.charts import line_chart, png, scatter_chart, svg
from salmask.report.page import write_markdown_table, write_report
from salmask.report.sentences import describe
from salmask.report.study import _within
from salmask.report.tables import Column, Summary, markdown, number, summarize
from salmask.report.training import add_training
from salmask.rows.archive import pack
from salmask.rows.read import agree_on_meta, file_name, read_counts, read_rows
from salmask.rows.statistics import Interval
from salmask.rows.write import Failures, Writer

IDS = [f"val/cat/{i:03d}.jpg" for i in range(40)]
SECONDS = {"good": 0.01, "same": 0.02, "bad": 0.5, "oracle": 0.001}
META = {
    "explainers": {name: {"kind": name, "truth": name == "oracle"} for name in SECONDS},
    "metrics": {
        "le": {"direction": "down", "range": [0, 1], "protocol": {"box": "mask > mean"}, "source": "A & B, 2020"},
        "gain": {"direction": "up", "range": [0, 1], "protocol": {}},
        "hits": {"direction": "up", "range": [0, 1], "protocol": {}, "set_level": True},
        "seconds": {"direction": "down", "range": [0, None], "protocol": {}},
        "passes": {"direction": "down", "range": [0, None], "protocol": {}},
        "degenerate": {"direction": "none", "range": [0, 1], "protocol": {}},
    },
    "data": "toy <b>data</b>",
    "command": "salmask evaluate --data toy",
    "left_out": {"pxap": "the data's first batch has no pixel masks"},
}


def ratio(counts: np.ndarray) -> float:
    return float(counts[:, 0].sum() / counts[:, 1].sum())


def fill(folder: Path, *, explainers=tuple(SECONDS), ids=tuple(IDS)) -> Path:
    agree_on_meta(folder, META)
    noise = np.random.default_rng(0).normal(0, 0.1, (len(IDS), 5))
    offset = {"good": 0.3, "same": 0.3, "bad": 0.6, "oracle": 0.0}
    with Writer(folder, ["le", "gain", "seconds", "passes", "degenerate"], {"hits": ratio}) as writer:
        for column, name in enumerate(SECONDS):
            for i, image in enumerate(IDS):
                if name not in explainers or image not in ids:
                    continue
                values = {
                    "le": offset[name] + noise[i, 4] + 0.2 * noise[i, column],
                    "gain": float("nan") if (name, i) == ("bad", 3) else 1 - offset[name] + noise[i, column],
                    "seconds": SECONDS[name],
                    "passes": 3.0 if name == "bad" else 1.0,
                    "degenerate": float(name == "bad" and i < 5),
                }
                writer.add(name, image, values, {"hits": np.array([noise[i, column] > offset[name] - 0.4, 1])})
    return folder


def with_pictures(folder: Path) -> Path:
    for name in SECONDS:
        place = folder / "pictures" / file_name(name)
        place.mkdir(parents=True)
        for image in IDS[:2]:
            if (name, image) != ("bad", IDS[0]):
                Image.new("RGB", (256, 64), (200, 30, 60)).save(place / f"{file_name(image)}.png")
    Failures(folder, ["bad"]).add("bad", IDS[0], RuntimeError("no <memory> left"))
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1), "lr": 0.1}) + "\n" for i in range(700)))
    add_training(folder, "good", metrics)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = with_pictures(fill(tmp_path_factory.mktemp("report")))
    write_report(made)
    return made


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def summary(folder) -> Summary:
    return summarize(read_rows(folder), read_counts(folder), META)


def test_summary_has_the_contract_of_four_numbers(folder):
    found = json.loads((folder / "summary.json").read_text())
    rows = read_rows(folder)
    assert set(found) == set(SECONDS)
    for name, table in found.items():
        assert {"mean", "low", "high", "n"} <= set(table["le"])
        assert table["le"]["mean"] == pytest.approx(rows.values[name]["le"].mean())
        assert table["le"]["low"] < table["le"]["mean"] < table["le"]["high"]
    assert found["bad"]["gain"]["n"] == 39 and found["bad"]["gain"]["missing"] == 1
    assert 0 < found["good"]["hits"]["mean"] < 1 and found["good"]["hits"]["n"] == 40


def test_the_best_is_found_and_what_cannot_be_told_from_it(summary):
    assert summary.best["le"] in ("good", "same")
    other = {"good": "same", "same": "good"}[summary.best["le"]]
    assert summary.tied("le") == [other]
    assert summary.unranked == {"oracle"} and "oracle" not in summary.best.values()
    bad = next(one for one in summary.differences["le"] if one.first == "bad")
    assert bad.interval.low > 0.2 and bad.adjusted < 0.01


def test_set_level_scores_are_compared_on_shared_resamples(summary):
    bad = next(one for one in summary.differences["hits"] if one.first == "bad")
    means = {name: summary.mean(name, "hits") for name in SECONDS}
    assert bad.interval.mean == pytest.approx(means["bad"] - means[summary.best["hits"]])
    assert bad.interval.high < 0 and bad.p < 0.05


def test_set_level_scores_of_other_images_are_not_tested(tmp_path):
    fill(tmp_path, explainers=("good",))
    fill(tmp_path, explainers=("bad",), ids=tuple(IDS[:30]))
    summary = summarize(read_rows(tmp_path), read_counts(tmp_path), META)
    assert np.isnan(summary.differences["hits"][0].p)
    assert summary.differences["le"][0].interval.n == 30  # rows are paired over the images that both have


def test_rebuilding_from_rows_alone_gives_the_same_bytes(folder, tmp_path):
    names = ("summary.json", "differences.json", "table.md", "index.html")
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    write_report(folder)
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_an_archive_gives_the_same_report_and_no_rows_are_added_to_it(tmp_path):
    folder, again, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    for one in (folder, again):
        one.mkdir()
        with_pictures(fill(one))
    before = write_report(folder)
    page = (folder / "index.html").read_bytes()
    archive = pack(folder)
    assert {path.name for path in folder.iterdir()} >= {"rows.tar.xz", "table.md", "pictures"}
    assert not any((folder / name).exists() for name in ("rows.jsonl", "counts", "training", "meta.json"))
    assert archive.read_bytes() == pack(again).read_bytes()
    assert write_report(folder) == before and (folder / "index.html").read_bytes() == page
    assert write_report(folder, out=out) == before and (out / "index.html").read_bytes() == page
    assert not (folder / "rows.jsonl").exists()
    with pytest.raises(ValueError, match=r"holds packed rows: unpack them to add some, `tar -xf rows\.tar\.xz`"):
        fill(folder, explainers=("same",))
    assert not (folder / "meta.json").exists()
    for broken in (archive.read_bytes()[: archive.stat().st_size // 2], b"no archive"):
        archive.write_bytes(broken)
        with pytest.raises(ValueError, match=r"rows\.tar\.xz: cannot be unpacked"):
            write_report(folder)


def test_what_is_not_whole_is_not_packed(tmp_path):
    with pytest.raises(ValueError, match=r"expected rows\.jsonl"):
        pack(tmp_path)
    folder = fill(tmp_path)
    (folder / "counts" / "good" / "hits.journal").write_text("")
    with pytest.raises(ValueError, match="has not ended"):
        pack(folder)
    assert (folder / "rows.jsonl").exists()


def test_all_commands_that_filled_a_folder_are_kept(tmp_path):
    told = [agree_on_meta(tmp_path, META | made).get("command") for made in ({}, {"command": "a b"})]
    told += [agree_on_meta(tmp_path, META | {"command": line})["command"] for line in ("c", "a b")]
    told.append(agree_on_meta(tmp_path, {key: value for key, value in META.items() if key != "command"})["command"])
    first = META.get("command")
    before = [] if first is None else [first]
    assert told == [first, *("\n".join([*before, *lines]) for lines in (["a b"], *[["a b", "c"]] * 3))]


def test_the_order_of_rows_changes_no_number(folder, tmp_path):
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    agree_on_meta(tmp_path, META)
    (tmp_path / "rows.jsonl").write_text("".join(reversed(lines)))
    write_report(tmp_path)
    ours, theirs = (json.loads((place / "summary.json").read_text()) for place in (tmp_path, folder))
    for name in SECONDS:
        for metric in ("le", "gain"):
            assert ours[name][metric] == pytest.approx(theirs[name][metric], rel=1e-12)


class Structure(HTMLParser):
    """Collects what a browser would fetch, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_fetches_nothing_and_is_well_formed(page):
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert structure.addresses
    assert all(one.startswith(("data:image/", "#")) for one in structure.addresses)
    assert "http:" not in page and "https:" not in page and "@import" not in page and "<link" not in page
    assert "script" in structure.tags and structure.tags.count("svg") == 2 + 1  # cost, agreement, training


def test_the_page_escapes_what_users_write(page):
    assert "toy &lt;b&gt;data&lt;/b&gt;" in page and "<b>data</b>" not in page
    assert "no &lt;memory&gt; left" in page


def test_the_page_names_everything(page):
    for text in (
        *SECONDS,
        "le ↓",
        "gain ↑",
        "box: mask &gt; mean",
        "A &amp; B, 2020",
        "pxap is left out",
        "bad 5 of 40",
    ):
        assert text in page
    assert page.count('class="cell"') == 7 and ">failed<" in page  # 4 explainers x 2 images less the failed one


def test_heads_sort_by_numbers(page):
    values = re.findall(r'data-value="([^"]*)"', page)
    numbers = [value for value in values if value and value not in SECONDS]
    assert len(numbers) > 20
    assert all(np.isfinite(float(value)) for value in numbers)


def test_sentences_carry_the_numbers(summary):
    texts = describe(summary, failures=[{"explainer": "bad"}])
    lead = next(text for text in texts if text.startswith("le ("))
    best = summary.best["le"]
    assert "less is better" in lead and f"{best} leads with {number(summary.mean(best, 'le'))}" in lead
    assert "surely behind is bad" in lead and "Not told from it at 5 %" in lead
    assert any("bad the dearest, 50 times as long (3 passes against 1)" in text for text in texts)
    assert any("bad 5" in text and text.startswith("Degenerate") for text in texts)
    assert any(text.startswith("1 explanation failed (bad)") for text in texts)


def test_sentences_say_that_nothing_is_told_apart(tmp_path):
    few = fill(tmp_path, explainers=("good", "same"), ids=IDS[:3])
    texts = describe(summarize(read_rows(few), read_counts(few), META))
    assert texts[0] == "On 3 images none of 3 ranked metrics tells the explainers apart at 5 %."


def test_sentences_say_where_a_control_is_not_beaten(summary):
    control = summary.best["le"]
    texts = describe(summary, controls=[control])
    assert any(text.startswith("Maps that look at no classifier are best") and control in text for text in texts)
    assert not any(f"{control} is the cheapest" in text for text in texts)
    assert not any(text.startswith("Maps that look") for text in describe(summary))


def test_sentences_name_metrics_that_disagree(summary):
    matrix = np.array([[1.0, -0.6], [-0.6, 1.0]])
    assert any("tau −0.600" in text for text in describe(summary, agreement=(["le", "gain"], matrix)))
    assert not any("unlike" in text for text in describe(summary, agreement=(["a", "b"], abs(matrix))))


def test_a_table_marks_the_best_and_what_is_tied_with_it():
    made = {"FIX": {"le": Interval(0.42, 0.166, 0.674, 2)}, "CA": {"le": Interval(0.41, math.nan, math.nan, 1)}}
    text = markdown(made, [Column("le", "down")], best={"le": "FIX"}, tied={"le": ["CA"]}, corner="variant")
    assert text.splitlines()[0] == "| variant | le ↓ |"
    assert "| FIX | **0.420** [0.166, 0.674] |" in text and "| CA | 0.410° |" in text


def test_markdown_table_of_chosen_metrics(folder):
    text = write_markdown_table(folder, metrics=["gain", "le"]).read_text()
    assert text.startswith("| explainer | gain ↑ | le ↓ |")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    write_markdown_table(folder)


@pytest.mark.parametrize(
    ("value", "cost", "text"),
    [
        (0.41249, False, "0.412"), (-0.0336, False, "−0.034"), (0.00335, False, "0.003"), (-0.0001, False, "0.000"),
        (12345.6, False, "12,346"), (float("nan"), False, "–"), (1.0, True, "1"), (0.0041, True, "0.0041"),
        (0.004, True, "0.0040"), (4.123, True, "4.12"), (1.2e-5, True, "1.2e−5"), (None, True, "–"), (0.0, True, "0"),
    ],
)  # fmt: skip
def test_numbers_have_sensible_digits(value, cost, text):
    assert number(value, cost=cost) == text


def test_figures_are_reproducible_and_self_contained():
    interval = Interval(0.5, 0.4, 0.6, 10)
    series = {"fix": [(1.0, interval), (10.0, interval)], "one seed": [(1.0, Interval(0.3, np.nan, np.nan, 1))]}
    draw = lambda: line_chart(series, x="n", y="le", log_x=True, reference={"all": 0.4})  # noqa: E731
    assert svg(draw()) == svg(draw())
    assert svg(draw()).startswith("<svg")
    assert png(draw()) == png(draw())
    assert png(draw())[:4] == b"\x89PNG"


def test_lines_with_bars_side_by_side_lie_within_the_axes():
    series = {
        "a": [(1.0, Interval(0.5, 0.4, 0.6, 9)), (10.0, Interval(0.3, 0.2, 0.9, 9))],
        "b": [(1.0, Interval(0.5, np.nan, np.nan, 9))],
    }
    for log_x in (False, True):
        axes = line_chart(series, x="n", y="le", log_x=log_x).axes[0]
        assert axes.get_xlim()[0] <= 1 and axes.get_xlim()[1] >= 10
        assert axes.get_ylim()[0] <= 0.2 and axes.get_ylim()[1] >= 0.9


def test_points_that_coincide_are_named_in_a_legend():
    points = {f"row {i}": (1.0, Interval(0.5, 0.4, 0.6, 9)) for i in range(20)}
    figure = scatter_chart(points, x="area", y="le", legend=True)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(points)
    looks = {(line.get_marker(), line.get_color()) for line in figure.axes[0].lines if line.get_marker() in "o^sDvP"}
    assert len(looks) == 20 and not figure.axes[0].texts


def test_an_interval_over_trainings_ends_where_its_metric_does():
    assert _within(Interval(0.9, 0.7, 1.1, 3), (0, 1)) == Interval(0.9, 0.7, 1, 3)
    assert _within(Interval(0.1, -0.2, 0.4, 3), (0.0, "inf")) == Interval(0.1, 0.0, 0.4, 3)
    assert _within(Interval(1.3, -0.2, 4.0, 3), (None, None)) == Interval(1.3, -0.2, 4.0, 3)


def test_crowded_labels_do_not_overlap():
    points = {f"explainer_{i}": (0.01, Interval(0.5 + i / 1000, np.nan, np.nan, 9)) for i in range(6)}
    figure = scatter_chart(points, x="seconds", y="score", log_x=True)
    canvas = figure.canvas
    canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_one_explainer_and_one_image_make_a_page(tmp_path):
    fill(tmp_path, explainers=("good",), ids=tuple(IDS[:1]))
    found = write_report(tmp_path)
    assert found["good"]["le"]["low"] is None and found["good"]["le"]["n"] == 1
    assert "Differences from the best" not in (tmp_path / "index.html").read_text()


def test_the_grid_is_a_file_with_maps_kept_and_removed(tmp_path):
    colours = {"image": (255, 0, 0), "map": (0, 255, 0), "kept": (0, 0, 255), "removed": (255, 255, 0)}
    fill(tmp_path)
    for column, name in enumerate(("good", "bad")):
        place = tmp_path / "pictures" / file_name(name)
        place.mkdir(parents=True)
        for image in IDS[: 9 - 5 * column]:  # four pictures that both have
            strip = Image.new("RGB", (256, 64))
            for panel, colour in enumerate(colours.values()):
                strip.paste(colour, (64 * panel, 0, 64 * panel + 64, 64))
            strip.save(place / f"{file_name(image)}.png")
    write_report(tmp_path)
    with Image.open(tmp_path / "grid.jpg") as sheet:
        assert sheet.size == (3 * 100, 22 + 4 * 3 * 100)  # a line of heads; panels of 96 and gaps of 4
        seen = {
            "image": sheet.getpixel((48, 70)),
            "map": sheet.getpixel((148, 70)),
            "kept": sheet.getpixel((248, 170)),
            "removed": sheet.getpixel((148, 270)),
        }
    for panel, colour in seen.items():
        assert np.abs(np.array(colour) - colours[panel]).max() < 8, panel


def test_rows_without_meta_are_shown_unranked(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "a", "explainer": "x", "metric": "m", "value": 0.5}\n')
    assert write_report(tmp_path)["x"]["m"]["mean"] == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a", "expl', "line 3: expected one JSON object"),
        ("[1, 2]\n", "line 3: expected one JSON object"),
        ('{"image": "a"}, {"image": "b"}\n', "line 3: expected one JSON object"),
        ('{"image": "a", "explainer": "x", "metric": "m"}\n', "line 3: expected image, explainer, metric"),
        ('{"image": "a", "explainer": "x", "metric": "m", "value": "high"}\n', "line 3: expected image"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    good = '{"image": "a", "explainer": "x", "metric": "m", "value": 0.5}\n'
    (tmp_path / "rows.jsonl").write_text(2 * good + line)
    with pytest.raises(ValueError, match=f"rows.jsonl, {message}"):
        write_report(tmp_path)


def test_an_incomplete_block_is_cut_at_the_end_and_refused_elsewhere(tmp_path):
    fill(tmp_path, explainers=("good",))
    path, metrics = tmp_path / "rows.jsonl", ["le", "gain", "seconds", "passes", "degenerate"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))
    writer = Writer(tmp_path, metrics, {"hits": ratio})
    assert not writer.has("good", IDS[-1]) and writer.has("good", IDS[-2])
    assert path.read_text() == "".join(lines[:-5])
    path.write_text("".join(lines[:3] + lines[5:]))
    with pytest.raises(ValueError, match=r"before line 4: the rows of image .* lack \['degenerate', 'passes'\]"):
        Writer(tmp_path, metrics)


def test_counts_that_are_fewer_than_rows_are_refused(tmp_path):
    fill(tmp_path, explainers=("good",))
    (tmp_path / "counts" / "good" / "hits.npz").unlink()
    with pytest.raises(ValueError, match="expected counts of 40 images"):
        Writer(tmp_path, ["le", "gain", "seconds", "passes", "degenerate"], {"hits": ratio})


def test_missing_and_empty_rows_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected rows\.jsonl in"):
        write_report(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(ValueError, match="empty file"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["meta.json", "counts/good/hits.npz", "pictures/good/val__cat__000.jpg.png"])
def test_a_broken_file_is_named(tmp_path, name):
    with_pictures(fill(tmp_path))
    (tmp_path / name).write_bytes(b"{ broken")
    with pytest.raises(ValueError, match=re.escape(name.split("/")[-1])):
        write_report(tmp_path)


def test_absent_training_metrics_are_named(tmp_path):
    with pytest.raises(ValueError, match="training metrics of run"):
        add_training(tmp_path, "run", tmp_path / "none.jsonl")


def test_reports_need_no_torch():
    code = "import sys, salmask.report, salmask.rows.write; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (255, 64)])
def test_a_picture_that_is_no_strip_is_named(tmp_path, size):
    folder = with_pictures(fill(tmp_path))
    place = folder / "pictures" / "good" / f"{file_name(IDS[0])}.png"
    Image.new("RGB", size).save(place)
    with pytest.raises(ValueError, match=r"cat__000\.jpg\.png: expected four panels of equal width"):
        write_report(folder)


def test_a_pipe_in_place_of_a_picture_is_named_and_not_waited_for(tmp_path):
    folder = with_pictures(fill(tmp_path))
    place = folder / "pictures" / "good" / f"{file_name(IDS[0])}.png"
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(ValueError, match="no regular file but a pipe"):
        write_report(folder)


def test_curves_pass_over_what_is_no_number(tmp_path):
    folder = fill(tmp_path)
    lines = [{"step": "one", "loss": 1}, {"loss": float("nan")}, {"step": 3, "loss": True}, {"step": 4, "loss": [2]}]
    (folder / "training").mkdir()
    (folder / "training" / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(folder)
    assert "<h2>Training</h2>" not in (folder / "index.html").read_text()


@pytest.mark.parametrize(
    ("study", "field"),
    [
        ({}, "expected the entry 'name'"),
        (
            {"name": "x", "title": "X", "rows": [{"name": "a"}], "claims": []},
            r"rows\[0\]: expected the entry 'members'",
        ),
        ({"name": "x", "title": "X", "rows": {}, "claims": []}, "rows: expected a list"),
        (
            {
                "name": "x",
                "title": "X",
                "rows": [],
                "claims": [{"text": "t", "row": "a", "against": "b", "metric": "le"}],
            },
            r"claims: expected rows of the study, got \['a', 'b'\]",
        ),
    ],
)
def test_a_study_of_another_shape_names_its_field(tmp_path, study, field):
    folder = fill(tmp_path)
    (folder / "study.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match=field):
        write_report(folder)


def test_every_output_is_written_whole(tmp_path, monkeypatch):
    """All that a report writes goes through the one writer that replaces a file in one step."""
    folder = with_pictures(fill(tmp_path))
    opened: list[Path] = []

    def noted(plain):
        def write(path: Path, *content, **more):
            opened.append(path)
            return plain(path, *content, **more)

        return write

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, noted(getattr(Path, name)))
    write_report(folder)
    assert opened and all(path.name.startswith(".") for path in opened)
