"""README and docs: links lead somewhere, indices name every page, the API every name, tables say what was measured.

Code blocks: tests/test_blocks.py.
"""

import re
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import salmask
from salmask.explain import EXPLAINERS
from salmask.explain.knobs import Constructor
from salmask.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
KINDS = {".md", ".ipynb"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            anchors = {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines}
            assert heading in anchors, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_is_longer_than_120_characters_but_rows_of_tables(page) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_and_tables_follow_an_empty_line(page) -> None:
    """Markdown of GitHub needs none, that of the site does; and a line of prose must not begin like an item."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if re.match(r"[-*] |\d+\. ", line):
            assert not above or re.match(r"[-*] |\d+\. |  ", above), f"{above}\n{line}"
        if line.startswith("|"):
            assert not above or above.startswith("|"), f"{above}\n{line}"


def test_the_index_and_the_navigation_name_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*") if page.suffix in KINDS}
    assert all(f"({page})" in index for page in pages - {"README.md"})
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = [page for part in site["nav"] for pages in part.values() for page in _pages(pages)]
    assert sorted(named) == sorted(pages)


def _pages(pages: str | list[dict[str, str]]) -> list[str]:
    return [pages] if isinstance(pages, str) else [page for part in pages for page in part.values()]


def test_the_api_names_every_public_name_and_shows_its_docstring() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not [name for name in salmask.__all__ if not re.search(rf"`{name}\b", text)]
    shown = [*_shown("api.md"), *_shown("api-explainers.md"), *_shown("api-metrics.md")]
    elsewhere = {"__version__", "explain", "EXPLAINERS", "METRICS"}  # tables, and the verb with its package's name
    missing = [name for name in salmask.__all__ if name not in elsewhere and getattr(salmask, name) not in shown]
    assert not missing


def _shown(page: str) -> list[object]:
    """Return what a page shows the docstrings of: objects, and those that a module names in `__all__`."""
    found: list[object] = []
    for path in re.findall(r"^::: ([\w.]+)", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE):
        try:
            module = import_module(path)
        except ModuleNotFoundError:
            home, _, name = path.rpartition(".")
            found.append(getattr(import_module(home), name))
        else:
            found += [getattr(module, name) for name in module.__all__]
    return found


def test_every_explainer_and_metric_is_on_its_page_of_the_api() -> None:
    homes = {_home(make) for make in EXPLAINERS.values()}
    assert homes <= set(re.findall(r"^::: ([\w.]+)", (ROOT / "docs/api-explainers.md").read_text(), re.MULTILINE))
    homes = {_home(metric.function) for metric in METRICS.values()}
    shown = set(re.findall(r"^::: ([\w.]+)", (ROOT / "docs/api-metrics.md").read_text(), re.MULTILINE))
    assert homes <= shown, homes - shown


def _home(made: object) -> str:
    while isinstance(made, partial | Constructor):
        made = made.func if isinstance(made, partial) else made.build
    return made.__module__


def test_the_table_of_choosing_is_what_was_measured() -> None:
    """Numbers of docs/choosing.md are those of results/explainers/table.md, which the rows make."""
    measured = _table((ROOT / "results/explainers/table.md").read_text(encoding="utf-8"))
    columns = {
        "LE": "le", "F1": "f1", "kept right": "acc_kept", "removed right": "acc_removed", "insertion": "insertion",
        "deletion": "deletion", "passes": "passes", "seconds": "seconds",
    }  # fmt: skip
    copied = _table((ROOT / "docs/choosing.md").read_text(encoding="utf-8"))
    assert len(copied) >= 15
    for name, row in copied.items():
        for column, value in row.items():
            assert measured[name.strip("`")][columns[column]].startswith(value), (name, column)


def _table(text: str) -> dict[str, dict[str, str]]:
    """Return the table whose first column is the explainer: row -> column -> cell, without marks and arrows."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    lines = lines[next(k for k, line in enumerate(lines) if line.startswith("| explainer |")) :]
    cells = [[re.sub(r"[*°]| [↑↓].*", "", cell.strip()) for cell in line.strip("| ").split(" | ")] for line in lines]
    return {name: dict(zip(cells[0][1:], row, strict=True)) for name, *row in cells[2:]}


def test_the_readme_names_every_explainer_and_the_plain_metrics() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in EXPLAINERS if f"`{name}`" not in readme]
    assert not [name for name in METRICS if ":" not in name and f"`{name}`" not in readme]
    for named in re.findall(r"`([a-z0-9_]+(?::[a-z_]+)?)`", readme.partition("## Metrics")[2].partition("##")[0]):
        assert named in METRICS or named.startswith("name"), named
