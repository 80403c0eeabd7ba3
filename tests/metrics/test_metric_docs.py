"""What is printed and written of a metric: every name has its row in the docs, and a protocol of its own."""

import re
from pathlib import Path

import pytest

from salmask.metrics import METRICS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_documented(name):
    """Base name and protocol stand in code marks, and the row of the plain name says the direction of the table."""
    text = (DOCS / "metrics.md").read_text()
    base, _, protocol = name.partition(":")
    rows = [line for line in text.splitlines() if line.startswith("|") and f"`{base}`" in line.split("|")[1]]
    assert rows, f"{base} has no row"
    marked = set(re.findall(r"`([^`]+)`", text))
    assert not protocol or name in marked or {f":{protocol}", f"...:{protocol}"} & marked, name
    told = {"up": "up", "down": "down"}.get(METRICS[base].direction)
    assert told is None or any(told in (cell.strip() for cell in row.split("|")) for row in rows), rows


@pytest.mark.parametrize("name", METRICS)
def test_no_two_metrics_of_a_source_have_the_same_protocol(name):
    """What is printed with a number must tell it from its neighbours: same base, or the same needs and source."""
    base, mine = name.partition(":")[0], METRICS[name]
    others = [other for key, other in METRICS.items() if key != name and key.partition(":")[0] == base]
    same = [other.name for other in others if dict(other.protocol) == dict(mine.protocol)]
    assert not same or {other.source for other in map(METRICS.get, same)} != {mine.source}, same
