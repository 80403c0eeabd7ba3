"""The project's own files: the licence, the citation, the extras."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_licence_the_citation_and_the_changelog_agree_with_the_project(project) -> None:
    assert project["license"] == "BSD-3-Clause"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("BSD 3-Clause License")
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {project['version']}" in cited
    assert f"license: {project['license']}" in cited
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_extra_that_is_installed_or_advised_exists(project) -> None:
    """`pip install salmask[EXTRA]` of a message or the Makefile must find the extra."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    texts += [(ROOT / "Makefile").read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")]
    advised = {
        extra
        for text in texts
        for extras in re.findall(r"(?:salmask|'\.)\[([a-z,]+)\]", text)
        for extra in extras.split(",")
    }
    assert advised <= set(project["optional-dependencies"])
    assert advised >= {"captum", "cluster", "dev"}
