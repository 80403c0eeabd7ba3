"""Saliency maps by masking: which pixels a classifier's decision rests on, in one forward pass."""

from importlib.metadata import version

__version__ = version("salmask")
