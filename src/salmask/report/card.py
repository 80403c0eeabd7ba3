"""The model card of a run that is shared: README.md with what the hub reads at its top. Needs no torch."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from salmask.files import JSON, NUMBER, Facts, read_json
from salmask.report.grid import picture_files
from salmask.report.sheet import MAP_KEPT_REMOVED, picture_sheet
from salmask.report.tables import number
from salmask.rows.read import META, read_meta

__all__ = ["UNSPECIFIED", "card_text", "own_rows", "run_pictures", "scores_of", "told_rows"]

UNSPECIFIED = "unspecified"
"""The licence of a run whose owner has named none."""

_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail"),
)
_SUMMARY = {str: {str: {"mean": NUMBER, "low": NUMBER, "high": NUMBER, "n?": (int, type(None))}}}
_COSTS = ("seconds", "passes", "passes_forward", "passes_backward", "degenerate")
"""Columns of an evaluation that say what maps cost or lack; a card's `metrics:` names what was measured of quality."""
Scores = Mapping[str, Mapping[str, Facts]]


def scores_of(folder: Path) -> Scores:
    """Return explainer -> metric -> {mean, low, high, n} of an evaluation. Errors: ValueError, FileNotFoundError."""
    path = folder / "summary.json"
    if not (path.is_file() and (folder / META).is_file()):
        raise FileNotFoundError(f"no evaluation in {folder}: expected the --out of `salmask evaluate`")
    scores: Scores = read_json(path, _SUMMARY, remedy="make it again with `salmask report`")
    return scores


def told_rows(path: Path) -> dict[str, str]:
    """Return the rows of the first table of a README, name -> text: what the package's own masker says of itself.

    Errors: ValueError for a file without such a table.
    """
    rows = re.findall(r"^\| ([^|\n]+) \| ([^|\n]+) \|$", path.read_text(encoding="utf-8"), re.M)
    if not rows:
        raise ValueError(f"expected a table of two columns in {path}, got none: install the package anew")
    return dict(rows)


def own_rows(folder: Path, weights: str) -> list[str]:
    """Return the explainers of an evaluation that are the masker of this fingerprint. Errors: ValueError for none."""
    explainers = read_meta(folder).get("explainers", {})
    own = [name for name, facts in explainers.items() if _weights_of(facts.get("settings")) == weights]
    if not own:
        raise ValueError(
            f"the evaluation in {folder} measured {', '.join(explainers) or 'nothing'}, none of which is this masker: "
            "name an evaluation of the run that is shared (--scores)"
        )
    return own


def _weights_of(settings: object) -> object:
    return settings.get("weights") if isinstance(settings, Mapping) else None


def run_pictures(folder: Path, explainer: str, count: int) -> Image.Image:
    """Return `count` pictures of an evaluation with the explainer's map, kept and removed. Errors: ValueError."""
    sheet = picture_sheet(picture_files(folder, [explainer]), count=count, side=160, panels=MAP_KEPT_REMOVED)
    if sheet is None:
        raise ValueError(f"the evaluation in {folder} has no pictures of {explainer}: leave --pictures out")
    return sheet


def card_text(
    facts: Facts,
    *,
    place: str,
    licence: str = UNSPECIFIED,
    data: str | None = None,
    scores: Scores | None = None,
    measured: str = "",
    own: Sequence[str] = (),
    picture: str | None = None,
    told: Mapping[str, str] | None = None,
) -> str:
    """Return README.md of a shared run.

    facts: of run.json. place: OWNER/NAME on the hub, or what stands for it. data: on which it was trained, as it is to
    be named; that of the run where None. scores: of `scores_of`, measured on `measured`; own: the rows of this masker.
    picture: file beside the card. told: of `told_rows`, rows that stand where run.json says nothing.
    """
    from huggingface_hub import ModelCard, ModelCardData

    told = dict(told or {})
    measured_before = told.pop("scores", None)
    if licence == UNSPECIFIED and "licence of the data" in told:
        licence = told["licence of the data"].split(". ")[0]
    data = data or facts.get("data")
    slug = data if data and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data) else None
    known = licence.lower() in _LICENCES
    metrics = list(dict.fromkeys(metric for name in own for metric in (scores or {})[name] if metric not in _COSTS))
    head = ModelCardData(
        library_name="salmask",
        license=licence.lower() if known else "unknown" if licence == UNSPECIFIED else "other",
        license_name=None
        if known or licence == UNSPECIFIED
        else re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-"),
        tags=["salmask", "saliency", "explainability", "image-classification"],
        datasets=None if slug is None else [slug],
        metrics=metrics or None,
    )
    parts = [f"---\n{head.to_yaml()}\n---\n", f"# A masker for {facts['network']}\n", _opening(place)]
    if picture is not None:
        parts.append(f"![Pictures, the mask of each, what it keeps and what is left without it]({picture})\n")
    about = _about(facts, data=data, licence=licence)
    if "how it was trained" in told:
        about.pop("recipe")
    parts += [_table({**about, **told, **({"data": about["data"]} if data else {})}), "## Scores\n"]
    if measured_before is not None:
        parts.append(f"As the package measured it: {measured_before}.\n")
    if scores:
        parts.append(_scores(scores, own, measured))
    elif measured_before is None:
        parts.append("Nobody has measured this masker (`salmask evaluate`).\n")
    text = "\n".join(parts)
    ModelCard(text)  # what the hub could not read is refused here
    return text


