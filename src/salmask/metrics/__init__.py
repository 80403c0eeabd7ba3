"""Scores of saliency maps: METRICS, one named protocol each."""

from importlib import import_module

from salmask.metrics.case import Case, Metric, check_maps, generator_for
from salmask.metrics.localization import LOCALIZATION
from salmask.metrics.maps import MAPS, degenerate

__all__ = ["METRICS", "Case", "Metric", "check_maps", "degenerate", "generator_for"]

METRICS: dict[str, Metric] = {**LOCALIZATION, **MAPS}
"""Every metric by the name of its protocol: plain names are our defaults, `name:source` are published ones."""

for _module, _table in (
    ("wsol", "WSOL"),
    ("attention", "ATTENTION"),
    ("faithfulness", "FAITHFULNESS"),
    ("soundness", "SOUNDNESS"),
    ("sanity", "SANITY"),
):
    try:
        METRICS.update(getattr(import_module(f"salmask.metrics.{_module}"), _table))
    except (ModuleNotFoundError, AttributeError):  # written beside this one, and merged as it arrives
        continue
