"""Rows on disk -> tables with intervals, figures, sentences, one self-contained page. No torch, no network."""
