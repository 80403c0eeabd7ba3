"""Beside a classifier that is trained alongside and keeps its normalisation statistics."""

from dataclasses import replace

from salmask.study import Claim, Row, Study
from salmask.study.studies import ca, fix


def study(scale):
    """Return three trainings of FIX, and CA at the published weights."""
    rows = [Row(name="FIX", variant=fix(), seeds=scale.seeds)]
    rows += [Row(name="CA, statistics held", variant=replace(ca(statistics="held"), lr=1.0), seeds=scale.other_seeds)]
    claims = [Claim(text="CA beats FIX", row="CA, statistics held", against="FIX")]
    return Study(name="alongside", title="Trained alongside", rows=rows, claims=claims)
