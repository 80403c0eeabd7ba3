"""Scores of saliency maps: METRICS, one named protocol each."""

from salmask.draws import generator_for
from salmask.metrics.attention import ATTENTION
from salmask.metrics.case import Case, Metric, check_maps
from salmask.metrics.faithfulness import FAITHFULNESS
from salmask.metrics.inputs import INPUTS
from salmask.metrics.localization import LOCALIZATION
from salmask.metrics.maps import MAPS
from salmask.metrics.soundness import SOUNDNESS
from salmask.metrics.wsol import WSOL

__all__ = ["METRICS", "Case", "Metric", "check_maps", "generator_for"]

METRICS: dict[str, Metric] = LOCALIZATION | WSOL | MAPS | ATTENTION | FAITHFULNESS | SOUNDNESS | INPUTS
"""Every metric by the name of its protocol: plain names are our defaults, `name:source` are published ones."""
