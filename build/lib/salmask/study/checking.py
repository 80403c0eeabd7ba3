"""What a study asks of maps beyond their scores: do they change with the weights, and with what was learned?

    maps-N/maps.npz      ids (N,), maps (N, H, W): a job's maps of N pictures of val, spread evenly
    checks-N/checks.json {"images": ids, "rows": [{"check", "step", "similarity", "values"}]}; the steps of a check are
                         the modules, from the last to the first, and the values one similarity an image
    checks-N/*.png       picture strips of the same

`gather` brings those of a study together, for the report, and compares the maps of its pairs of rows.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from salmask.classifier import Classifier
from salmask.data import Labelled, collate
from salmask.evaluation.checks import randomise
from salmask.explain.base import Explainer, Explanation
from salmask.explain.batching import joined
from salmask.files import JSON, Facts, replace_file
from salmask.metrics.sanity import SanityCheck
from salmask.metrics.sanity_figures import strip_figure
from salmask.metrics.similarity import similarities_for
from salmask.rows.read import file_name
from salmask.training.run import Loaded
from salmask.types import Asked, Images

__all__ = ["CHECKS", "MAPS", "Bounded", "Checked", "gather", "write_checks", "write_maps"]

CHECKS, MAPS = "checks.json", "maps.npz"
OTHER_PICTURE = "another picture"
_AT_ONCE = 16  # pictures in one pass


@dataclass(frozen=True)
class Checked:
    """Where the maps and the checks of one explainer of a study lie; checks: None where none were asked for."""

    maps: Path
    checks: Path | None = None


def write_maps(explainer: Explainer, loaded: Loaded, dataset: Labelled, out: Path) -> None:
    """Write the maps of all pictures of a data set, in [0, 1]."""
    batch = collate([dataset[index] for index in range(len(dataset))])
    explanation = Bounded(explainer)(loaded.classifier, batch.images.to(loaded.classifier.device), None)
    maps = explanation.masks[:, 0].float().cpu().numpy()

    def save(at: Path) -> None:
        with at.open("wb") as file:
            np.savez_compressed(file, ids=np.array(batch.ids), maps=maps)

    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / MAPS, save)


def write_checks(
    explainer: Explainer, loaded: Loaded, dataset: Labelled, out: Path, *, released: bool = False, seed: int = 0
) -> None:
    """Randomise the classifier, and the masker where there is one: rows and picture strips.

    A classifier that was trained alongside is randomised as it is after the training. released: draw new weights as
    the paper's released code does.
    """
    out.mkdir(parents=True, exist_ok=True)
    bounded = Bounded(explainer)
    rows: list[JSON] = []
    for what in ("classifier", "masker") if bounded.masker is not None else ("classifier",):
        checks = randomise(bounded, loaded, dataset, masker=what == "masker", released=released, seed=seed)
        for check in checks:
            name = f"{what}, {check.kind}"
            rows += _rows(name, check)
            strip = partial(strip_figure(check).savefig, dpi=100)
            replace_file(out / f"{name.replace(', ', '_')}.png", strip)
    content = {"images": list(dataset.ids), "rows": rows}
    replace_file(out / CHECKS, lambda at: at.write_text(_one_a_line(content), encoding="utf-8"))


def gather(
    checked: Mapping[str, Checked], members: Mapping[str, Sequence[str]], pairs: Sequence[tuple[str, str]], out: Path
) -> None:
    """Write a study's checks.json and its strips from those of its jobs.

    members: row -> its explainers. Each pair of rows is compared by their first trainings; a row with several is
    compared with its second one too. Every comparison has its yardstick: the same maps against those of the next
    picture, which are as unlike as maps of such pictures can be expected to be.
    """
    shutil.rmtree(out / "checks", ignore_errors=True)
    (out / CHECKS).unlink(missing_ok=True)
    maps = {name: _read_maps(one.maps / MAPS) for name, one in checked.items() if (one.maps / MAPS).is_file()}
    rows: list[JSON] = []
    images: list[str] = []
    for name, one in checked.items():
        if one.checks is None or not (one.checks / CHECKS).is_file():
            continue
        checks = json.loads((one.checks / CHECKS).read_text(encoding="utf-8"))
        images = checks["images"]
        rows += [{"explainer": name, **row} for row in checks["rows"]]
        (out / "checks").mkdir(exist_ok=True)
        for strip in sorted(one.checks.glob("*.png")):
            shutil.copyfile(strip, out / "checks" / f"{file_name(name)}__{strip.name}")
    firsts = {row: names[0] for row, names in members.items()}
    asked = [(names[0], names[1]) for names in members.values() if len(names) > 1]
    asked += [(firsts[a], firsts[b]) for a, b in pairs if a in firsts and b in firsts]
    for first, second in asked:
        if first in maps and second in maps:
            rows += _compared(first, second, maps)
    for name in dict.fromkeys(firsts.values()):
        if name in maps:
            rows += _compared(name, name, maps)
    if rows:
        images = images or next(iter(maps.values()))[0]
        content = _one_a_line({"images": images, "rows": rows})
        replace_file(out / CHECKS, lambda at: at.write_text(content, encoding="utf-8"))


class Bounded(Explainer):
    """An explainer whose maps are brought to [0, 1], by minimum and maximum if they live elsewhere."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer
        self.masker = explainer.masker

    def __call__(self, classifier: Classifier, images: Images, targets: Asked | None = None) -> Explanation:
        """Return maps in [0, 1], some pictures at a time."""
        parts = []
        for start in range(0, len(images), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            explanation = self.explainer(classifier, images[some], None if targets is None else targets[some])
            parts.append(explanation.bounded())
        return joined(parts)


def _rows(check: str, sanity: SanityCheck) -> Iterator[JSON]:
    """Yield one row a step and similarity; the values in the order of the pictures."""
    values: dict[tuple[str, str], list[float | None]] = {}
    for row in sanity.rows:
        values.setdefault((row.step, row.similarity), []).append(_plain(row.value))
    for (step, similarity), column in values.items():
        yield {"check": check, "step": step, "similarity": similarity, "values": column}


def _compared(first: str, second: str, maps: Mapping[str, tuple[list[str], Tensor]]) -> Iterator[JSON]:
    """Yield the similarities of two explainers' maps, of one picture and of the next one."""
    one, other = maps[first][1], maps[second][1]
    steps = {} if first == second else {second: other}
    steps[f"{second}, {OTHER_PICTURE}"] = other.roll(-1, 0)
    for step, against in steps.items():
        for name, similarity in similarities_for(min(one.shape[-2:])).items():
            values = [_plain(value) for value in similarity(one, against).tolist()]
            yield {"explainer": first, "check": "maps", "step": step, "similarity": name, "values": values}


def _read_maps(path: Path) -> tuple[list[str], Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return [str(one) for one in file["ids"]], torch.from_numpy(file["maps"])[:, None]


def _plain(value: float) -> float | None:
    return round(float(value), 5) if value == value else None


def _one_a_line(content: Facts) -> str:
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in content["rows"])
    return f'{{"images": {json.dumps(content["images"], ensure_ascii=False)},\n"rows": [\n{rows}\n]}}\n'
