"""One folder -> its summary, differences, agreement and table, and a self-contained index.html, from files alone."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy import ndarray

from salmask.files import JSON, Facts, replace_file, writable_folder
from salmask.report import charts
from salmask.report.checks import read_checks
from salmask.report.connection import read_connectivity
from salmask.report.connectivity import ConnectivityPart, connectivity_part
from salmask.report.grid import CELL, embedded, picture_files, picture_grid
from salmask.report.sentences import describe, p_text
from salmask.report.sheet import MAP_KEPT_REMOVED, picture_sheet
from salmask.report.study import OVER, STRIP, StudyPart, picture_strip, read_study, study_part
from salmask.report.tables import COST, Summary, interval_text, markdown, number, summarize
from salmask.report.training import training_chart
from salmask.rows import statistics
from salmask.rows.archive import unpacked
from salmask.rows.read import Rows, read_counts, read_failures, read_meta, read_rows, write_json
from salmask.rows.statistics import Interval

__all__ = ["PHOTOGRAPHS", "write_markdown_table", "write_report"]

PHOTOGRAPHS = "photographs.jpg"  # in a folder: a sheet that its page shows first

_CONTROLS = {"Fixed", "Random"}  # kinds of explainers that draw a map without a look at the classifier
_TITLE = "Which pixels decide"


@dataclass(frozen=True)
class _Numbers:
    """What the files of a folder hold, read and checked."""

    rows: Rows
    meta: Facts
    counts: Mapping[str, Facts]
    failures: Sequence[Mapping[str, str]]
    summary: Summary

    @classmethod
    def read(cls, source: Path) -> "_Numbers":
        rows, meta, counts = read_rows(source), read_meta(source), read_counts(source)
        return cls(rows, meta, counts, read_failures(source), summarize(rows, counts, meta))


def write_report(folder: Path, *, out: Path | None = None, title: str | None = None) -> dict[str, dict[str, JSON]]:
    """Write summary.json, differences.json, agreement.json, table.md, index.html and a picture from a folder's files.

    The same files give the same bytes. Reads rows.jsonl, counts/, meta.json, failures.jsonl, training/<run>.jsonl, or
    the archive of all of them, and pictures/; all but the rows may be absent. A study has study.md, figures and
    strip.jpg as well. out: where to write, the folder itself by default.

    Returns the summary {explainer: {metric: {mean, low, high, n}}}.
    Errors: ValueError that names file and line, for rows that are missing or broken.
    """
    folder = Path(folder)
    out = folder if out is None else writable_folder(out)
    with unpacked(folder) as source:
        numbers = _Numbers.read(source)
        summary, study = numbers.summary, read_study(source)
        write_json(out / "summary.json", summary.as_dict())
        write_json(out / "differences.json", _differences(summary))
        _write_agreement(out, summary)
        _write_table(out, summary)
        files = picture_files(folder, list(summary.intervals))
        if study is None:
            part, sheet = None, picture_sheet(files, count=6, side=96, panels=MAP_KEPT_REMOVED)
        else:
            part, sheet = _study(study, numbers, source), picture_strip(folder, study)
            _write_study(out, part)
            title = title or str(study["title"])
        if sheet is not None:
            replace_file(out / ("grid.jpg" if study is None else STRIP), partial(sheet.save, quality=88))
        connected = _connected(source, numbers, folder)
        if connected is not None:
            _write_study(out, connected)
        chart = training_chart(source, list(summary.intervals))
        strip = next((at / STRIP for at in (out, folder) if (at / STRIP).is_file()), None)
        photographs = next((at / PHOTOGRAPHS for at in (out, folder) if (at / PHOTOGRAPHS).is_file()), None)
        page = (
            _environment()
            .get_template("report.html.j2")
            .render(
                title=title or _TITLE,
                photographs=photographs,
                study=part,
                connectivity=connected,
                strip=strip if part is not None and not any(files.values()) else None,
                grid=picture_grid(files, numbers.rows.ids, numbers.failures, page=out),
                training=chart,
                **_page(numbers),
            )
        )
        _write_text(out / "index.html", page)
    return summary.as_dict()


def write_markdown_table(folder: Path, *, metrics: Sequence[str] | None = None) -> Path:
    """Write table.md, a GitHub table of the folder's rows, and return its path; metrics: these, in this order."""
    with unpacked(Path(folder)) as source:
        return _write_table(Path(folder), _Numbers.read(source).summary, metrics)


def _study(study: Facts, numbers: _Numbers, source: Path) -> StudyPart:
    return study_part(study, numbers.rows, numbers.counts, numbers.summary, read_checks(source))


def _connected(source: Path, numbers: _Numbers, folder: Path) -> ConnectivityPart | None:
    study = read_connectivity(source)
    return None if study is None else connectivity_part(study, numbers.rows, folder)


# --- files ---------------------------------------------------------------------------------------------------------


def _write_text(path: Path, text: str) -> Path:
    replace_file(path, partial(Path.write_text, data=text, encoding="utf-8"))
    return path


def _write_table(folder: Path, summary: Summary, metrics: Sequence[str] | None = None) -> Path:
    columns = summary.columns if metrics is None else [summary.column(name) for name in metrics]
    tied = {metric: summary.tied(metric) for metric in summary.differences}
    text = markdown(summary.intervals, columns, best=summary.best, tied=tied)
    text += f"\nMeans over {summary.images} images with 95 % bootstrap intervals. Bold: best. °: not told from it"
    text += " (paired sign-flip test on images, Holm-corrected, 5 %).\n"
    return _write_text(folder / "table.md", text)


