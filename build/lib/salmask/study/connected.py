"""From a study of connectivity to its folder: connectivity.json, rows, sheets of maps, and the report of them."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from salmask.files import JSON, Facts, replace_file
from salmask.masking import MeanColour, keep, remove
from salmask.outcome import whole_logits
from salmask.report.page import write_report
from salmask.report.pictures import spread_ids, strip
from salmask.report.sheet import MAP_ALONE, picture_sheet
from salmask.rows.read import META, ROWS, file_name, write_json
from salmask.rows.statistics import Interval, as_interval, mean_replicates
from salmask.study.connect import Arrays, Connection
from salmask.study.connectivity import barrier_height, clusters_of, convexity_gap, places, ridge_height, silhouette
from salmask.study.evidence import ANSWERS
from salmask.study.trials import main_trial
from salmask.types import in_colour

__all__ = ["run_connectivity"]

_SHOWN = 4  # pictures of a sheet of maps
_SIDE = 72  # pixels of one of them
_PROTOCOLS: Mapping[str, str] = {
    "share": "of the kept area, on the cue: sum(m C) / sum(m); pictures whose cues are in conflict, decided class",
    "lift": "share of the kept area on the cue over the cue's share of the picture; 1: a map that is everywhere alike",
    "drop": "of the fall in the decided class's probability as the kept part is taken out of each cue and of the rest, "
    "on the cue; mean colour",
}


_HEIGHTS = {"barrier": barrier_height, "gap": convexity_gap, "ridge": ridge_height}


def run_connectivity(connection: Connection, *, about: Facts) -> Path:
    """Do what is missing of a study and write its folder: tables, page, sheets. Returns the page.

    about: data, classifier, command, version, in words.
    """
    out, say = connection.out, connection.say
    paths = connection.paths()
    names = list(connection.networks)
    trials = {
        name.removeprefix("loss:"): _clustered(connection, {pair: arrays[name] for pair, arrays in paths.items()})
        for name in next(iter(paths.values()))
        if name.startswith("loss:")
    }
    main = main_trial(connection.cues)
    labels = trials[main]["clusters"]
    description: JSON = {
        "title": "Which evidence do trainings share? Linear connectivity seen through maps",
        "points": places(connection.extent.points).tolist(),
        "fresh_statistics": connection.extent.fresh_statistics,
        "asked": connection.extent.clusters,
        "pictures": {"path": connection.extent.measured, "maps": connection.extent.mapped},
        "cues": connection.cues,
        "ids": [] if connection.conflict is None else list(connection.conflict.ids),
        "networks": _networks(connection),
        "paths": [_path(names, pair, arrays) for pair, arrays in paths.items()],
        "clustered_by": main,
        "trials": trials,
        "collapsed": {},
        "explainers": list(connection.extent.explainers),
        "similarity": {},
    }
    for name in connection.extent.explainers:
        description["similarity"][name] = _similarity(connection, name)
        description["collapsed"][name] = connection.collapsed(name)
        say(f"maps of {name}: compared")
    _write_rows(connection, about)
    write_json(out / "connectivity.json", description)
    _write_sheets(connection, labels)
    write_report(out, title=description["title"])
    return out / "index.html"


def _clustered(connection: Connection, losses: Mapping[tuple[str, str], ndarray]) -> JSON:
    """Return the cluster of each network by the gaps in one loss, and their silhouette."""
    gaps = _gap_matrix(list(connection.networks), losses)
    labels = clusters_of(gaps, connection.extent.clusters)
    return {"clusters": labels.tolist(), "silhouette": _plain(silhouette(gaps, labels))}


def _gap_matrix(names: Sequence[str], losses: Mapping[tuple[str, str], ndarray]) -> ndarray:
    gaps = np.zeros((len(names), len(names)))
    for (first, second), values in losses.items():
        at = names.index(first), names.index(second)
        gaps[at] = gaps[at[::-1]] = float(convexity_gap(values.mean(1)))
    return gaps


def _path(names: Sequence[str], pair: tuple[str, str], arrays: Arrays) -> JSON:
    """Return barrier, gap and ridge of each trial with intervals over pictures, and the mean of all at each point."""
    measured: JSON = {}
    for name, column in arrays.items():
        kind, _, trial = name.partition(":")
        if kind == "loss":
            replicates = mean_replicates(column.T)
            measured[trial] = {
                key: as_interval(float(height(column.mean(1))), height(replicates), n=column.shape[1]).as_dict()
                for key, height in _HEIGHTS.items()
            }
    values = {name: [_mean(point) for point in column] for name, column in arrays.items()}
    return {"ends": [names.index(one) for one in pair], "heights": measured, "values": values}


def _networks(connection: Connection) -> list[JSON]:
    """Return each network's name, accuracy on val, and which pictures in conflict it gives the class of each cue."""
    described = []
    batch = connection.val
    for name, loaded in connection.networks.items():
        guess = whole_logits(loaded.classifier, batch.images.to(loaded.classifier.device)).argmax(1).cpu()
        right = (guess == batch.targets).double().numpy()[:, None]
        entry: JSON = {"name": name, "accuracy": _interval(right).as_dict(), "says": {}}
        if connection.conflict is not None:
            says = connection.conflict.says(loaded.classifier)
            entry["says"] = {cue: [int(one) for one in value.tolist()] for cue, value in says.items()}
        described.append(entry)
    return described


