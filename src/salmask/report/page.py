"""One folder -> its summary, differences, agreement and table, and a self-contained index.html, from files alone."""

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from numpy import ndarray
from PIL import Image

from salmask.files import replace_file
from salmask.report import charts
from salmask.report.checks import ChecksPart, read_checks
from salmask.report.sentences import describe, p_text
from salmask.report.sheet import MAP_KEPT_REMOVED, panels_of, picture_sheet, read_picture
from salmask.report.study import OVER, STRIP, StudyPart, picture_strip, read_study, study_part
from salmask.report.tables import COST, Summary, markdown, number, spread, summarize
from salmask.rows import statistics
from salmask.rows.read import file_name, read_counts, read_failures, read_lines, read_meta, read_rows, write_json
from salmask.rows.statistics import Interval

__all__ = ["add_training", "write_markdown_table", "write_report"]

_CELL = 112  # pixels of a picture's panel in the page
_CONTROLS = {"Fixed", "Random"}  # kinds of explainers that draw a map without a look at the classifier
_POINTS = 300  # of a training curve
_SKIPPED = {"step", "epoch", "time", "seconds", "rate", "lr"}  # of metrics.jsonl: no curve of their own


def write_report(folder: Path, *, title: str | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Write summary.json, differences.json, agreement.json, table.md, index.html and grid.jpg from a folder's files.

    The same files give the same bytes. Reads rows.jsonl (or rows.jsonl.gz), counts/, meta.json, failures.jsonl,
    pictures/ and training/<run>.jsonl; all but the rows may be absent.

    Returns the summary {explainer: {metric: {mean, low, high, n}}}.
    Errors: ValueError that names file and line, for rows that are missing or broken.
    """
    folder = Path(folder)
    rows, meta = read_rows(folder), read_meta(folder)
    counts = read_counts(folder)
    summary = summarize(rows, counts, meta)
    failures = read_failures(folder)
    write_json(folder / "summary.json", summary.as_dict())
    write_json(folder / "differences.json", _differences(summary))
    _write_agreement(folder, summary)
    _write_table(folder, summary)
    study = read_study(folder)
    part = None if study is None else study_part(study, rows, counts, summary, read_checks(folder))
    if part is not None:
        _write_study(folder, part)
        if (sheet := picture_strip(folder, study or {})) is not None:
            replace_file(folder / STRIP, partial(sheet.save, quality=88))
        title = title or str(study["title"])  # type: ignore[index]
    page = _page(folder, summary, meta, failures, title or "Which pixels decide", rows.ids, part)
    _write_text(folder / "index.html", page)
    pictures = _pictures(folder, list(summary.intervals))
    if part is None and (sheet := picture_sheet(pictures, count=6, side=96, panels=MAP_KEPT_REMOVED)) is not None:
        replace_file(folder / "grid.jpg", partial(sheet.save, quality=85))
    return summary.as_dict()


def write_markdown_table(folder: Path, *, metrics: Sequence[str] | None = None) -> Path:
    """Write table.md, a GitHub table of the folder's rows, and return its path; metrics: these, in this order."""
    folder = Path(folder)
    summary = summarize(read_rows(folder), read_counts(folder), read_meta(folder))
    return _write_table(folder, summary, metrics)


def add_training(folder: Path, name: str, metrics: Path) -> None:
    """Copy a run's metrics.jsonl into the folder, so that its curves are in every later report.

    Errors: ValueError where the file is missing.
    """
    if not metrics.is_file():
        raise ValueError(f"expected the training metrics of {name} at {metrics}, found none: name the run's folder")
    (Path(folder) / "training").mkdir(parents=True, exist_ok=True)
    replace_file(Path(folder) / "training" / f"{file_name(name)}.jsonl", lambda draft: shutil.copyfile(metrics, draft))


def _write_table(folder: Path, summary: Summary, metrics: Sequence[str] | None = None) -> Path:
    columns = summary.columns if metrics is None else [summary.column(name) for name in metrics]
    tied = {metric: summary.tied(metric) for metric in summary.differences}
    text = markdown(summary.intervals, columns, best=summary.best, tied=tied)
    text += f"\nMeans over {summary.images} images with 95 % bootstrap intervals. Bold: best. °: not told from it"
    text += " (paired sign-flip test on images, Holm-corrected, 5 %).\n"
    path = folder / "table.md"
    return _write_text(path, text)


def _write_text(path: Path, text: str) -> Path:
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))
    return path


