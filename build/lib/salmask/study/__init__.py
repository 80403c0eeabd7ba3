"""Experiments as values: which ingredient of masking-based saliency matters, on anyone's data."""

from salmask.study.engine import Local, Slurm
from salmask.study.run import Engine, StudyResult, run_study
from salmask.study.settings import Axis, Claim, Row, Scale, Study
from salmask.study.studies import STUDIES, chosen_studies
from salmask.study.work import Source
from salmask.training.variant import Variant

__all__ = [
    "STUDIES",
    "Axis",
    "Claim",
    "Engine",
    "Local",
    "Row",
    "Scale",
    "Slurm",
    "Source",
    "Study",
    "StudyResult",
    "Variant",
    "chosen_studies",
    "run_study",
]