def _similarity(connection: Connection, name: str) -> JSON:
    """Return the similarities of an explainer's maps, rounded: measure -> pairs and other, a list a picture each."""
    found = {}
    for measure, kinds in connection.similarities(name).items():
        found[measure] = {
            kind: [[_plain(value) for value in line] for line in table.tolist()] for kind, table in kinds.items()
        }
    return found


def _write_rows(connection: Connection, about: Facts) -> None:
    """Write rows.jsonl and meta.json: of every explainer of every network, what its maps say of the cues."""
    ids = [] if connection.conflict is None else list(connection.conflict.ids)
    lines: list[str] = []
    explainers: JSON = {}
    for name in connection.extent.explainers:
        for network in connection.networks:
            title = f"{name}, {network}"
            explainers[title] = {"kind": name, "settings": {"network": network}}
            arrays = connection.maps(name, network)
            columns = {f"{by}:{cue}": arrays[f"{by}:{cue}"] for by in ANSWERS for cue in connection.cues} or {
                "mask_mean": arrays["val"].mean((1, 2, 3))
            }
            for place, image in enumerate(ids or connection.val.ids[: connection.extent.mapped]):
                for metric, column in columns.items():
                    row = {"image": image, "explainer": title, "metric": metric, "value": _plain(float(column[place]))}
                    lines.append(json.dumps(row, ensure_ascii=False))
    text = "\n".join(lines) + "\n"
    replace_file(connection.out / ROWS, lambda at: at.write_text(text, encoding="utf-8"))
    metrics = {
        f"{by}:{cue}": {"direction": "none", "range": [0, None if by == "lift" else 1], "protocol": {"what": what}}
        for by, what in _PROTOCOLS.items()
        for cue in connection.cues
    }
    write_json(connection.out / META, {**about, "explainers": explainers, "metrics": metrics})


def _write_sheets(connection: Connection, labels: Sequence[int]) -> None:
    """Write a sheet an explainer: a row a picture in conflict (or of val), a column a network, cluster by cluster."""
    conflict = connection.conflict
    images = connection.val.images[: connection.extent.mapped] if conflict is None else conflict.images
    ids = connection.val.ids[: connection.extent.mapped] if conflict is None else list(conflict.ids)
    chosen = [ids.index(one) for one in spread_ids(ids, _SHOWN)]
    names = [name for _, name in sorted(zip(labels, connection.networks, strict=True), key=lambda one: one[0])]
    first = next(iter(connection.networks.values())).classifier
    shown = images[chosen].to(first.device)
    for explainer in connection.extent.explainers:
        columns: dict[str, dict[str, Path]] = {}
        folder = connection.out / "parts" / "strips" / file_name(explainer)
        folder.mkdir(parents=True, exist_ok=True)
        for network in names:
            masks = torch.from_numpy(connection.maps(explainer, network)["val" if conflict is None else "conflict"])
            masks = masks[chosen].to(shown)
            infill = MeanColour.of(first)
            panels = [in_colour(one).cpu() for one in (shown, keep(shown, masks, infill), remove(shown, masks, infill))]
            columns[network] = {}
            for place in range(len(chosen)):
                file = folder / f"{file_name(network)}-{place}.png"
                picture = strip(panels[0][place], masks[place].cpu(), panels[1][place], panels[2][place])
                replace_file(file, partial(picture.save, format="PNG"))
                columns[network][str(place)] = file
        sheet = picture_sheet(columns, count=_SHOWN, side=_SIDE, panels=MAP_ALONE)
        if sheet is not None:
            replace_file(connection.out / f"maps_{file_name(explainer)}.jpg", partial(sheet.save, quality=88))


def _interval(column: ndarray) -> Interval:
    return as_interval(float(column.mean()), mean_replicates(column)[:, 0], n=len(column))


def _mean(values: ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return round(float(known.mean()), 6) if len(known) else None


def _plain(value: float | None) -> float | None:
    return None if value is None or value != value else round(float(value), 5)