def _opening(place: str) -> str:
    return f"""Returns, in one pass, a mask of the pixels that the classifier's decision rests on.
Made with [salmask](https://github.com/salmask/salmask).

```sh
salmask explain photo.jpg --explainer hf-hub:{place} --out explained
```

A copy of this folder is a run as well, which needs no network: `--explainer FOLDER`.
"""


def _about(facts: Facts, *, data: str | None, licence: str) -> JSON:
    reference, reader = facts.get("reference"), facts.get("reader")
    classes, recipe = facts.get("classes") or (), facts.get("recipe") or {}
    settings, images = facts.get("settings") or {}, facts.get("images")
    where = "in this folder" if reference is None else "not in this folder: built by its name, and compared"
    labels = {"label": "the labels of the data", "predicted": "the classifier's own decisions, no labels"}
    steps = round(settings["epochs"] * images / settings["batch_size"]) if settings and images else None
    weights = ", ".join(f"{term} {weight:g}" for term, weight in (recipe.get("weights") or {}).items())
    shown = ("epochs", "batch_size", "lr", "precision", "seed")
    return {
        "classifier": f"`{facts['network']}`, {where}",
        "SHA-256 of its weights": f"`{facts['sha256']}`",
        "classes": f"{len(classes)}: {', '.join(map(str, classes[:5]))}{' ...' * (len(classes) > 5)}"
        if classes
        else None,
        "layers that are read from": ", ".join(facts["taps"]),
        "the masker reads the maps of": None
        if reader is None
        else "a copy that was trained alongside (reader.safetensors)",
        "data": "unspecified" if data is None else f"{data}{'' if images is None else f', {images} pictures'}",
        "targets in training": labels.get(str(settings.get("target"))),
        "recipe": f"`{recipe['recipe']}`" if recipe.get("recipe") else "unspecified",
        "weights of its terms": weights or None,
        "settings": ", ".join(f"{name} {settings[name]}" for name in shown if name in settings) or None,
        "steps": steps,
        "collapsed": facts.get("collapsed"),
        "made with salmask": facts.get("version"),
        "licence": licence
        if licence != UNSPECIFIED
        else "unspecified: its owner has named none, so ask before you use it",
    }


def _table(rows: Facts) -> str:
    lines = [f"| {name} | {_cell(str(value))} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").replace("<", "&lt;").split())


def _scores(scores: Scores, own: Sequence[str], measured: str) -> str:
    metrics = [metric for metric in scores[own[0]] if scores[own[0]][metric]["mean"] is not None]
    counts = [n for metric in metrics if (n := scores[own[0]][metric].get("n")) is not None]
    lines = [f"| {' | '.join(['explainer', *metrics])} |", f"|---|{'---:|' * len(metrics)}"]
    for name in (*own, *(other for other in scores if other not in own)):
        shown = f"**{_cell(name)}**" if name in own else _cell(name)
        lines.append(f"| {' | '.join([shown, *(_score(scores[name].get(metric)) for metric in metrics)])} |")
    of = f"{max(counts)} samples of {measured}" if counts else measured
    return "\n".join(
        [*lines, "", f"Measured on {_cell(of)}; [low, high]: 95 %, over pictures. **Bold**: this masker.", ""]
    )


def _score(interval: Facts | None) -> str:
    if interval is None or interval["mean"] is None:
        return ""
    ends = [number(interval[end]) for end in ("low", "high") if interval[end] is not None]
    return number(interval["mean"]) + (f" [{', '.join(ends)}]" if len(ends) == 2 else "")
