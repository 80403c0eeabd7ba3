"""Verdicts of a study: none about a recipe from one training, none from collapsed maps, corrected for their number."""

import numpy as np
import pytest

from salmask.report.claims import findings, row_notes, rows_of
from salmask.rows.read import Rows

N = 200
IDS = [str(i) for i in range(N)]


def study(**rows: tuple[list[float], bool]) -> tuple[dict, Rows]:
    """Return a study with rows NAME=(LE of each training, trained)."""
    generator = np.random.default_rng(0)
    pictures = generator.normal(0, 0.1, N)
    described, values = [], {}
    for name, (means, trained) in rows.items():
        members = [f"{name} #{i}" for i in range(len(means))]
        described.append({"name": name, "members": members, "variant": {} if trained else None})
        for one, mean in zip(members, means, strict=True):
            noise = generator.normal(0, 0.01, N)
            values[one] = {"le": mean + pictures - pictures.mean() + noise - noise.mean(), "mask_mean": np.full(N, 0.5)}
    return {"rows": described}, Rows(IDS, values, {name: np.ones(N, bool) for name in values}, ["le", "mask_mean"])


def verdicts(described: dict, rows: Rows, *pairs: tuple[str, str]) -> list[str]:
    claims = [{"text": f"{a} beats {b}", "row": a, "against": b, "metric": "le"} for a, b in pairs]
    return findings(claims, rows_of(described, rows), rows, {"le": "down"})


def test_several_trainings_give_a_verdict_of_the_recipe():
    made = study(fix=([0.40, 0.41, 0.405], True), ca=([0.5, 0.51, 0.49], True), box=([0.45], False))
    won, lost, beyond = verdicts(*made, ("fix", "ca"), ("ca", "fix"), ("fix", "box"))
    assert won.startswith("fix beats ca: confirmed. fix has le 0.405, ca 0.500; difference −0.095 [")
    assert "over 200 images and 3 and 3 trainings" in won and "after correction for 3 claims" in won
    assert "ca beats fix: the reverse is seen" in lost
    assert "fix beats box: confirmed" in beyond and "and 3 trainings" in beyond


def test_the_spread_between_trainings_decides_against_a_verdict():
    made = study(fix=([0.30, 0.45, 0.40], True), ca=([0.42, 0.5, 0.45], True))
    assert "fix beats ca: not told apart" in verdicts(*made, ("fix", "ca"))[0]


def test_one_training_gives_no_verdict_of_a_recipe():
    made = study(fix=([0.40], True), ca=([0.60], True), box=([0.7], False))
    first, second = verdicts(*made, ("fix", "ca"), ("fix", "box"))
    assert "no verdict from one training of fix and of ca. These maskers are told apart" in first
    assert "no verdict from one training of fix. These maskers are told apart" in second
    assert not any(word in text for text in (first, second) for word in ("confirmed", "reverse"))


def test_collapsed_maps_give_no_verdict_and_are_marked():
    described, rows = study(fix=([0.40, 0.41], True), ca=([0.60, 0.61], True))
    rows.values["ca #1"]["mask_mean"][:150] = 0.97
    (text,) = verdicts(described, rows, ("fix", "ca"))
    assert "fix beats ca: no verdict, the maps of ca are collapsed (1 of 2 trainings)" in text
    members = rows_of(described, rows)
    assert members["ca"].mark == "collapsed: 1 of 2" and not members["fix"].mark
    (note,) = row_notes(members, rows)
    assert "on more than 50% of the images" in note and "ca (75%)" in note


def test_a_box_that_is_full_by_nature_is_not_collapsed():
    described, rows = study(full=([0.5], False))
    rows.values["full #0"]["mask_mean"][:] = 1.0
    assert not rows_of(described, rows)["full"].collapsed


@pytest.mark.parametrize("claims", [1, 40])
def test_verdicts_are_corrected_for_the_number_of_claims(claims):
    """A difference that is seen alone is not, as one of forty."""
    described, rows = study(fix=([0.5, 0.5], True), box=([0.5], False))
    generator = np.random.default_rng(3)
    noise = generator.normal(0, 0.1, N)
    rows.values["box #0"]["le"] = (
        np.mean([rows.values[f"fix #{i}"]["le"] for i in (0, 1)], 0) + noise - noise.mean() + 0.02
    )
    text = verdicts(described, rows, *[("fix", "box")] * claims)[0]
    assert ("confirmed" in text) == (claims == 1), text


def test_a_classifier_that_training_changed_is_shown_beside_the_original():
    described, rows = study(fix=([0.4], True), ca=([0.4], True))
    for name, right in (("fix #0", 0.8), ("ca #0", 0.5)):
        own = np.arange(N) < right * N
        box = np.arange(N) % 2  # the even ones hit
        rows.values[name] |= {
            "le": box * 1.0,
            "om": 1.0 - ((box == 0) & own),
            "acc_whole": (np.arange(N) < 0.8 * N) * 1.0,
        }
    (note,) = row_notes(rows_of(described, rows), rows)
    assert "the masks of ca are read with is right on 0.500" in note and "the original one on 0.800" in note
