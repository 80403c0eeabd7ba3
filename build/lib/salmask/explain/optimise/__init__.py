"""Per-image explainers that optimise a mask."""
