"""What is kept in results/: a study is a README, a table, a picture and one archive, from which all is made again."""

import re
import tarfile
from pathlib import Path

import pytest

from salmask.report.page import write_report

RESULTS = Path(__file__).resolve().parents[2] / "results"
FOLDERS = sorted({path.parent for path in RESULTS.rglob("*") if path.is_file() and "__pycache__" not in path.parts})
STUDIES = [folder for folder in FOLDERS if (folder / "rows.tar.xz").exists()]
MEASUREMENTS = {"benchmarks", "networks", "serve"}  # of the library itself: no explainers, and so no rows
NO_PICTURE = "No picture:"


def name(folder: Path) -> str:
    return folder.relative_to(RESULTS).as_posix()


def links(readme: str) -> list[str]:
    return re.findall(r"\]\(([^)#:]+)\)", readme)


def test_names_can_be_checked_out_anywhere() -> None:
    names = [path.name for path in RESULTS.rglob("*") if "__pycache__" not in path.parts]
    assert len(names) > 50
    assert not [one for one in names if not re.fullmatch(r"[A-Za-z0-9._=-]+", one)]


@pytest.mark.parametrize("folder", STUDIES, ids=name)
def test_a_study_is_a_readme_a_table_a_picture_and_one_archive(folder) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    tables = [path for path in folder.glob("*.md") if path.name in ("table.md", "study.md")]
    assert tables and all("|---" in path.read_text(encoding="utf-8") for path in tables)
    assert [*folder.glob("*.jpg"), *folder.glob("*.png")] or NO_PICTURE in readme
    assert {path.suffix for path in folder.iterdir() if path.is_file()} <= {".md", ".jpg", ".png", ".py", ".xz"}
    command = re.compile(r"^    .*(salmask|python) ", re.MULTILINE)
    above = folder.parent / "README.md"
    assert command.search(readme) or ("../README.md" in readme and command.search(above.read_text(encoding="utf-8")))
    with tarfile.open(folder / "rows.tar.xz") as archive:
        assert {"rows.jsonl", "meta.json"} <= set(archive.getnames())


@pytest.mark.parametrize("folder", [one for one in FOLDERS if one not in STUDIES and one != RESULTS], ids=name)
def test_a_folder_without_rows_is_of_measurements_or_leads_to_its_rows(folder) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    rows = [target for target in links(readme) if (folder / target / "rows.tar.xz").exists()]
    assert name(folder) in MEASUREMENTS or rows


def test_every_link_between_results_leads_somewhere() -> None:
    for readme in RESULTS.rglob("*.md"):
        for target in links(readme.read_text(encoding="utf-8")):
            assert (readme.parent / target).exists(), f"{readme}: {target}"


def test_a_page_is_made_from_an_archive_alone(tmp_path) -> None:
    folder = min(STUDIES, key=lambda one: (one / "rows.tar.xz").stat().st_size)
    write_report(folder, out=tmp_path)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == (folder / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "index.html").stat().st_size > 1000
