"""Rows of scores: reading, writing, statistics."""