def _write_study(folder: Path, part: StudyPart | ConnectivityPart) -> None:
    """Write study.md and the study's figures as files."""
    _write_text(folder / "study.md", part.markdown())
    for position, (_, figure) in enumerate(part.figures, start=1):
        replace_file(folder / f"figure_{position}.png", partial(Path.write_bytes, data=charts.png(figure)))


def _differences(summary: Summary) -> JSON:
    return {
        metric: {
            "best": summary.best[metric],
            "differences": [
                {"explainer": one.first, **one.interval.as_dict(), "p": _null(one.p), "p_holm": _null(one.adjusted)}
                for one in differences
            ],
        }
        for metric, differences in summary.differences.items()
    }


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_agreement(folder: Path, summary: Summary) -> None:
    """Write agreement.json, {"metrics", "kendall_tau"} with null where undefined; none under three explainers."""
    agreed = _agreement(summary)
    if agreed is None:
        (folder / "agreement.json").unlink(missing_ok=True)
        return
    names, matrix = agreed
    write_json(
        folder / "agreement.json",
        {"metrics": list(names), "kendall_tau": [[_null(round(tau, 6)) for tau in row] for row in matrix.tolist()]},
    )


# --- page ----------------------------------------------------------------------------------------------------------


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("salmask.report", "."),
        autoescape=select_autoescape(("html", "j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "embedded": embedded,
        "number": number,
        "p_text": p_text,
        "plain": lambda settings: json.dumps(settings, ensure_ascii=False).strip("{}").replace('"', ""),
        "spread": interval_text,
        "svg": _svg,
    }
    environment.tests["nan"] = math.isnan
    return environment


def _page(numbers: _Numbers) -> JSON:
    """Return what the template needs of everything but pictures and study."""
    summary, meta = numbers.summary, numbers.meta
    agreed, controls = _agreement(summary), _controls(meta, summary)
    return {
        "about": _about(meta, summary),
        "agreement": None if agreed is None else charts.agreement_chart(*agreed),
        "cell": CELL,
        "cost": _cost(summary),
        "cost_columns": COST,
        "failures": numbers.failures,
        "meta": {"command": None, "notes": [], "left_out": {}, "explainers": {}, **meta},
        "over": OVER,
        "sentences": describe(summary, failures=numbers.failures, agreement=agreed, controls=controls),
        "settings": {name: meta.get("explainers", {}).get(name, {}) for name in summary.intervals},
        "summary": summary,
    }


def _about(meta: Facts, summary: Summary) -> list[tuple[str, str]]:
    facts = {
        "data": meta.get("data"),
        "mixed with": meta.get("mixed with"),
        "images": summary.images,
        "heard as": meta.get("heard"),
        "spectrograms are": meta.get("shown as"),
        "classifier": meta.get("classifier"),
        "explained class": meta.get("target"),
        "hidden pixels become": meta.get("infill"),
        "seed": meta.get("seed"),
        "version": meta.get("version"),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _agreement(summary: Summary) -> tuple[list[str], ndarray] | None:
    """Return Kendall's tau between the ranked metrics over the ranked explainers; None under three explainers."""
    explainers = [name for name in summary.intervals if name not in summary.unranked]
    metrics = [column for column in summary.columns if column.name in summary.differences]
    if len(explainers) < 3 or len(metrics) < 2:
        return None
    return statistics.agreement(
        {column.name: [summary.mean(name, column.name) for name in explainers] for column in metrics},
        {column.name: column.direction for column in metrics},
    )


def _cost(summary: Summary) -> Figure | None:
    """Return the plot of the first ranked metric (1 - LE if there is one) against seconds an image."""
    names = [column.name for column in summary.columns if column.name in summary.differences]
    if not names:
        return None
    metric = "le" if "le" in names else names[0]
    column = summary.column(metric)
    points = {}
    for name, table in summary.intervals.items():
        if name in summary.unranked:
            continue  # it would press all others together
        seconds = summary.mean(name, "seconds")
        if metric in table and seconds > 0 and not math.isnan(table[metric].mean):
            points[name] = (seconds, _turned(table[metric]) if metric == "le" else table[metric])
    label = "1 − le, up is better" if metric == "le" else f"{column.name} ({column.direction} is better)"
    return charts.cost_chart(points, y=label) if len(points) > 1 else None


def _turned(interval: Interval) -> Interval:
    return Interval(1 - interval.mean, 1 - interval.high, 1 - interval.low, interval.n, interval.missing)


def _controls(meta: Facts, summary: Summary) -> list[str]:
    """Return the explainers that look at no classifier, by the kind that meta.json holds."""
    settings = meta.get("explainers", {})
    return [name for name in summary.intervals if settings.get(name, {}).get("kind") in _CONTROLS]


def _svg(figure: Figure) -> Markup:
    """Return inline SVG that scales with the page; its text was escaped by matplotlib."""
    text = charts.svg(figure)
    # the names of XML dialects look like addresses; inline SVG needs none of them
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).replace("xlink:href", "href")
    return Markup(text)
