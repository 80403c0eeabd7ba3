"""Experiments as values: which ingredient of masking-based saliency matters, on anyone's data."""

from salmask.study.engine import Local, Slurm
from salmask.study.run import run_study
from salmask.study.settings import Axis, Claim, Row, Scale, Study
from salmask.study.studies import STUDIES
from salmask.study.work import Place
from salmask.training.variant import Variant

__all__ = ["STUDIES", "Axis", "Claim", "Local", "Place", "Row", "Scale", "Slurm", "Study", "Variant", "run_study"]
