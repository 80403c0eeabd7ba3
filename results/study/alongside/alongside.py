"""A classifier trained alongside that keeps its normalisation statistics, against a fixed one."""