def _differences(summary: Summary) -> dict[str, Any]:
    return {
        metric: {
            "best": summary.best[metric],
            "differences": [
                {"explainer": one.first, **one.interval.as_dict(), "p": _null(one.p), "p_holm": _null(one.adjusted)}
                for one in found
            ],
        }
        for metric, found in summary.differences.items()
    }


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _page(
    folder: Path,
    summary: Summary,
    meta: Mapping[str, Any],
    failures: Sequence[Mapping[str, Any]],
    title: str,
    ids: Sequence[str],
    study: StudyPart | None = None,
) -> str:
    environment = Environment(
        loader=PackageLoader("salmask.report", "."),
        autoescape=select_autoescape(("html", "j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    agreed = _agreement(summary)
    grid = _grid(folder, list(summary.intervals), failures, {file_name(image): image for image in ids})
    return environment.get_template("report.html.j2").render(
        title=title,
        about=_about(meta, summary),
        sentences=describe(summary, failures=failures, agreement=agreed, controls=_controls(meta, summary)),
        study=None if study is None else _study(study),
        strip=_whole(folder / STRIP) if study is not None and not grid["rows"] and (folder / STRIP).is_file() else None,
        columns=summary.columns,
        scores=_score_rows(summary, meta),
        differences=_difference_rows(summary),
        differing=[summary.column(name) for name in summary.differences],
        grid=grid,
        cell=_CELL,
        cost=_cost(summary),
        agreement=None if agreed is None else _figure(charts.agreement_chart(*agreed)),
        training=_training(folder / "training", {file_name(name): name for name in summary.intervals}),
        failures=failures,
        degenerate=_degenerate(summary),
        explainers=_settings(meta, summary),
        left_out=meta.get("left_out", {}),
        command=meta.get("command"),
        notes=meta.get("notes", []),
    )


def _write_study(folder: Path, part: StudyPart) -> None:
    """Write study.md and the study's figures as files."""
    _write_text(folder / "study.md", part.markdown())
    for place, (_, figure) in enumerate(part.figures, start=1):
        replace_file(folder / f"figure_{place}.png", partial(Path.write_bytes, data=charts.png(figure)))


def _study(part: StudyPart) -> dict[str, Any]:
    """Return what the page's template needs of a study."""
    rows = [
        {"name": name, "row": part.rows[name], "cells": _study_cells(row, part.columns)}
        for name, row in part.cells.items()
    ]
    return {
        "columns": part.columns,
        "rows": rows,
        "findings": part.findings,
        "notes": part.notes,
        "over": OVER,
        "figures": [{"caption": caption, "figure": _figure(figure)} for caption, figure in part.figures],
        "checks": None if part.checks is None else _checks(part.checks),
    }


def _checks(part: ChecksPart) -> dict[str, Any]:
    """Return what the page's template needs of a study's sanity checks."""
    return {
        "columns": part.columns,
        "rows": [{"name": name, "cells": _study_cells(row, part.columns)} for name, row in part.cells.items()],
        "strips": [{"caption": caption, "data": _whole(path)} for caption, path in part.strips],
    }


def _study_cells(row: Mapping[str, Interval], columns: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "text": number(row[column].mean),
            "spread": spread(row[column]),
            "value": "" if math.isnan(row[column].mean) else row[column].mean,
        }
        for column in columns
    ]


def _about(meta: Mapping[str, Any], summary: Summary) -> list[tuple[str, str]]:
    facts = {
        "data": meta.get("data"),
        "images": summary.images,
        "classifier": meta.get("classifier"),
        "explained class": meta.get("target"),
        "hidden pixels become": meta.get("infill"),
        "seed": meta.get("seed"),
        "version": meta.get("version"),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _score_rows(summary: Summary, meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    tied = {metric: set(summary.tied(metric)) for metric in summary.differences}
    rows = []
    for name, intervals in summary.intervals.items():
        cells = []
        for column in summary.columns:
            interval = intervals.get(column.name)
            if interval is None:
                cells.append({"text": "–", "spread": "", "mark": "", "value": "", "note": "no value"})
                continue
            mark = "best" if summary.best.get(column.name) == name else ""
            mark = "tied" if name in tied.get(column.name, ()) else mark
            note = f"{column.name}: {interval.n} images" + (f", {interval.missing} missing" if interval.missing else "")
            cells.append(
                {
                    "text": number(interval.mean, cost=column.name in COST),
                    "spread": "" if column.name in COST else spread(interval),
                    "mark": mark,
                    "value": "" if math.isnan(interval.mean) else repr(interval.mean),
                    "note": note,
                }
            )
        settings = meta.get("explainers", {}).get(name, {})
        note = "; ".join(f"{key}: {value}" for key, value in settings.items() if value not in (None, {}, ""))
        rows.append({"name": name, "truth": name in summary.unranked, "cells": cells, "note": note})
    return rows


def _difference_rows(summary: Summary) -> list[dict[str, Any]]:
    table = {metric: {one.first: one for one in found} for metric, found in summary.differences.items()}
    rows = []
    for name in summary.intervals:
        if name in summary.unranked:
            continue
        cells = []
        for metric, found in table.items():
            if summary.best[metric] == name:
                cells.append({"text": "best", "spread": "", "p": "", "mark": "best", "value": "0"})
            elif one := found.get(name):
                cells.append(_difference_cell(one, tied=not one.adjusted < 0.05))
            else:
                cells.append({"text": "–", "spread": "", "p": "", "mark": "", "value": ""})
        rows.append({"name": name, "cells": cells})
    return rows


def _difference_cell(one: statistics.Difference, *, tied: bool) -> dict[str, str]:
    mean = one.interval.mean
    sign = "+" if mean > 0 else ""
    return {
        "text": sign + number(mean),
        "spread": spread(one.interval),
        "p": p_text(one.adjusted),
        "mark": "tied" if tied else "",
        "value": "" if math.isnan(mean) else repr(mean),
    }


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


def _cost(summary: Summary) -> Markup | None:
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
    return _figure(charts.cost_chart(points, y=label)) if len(points) > 1 else None


def _turned(interval: Interval) -> Interval:
    return Interval(1 - interval.mean, 1 - interval.high, 1 - interval.low, interval.n, interval.missing)


def _degenerate(summary: Summary) -> list[tuple[str, int, int]]:
    """Return (explainer, degenerate maps, maps) of those that have any."""
    found = []
    for name, table in summary.intervals.items():
        one = table.get("degenerate")
        if one is not None and one.mean > 0:
            found.append((name, round(one.mean * one.n), one.n))
    return found


def _settings(meta: Mapping[str, Any], summary: Summary) -> list[tuple[str, str]]:
    told = meta.get("explainers", {})
    return [
        (name, json.dumps(told[name], ensure_ascii=False).strip("{}").replace('"', ""))
        for name in summary.intervals
        if name in told
    ]


def _controls(meta: Mapping[str, Any], summary: Summary) -> list[str]:
    """Return the explainers that look at no classifier, by the kind that meta.json holds."""
    told = meta.get("explainers", {})
    return [name for name in summary.intervals if told.get(name, {}).get("kind") in _CONTROLS]


def _grid(
    folder: Path, explainers: Sequence[str], failures: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return the picture grid: rows are images, columns explainers; every strip embedded once. names: of the files."""
    files = _pictures(folder, explainers)
    shown = list(files)
    failed = {(one.get("explainer"), file_name(str(one.get("image")))) for one in failures}
    images = sorted({stem for table in files.values() for stem in table})
    rows = []
    for image in images:
        strips = {name: _strip(files[name][image]) for name in shown if image in files[name]}
        first = next(iter(strips.values()))
        cells = [
            {
                "name": name,
                "data": _embed(strips[name][1]) if name in strips else None,
                "absent": "failed" if (name, image) in failed else "–",
            }
            for name in shown
        ]
        rows.append({"image": names.get(image, image), "data": _embed(first[0]), "cells": cells})
    return {"explainers": shown, "rows": rows}


def _pictures(folder: Path, explainers: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Return explainer -> image -> file of its strip, for the explainers that have pictures."""
    places = {name: folder / "pictures" / file_name(name) for name in explainers}
    return {name: {path.stem: path for path in at.glob("*.png")} for name, at in places.items() if at.is_dir()}


def _strip(path: Path) -> tuple[Image.Image, Image.Image]:
    """Return the image, and overlay | kept | removed, as small pictures. Errors: ValueError for a broken file."""
    panels = panels_of(path)
    side, height = panels[0].size
    scale = min(1.0, _CELL * 1.25 / side)  # a little more than shown, for dense screens
    size = max(1, round(side * scale)), max(1, round(height * scale))
    rest = Image.new("RGB", (3 * side, height))
    for place, panel in enumerate(panels[1:]):
        rest.paste(panel, (place * side, 0))
    lanczos = Image.Resampling.LANCZOS
    return panels[0].resize(size, lanczos), rest.resize((3 * size[0], size[1]), lanczos)


def _whole(path: Path) -> str:
    """Return a picture as it is, embedded. Errors: ValueError for a broken file."""
    return _embed(read_picture(path))


def _embed(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _training(folder: Path, names: Mapping[str, str]) -> Markup | None:
    """Return the training curves of training/<run>.jsonl: lines {"step": ..., name: value}. names: of the files."""
    runs = {}
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        lines = [line for _, _, line in read_lines(path)]
        if curves := _curves(lines):
            runs[names.get(path.stem, path.stem)] = curves
    return _figure(charts.curves_chart(runs)) if runs else None


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[ndarray, ndarray]]:
    """Return name -> (steps, values), thinned by means of equal stretches; what is no finite number is passed over."""
    found: dict[str, list[tuple[float, float]]] = {}
    for place, line in enumerate(lines):
        step = line.get("step")
        for name, value in line.items():
            if name not in _SKIPPED and _plain(value):
                found.setdefault(name, []).append((float(step or 0) if _plain(step) else place, float(value)))
    curves = {}
    for name, pairs in found.items():
        if len(pairs) > 1:
            stretches = np.array_split(np.array(pairs), min(_POINTS, len(pairs)))
            means = np.array([stretch.mean(0) for stretch in stretches])
            curves[name] = (means[:, 0], means[:, 1])
    return curves


def _plain(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _figure(figure: Any) -> Markup:
    """Return inline SVG that scales with the page; its text was escaped by matplotlib."""
    text = charts.svg(figure)
    # the names of XML dialects look like addresses; inline SVG needs none of them
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).replace("xlink:href", "href")
    return Markup(text)
