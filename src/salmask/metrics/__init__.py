"""Scores of saliency maps: METRICS, one named protocol each."""

from importlib import import_module
from importlib.util import find_spec

from salmask.metrics.attention import ATTENTION
from salmask.metrics.case import Case, Metric, check_maps, generator_for
from salmask.metrics.localization import LOCALIZATION
from salmask.metrics.maps import MAPS, degenerate
from salmask.metrics.wsol import WSOL

__all__ = ["METRICS", "Case", "Metric", "check_maps", "degenerate", "generator_for"]

METRICS: dict[str, Metric] = {**LOCALIZATION, **WSOL, **MAPS, **ATTENTION}
"""Every metric by the name of its protocol: plain names are our defaults, `name:source` are published ones."""

for _name in ("faithfulness", "soundness", "sanity"):
    if find_spec(f"salmask.metrics.{_name}") is not None:
        METRICS.update(getattr(import_module(f"salmask.metrics.{_name}"), _name.upper(), {}))
