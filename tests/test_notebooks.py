"""The notebooks of docs/notebooks run from first to last cell, come out as their text says, and are kept small."""

import re
from pathlib import Path

import nbformat
import pytest
from matplotlib import pyplot as plt

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"

CLAIMS = {
    "own_classifier": """
held = {cue: ((masks * where(cue)).sum() / where(cue).sum()).item() for cue in ("mark", "shape")}
assert held["mark"] > 1.3 * held["shape"] and held["mark"] > 3 * masks.mean().item(), held
assert (classifier.logits(x).argmax(1) == y).float().mean() > 0.95
assert follows_mark > 0.8 > 0.2 > follows_object
assert outcome.kept_right.float().mean() > 0.8
""",
    "compare_explainers": """
assert names == ["Egyptian cat", "espresso", "bell cote", "strawberry"]
drop = {name: scores[name]["average_drop"]["mean"] for name in scores}
assert drop["full"] == 0 and drop["integrated gradients"] < 0.01 < drop["masker"] < drop["centre"]
faithfulness = {name: scores[name]["faithfulness"]["mean"] for name in scores}
assert drop["RISE"] < drop["masker"] and faithfulness["RISE"] < faithfulness["masker"]
grey = explanations["integrated gradients"].bounded().masks
assert 0.4 < grey.mean() < 0.55 and grey.std() < 0.1
""",
}
"""What the text of a notebook says, as code that follows its last cell."""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_every_notebook_has_its_claims() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(CLAIMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_the_notebook_runs_and_its_text_is_true(name, tmp_path, monkeypatch) -> None:
    """In this process: a kernel would import everything again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", drawn)
    code = [cell.source for cell in read(name).cells if cell.cell_type == "code"]
    names = {"__name__": "__main__"}
    for source in (*code, CLAIMS[name]):
        exec(compile(re.sub("^%.*", "", source, flags=re.MULTILINE), name, "exec"), names)


def drawn() -> None:
    """Draw what a notebook shows."""
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
        plt.close(number)


@pytest.mark.parametrize("name", CLAIMS)
def test_what_is_kept_of_a_run_is_whole_small_and_of_no_machine(name) -> None:
    notebook, text = read(name), (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert len(text) < 300_000
    places = (str(Path.home()), "/home/", "/usr/", "/tmp/", "site-packages")
    assert not [place for place in places if place in text]
