"""What a study's numbers say of its claims, and of the rows that claims cannot be held against.

A verdict is given where both rows have several trainings or none at all, and no collapsed maps. Its p value holds
pictures and trainings (`rows.trainings`) and is corrected for the number of claims of the study (Holm, 1979). Between
two maskers that were trained once each, the difference is that of these maskers; nothing is said of their recipes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from salmask.files import Facts
from salmask.report.sentences import p_text
from salmask.report.tables import interval_text, number
from salmask.rows.read import Rows
from salmask.rows.statistics import holm
from salmask.rows.trainings import COLLAPSED, EMPTY, FULL, Comparison, collapsed, compare_rows

__all__ = ["StudyRow", "findings", "row_notes", "rows_of"]

_SURE = 0.05


@dataclass(frozen=True)
class StudyRow:
    """A row of a study: the explainers that are its trainings, one where nothing is trained.

    collapsed: training -> share of its masks that are empty or full, of those where it is too large.
    """

    name: str
    members: Sequence[str]
    trained: bool
    collapsed: Mapping[str, float]

    @property
    def trainings(self) -> int:
        """How many trainings it has; 0 where nothing is trained."""
        return len(self.members) if self.trained else 0

    @property
    def mark(self) -> str:
        """What is said beside its name, if anything."""
        count = len(self.collapsed)
        return f"collapsed: {count} of {len(self.members)}" if count else ""


def rows_of(study: Facts, rows: Rows) -> dict[str, StudyRow]:
    """Return the rows of study.json with what their masks say of them."""
    made = {}
    for row in study["rows"]:
        trained = row.get("variant") is not None
        masks = {one: rows.values[one]["mask_mean"] for one in row["members"] if "mask_mean" in rows.values[one]}
        made[row["name"]] = StudyRow(row["name"], row["members"], trained, collapsed(masks) if trained else {})
    return made


def findings(
    claims: Sequence[Mapping[str, str]], members: Mapping[str, StudyRow], rows: Rows, directions: Mapping[str, str]
) -> list[str]:
    """Return one sentence or two a claim: the verdict, both means, the difference with its interval and p value."""
    compared = []
    for claim in claims:
        first, second = (members[claim[side]] for side in ("row", "against"))
        values = [np.stack([rows.values[one][claim["metric"]] for one in row.members], 1) for row in (first, second)]
        compared.append(compare_rows((first.name, values[0]), (second.name, values[1])))
    adjusted = holm([one.p for one in compared])
    return [
        _finding(claim, members[claim["row"]], members[claim["against"]], one, p, directions, len(claims))
        for claim, one, p in zip(claims, compared, adjusted, strict=True)
    ]


def _finding(
    claim: Mapping[str, str],
    first: StudyRow,
    second: StudyRow,
    comparison: Comparison,
    p: float,
    directions: Mapping[str, str],
    claims: int,
) -> str:
    metric, change = claim["metric"], comparison.interval
    corrected = f" after correction for {claims} claims" if claims > 1 else ""
    numbers = (
        f"{metric} {number(comparison.means[0])}, {second.name} {number(comparison.means[1])}; difference "
        f"{number(change.mean)} {interval_text(change)} over {change.n} images{_counted(first, second)}, "
        f"{p_text(p)}{corrected}."
    )
    once = [row.name for row in (first, second) if row.trainings == 1]
    if bad := [row for row in (first, second) if row.collapsed]:
        return f"{claim['text']}: no verdict, {_collapse(bad)}. {first.name} has {numbers}"
    if once:
        difference = "are told apart" if p < _SURE else "are not told apart"
        return (
            f"{claim['text']}: no verdict from one training of {' and of '.join(once)}. These maskers {difference}: "
            f"{first.name} has {numbers}"
        )
    better = (change.mean > 0) == (directions.get(metric) == "up")
    verdict = "not told apart" if not p < _SURE else "confirmed" if better else "the reverse is seen"
    return f"{claim['text']}: {verdict}. {first.name} has {numbers}"


def _counted(first: StudyRow, second: StudyRow) -> str:
    counts = [str(row.trainings) for row in (first, second) if row.trainings > 1]
    return f" and {' and '.join(counts)} trainings" if counts else ""


def _collapse(rows: Sequence[StudyRow]) -> str:
    return " and ".join(
        f"the maps of {row.name} are collapsed ({len(row.collapsed)} of {len(row.members)} trainings)" for row in rows
    )


def row_notes(members: Mapping[str, StudyRow], rows: Rows) -> list[str]:
    """Return what must be known of rows beside their numbers: collapsed maps, classifiers that training changed."""
    notes = []
    if bad := [row for row in members.values() if row.collapsed]:
        listed = "; ".join(
            f"{row.name} ({', '.join(f'{share:.0%}' for share in row.collapsed.values())})" for row in bad
        )
        notes.append(
            f"Collapsed: masks are empty (mean below {EMPTY:g}) or full (above {FULL:g}) on more than {COLLAPSED:.0%} "
            f"of the images, which decides no claim: {listed}."
        )
    return [*notes, *(text for row in members.values() if row.trained and (text := _own_accuracy(row, rows)))]


def _own_accuracy(row: StudyRow, rows: Rows) -> str:
    """Say how the classifier that the masks were read with does beside the original, where they differ.

    The overall metric is 1 unless the box is right and the classifier, too: on the images whose box is right (LE 0) it
    tells whether the row's own classifier was.
    """
    own, original = [], []
    for one in row.members:
        values = rows.values[one]
        overall, box = next(
            ((values[f"om{end}"], values[f"le{end}"]) for end in ("", ":as_released") if f"om{end}" in values),
            (np.zeros(0), np.zeros(0)),
        )
        if not len(overall) or "acc_whole" not in values or len(box) != len(overall):
            return ""
        hits = (box == 0) & ~np.isnan(overall)
        own.append(float((1 - overall[hits]).mean()) if hits.any() else np.nan)
        original.append(float(values["acc_whole"][hits].mean()) if hits.any() else np.nan)
    if np.allclose(own, original, equal_nan=True):
        return ""
    return (
        f"The classifier that the masks of {row.name} are read with is right on {', '.join(map(number, own))} of the "
        f"images whose box is right, the original one on {', '.join(map(number, original))} of the same."
    )
