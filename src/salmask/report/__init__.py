"""Rows on disk -> tables with intervals, figures, sentences, one self-contained page. No torch, no network."""

from salmask.report.charts import agreement_chart, cost_chart, curves_chart, line_chart, png, scatter_chart, svg
from salmask.report.page import PHOTOGRAPHS, write_markdown_table, write_report
from salmask.report.sentences import describe
from salmask.report.tables import Column, Summary, interval_text, markdown, number, summarize
from salmask.report.training import add_training

__all__ = [
    "PHOTOGRAPHS",
    "Column",
    "Summary",
    "add_training",
    "agreement_chart",
    "cost_chart",
    "curves_chart",
    "describe",
    "interval_text",
    "line_chart",
    "markdown",
    "number",
    "png",
    "scatter_chart",
    "summarize",
    "svg",
    "write_markdown_table",
    "write_report",
]
