"""The site's own code, docs/hooks.py: docstrings become Markdown, links lead where they led on the disk."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hooks() -> dict:
    pytest.importorskip("mkdocs")
    return runpy.run_path(str(ROOT / "docs" / "hooks.py"))


def test_an_argument_that_is_explained_becomes_an_item_and_the_rest_stays(hooks) -> None:
    docstring = """Do it.

images: (B, C, H, W), a
    long one. seed: of what draws; mean, std:
two of them. Raises ValueError if not.

    seed: code stays code
Other: is no argument.
"""
    assert hooks["itemised"](docstring, ["images", "seed", "mean", "std"]).splitlines() == [
        "Do it.",
        "",
        "",
        "- `images`: (B, C, H, W), a long one.",
        "- `seed`: of what draws",
        "- `mean, std`: two of them.",
        "",
        "Raises ValueError if not.",
        "",
        "    seed: code stays code",
        "Other: is no argument.",
    ]
    assert hooks["itemised"](docstring, []) == docstring


@pytest.mark.parametrize(
    ("source", "target", "uri", "there"),
    [
        ("docs/choosing.md", "../results/imagenet/README.md", "choosing.md", "results/imagenet/README.md"),
        ("docs/choosing.md", "../results/lmac", "choosing.md", "results/lmac/README.md"),
        ("docs/choosing.md", "metrics.md", "choosing.md", "metrics.md"),
        ("results/explainers/README.md", "../../docs/metrics.md", "results/explainers/README.md", "../../metrics.md"),
        ("results/study/README.md", "main", "results/study/README.md", "main/README.md"),
    ],
)
def test_links_lead_on_the_site_where_they_led_on_the_disk(hooks, source, target, uri, there) -> None:
    assert hooks["_on_the_site"](target, ROOT / source, uri) == there


@pytest.mark.parametrize("target", ["../README.md", "../src/salmask", "missing.md", "../benchmarks"])
def test_a_link_to_what_is_not_on_the_site_is_an_error(hooks, target) -> None:
    with pytest.raises(Exception, match="leads to no page of the site"):
        hooks["_on_the_site"](target, ROOT / "docs" / "start.md", "start.md")


def test_pages_that_fetch_are_refused(hooks) -> None:
    class Page:
        file = type("File", (), {"src_uri": "a.md"})

    kept = '<a href="https://example.org">there</a><script src="assets/a.js"></script>'
    assert hooks["on_post_page"](kept, Page(), None) == kept
    for fetching in (
        '<script src="https://example.org/a.js">',
        '<link rel="stylesheet" href="https://example.org/a.css">',
    ):
        with pytest.raises(Exception, match=r"a\.md fetches https://example\.org"):
            hooks["on_post_page"](fetching, Page(), None)


def test_docstrings_on_the_site_have_no_columns_that_markdown_would_join() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("api*.md")))
    homes = re.findall(r"^::: ([\w.]+)", text, re.MULTILINE)
    files = {
        ROOT / "src" / (home.replace(".", "/") + ".py") for path in homes for home in (path, path.rpartition(".")[0])
    }
    for file in sorted(file for file in files if file.is_file()):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                columns = re.findall(r"^\w[\w ,]*  +\S.*", ast.get_docstring(node) or "", re.MULTILINE)
                assert not columns, f"{file.name}: {node.name}: write `name: text.`, got {columns[0]!r}"
