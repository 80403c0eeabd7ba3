"""Explainers and saved maps, scored: one line per image, explainer and metric."""
