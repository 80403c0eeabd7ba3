"""README and docs: examples run, links lead somewhere, commands and names exist, lines have an end."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

import salmask
from salmask.cli.main import COMMANDS
from salmask.explain import EXPLAINERS
from salmask.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def _run(
    blocks: Sequence[str], names: dict[str, object], *, smaller: Mapping[str, str] = MappingProxyType({})
) -> dict[str, object]:
    """Run blocks of a page; smaller: text that must stand there -> the same with fewer pictures."""
    source = "\n".join(blocks)
    for text, instead in smaller.items():
        assert text in source, text
        source = source.replace(text, instead)
    exec(compile(source, "page", "exec"), names)
    return names


@pytest.mark.filterwarnings("default:the training has collapsed")  # of masks for a network that knows nothing
def test_the_examples_of_the_readme_run(small_net, capsys) -> None:
    train, explain = _blocks("README.md")
    assert len([line for line in train.splitlines() if line.strip()]) <= 5
    assert len([line for line in explain.splitlines() if line.strip()]) <= 3
    small_net.head = torch.nn.Linear(16, 10)
    given = {"network": small_net, "mean": (0.5,) * 3, "std": (0.2,) * 3, "images": torch.rand(2, 3, 64, 64)}
    names = _run([train, explain], given, smaller={"Synthetic(200,": "Synthetic(40,"})
    assert names["explanation"].masks.shape == (2, 1, 64, 64)
    assert capsys.readouterr().out.splitlines()[0].split()[0] == "explainer"


def test_the_first_steps_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = _run(_blocks("docs/start.md"), {})
    assert torch.equal(names["explanation"].masks, names["again"].masks)
    assert list(names["scores"]) == ["masker", "Grad-CAM", "centre"]


def test_the_example_of_attention_pooling_runs() -> None:
    names = _run(_blocks("docs/pooling.md"), {})
    assert names["raw"].masks.shape == (2, 1, 64, 64)
    assert not torch.equal(names["through_average"].masks, names["through_attention"].masks)


def test_the_examples_of_sound_run() -> None:
    names = _run(_blocks("docs/audio.md"), {})
    assert names["logits"].shape == (1, 10)


def test_the_example_of_several_inputs_runs() -> None:
    names = _run(_blocks("docs/inputs.md"), {})
    assert names["shares"].masks.shape == names["each"].masks.shape == (4, 2, 32, 32)


def test_the_study_of_the_page_is_a_study() -> None:
    from salmask.study import Scale

    names = _run(_blocks("docs/studies.md"), {})
    assert [row.name for row in names["study"](Scale()).rows] == ["tv 0.002", "tv 0.02"]


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
def test_commands_and_their_options_exist(page, capsys) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command, rest in re.findall(r"^(?:    )?salmask (\w+)(.*)$", text, re.MULTILINE):
        assert command in COMMANDS
        with pytest.raises(SystemExit):
            from salmask.cli.main import main

            main([command, "--help"])
        known = capsys.readouterr().out
        for option in re.findall(r"(--[a-z-]+)", rest.partition("#")[0]):
            assert option in known, f"salmask {command} {option}"


def test_the_index_names_every_page_and_the_api_every_name() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert all(page.name in index for page in PAGES if page.name != "README.md")
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    missing = [name for name in salmask.__all__ if not re.search(rf"`{name}\b", api)]
    assert not missing


def test_the_readme_names_every_explainer_and_the_plain_metrics() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in EXPLAINERS if f"`{name}`" not in readme]
    for named in re.findall(r"`([a-z0-9_]+(?::[a-z_]+)?)`", readme.partition("## Metrics")[2].partition("##")[0]):
        assert named in METRICS or named.startswith("name"), named


@pytest.mark.slow
@pytest.mark.filterwarnings("default:the training has collapsed")
def test_one_s_own_network_is_explained_in_python_and_by_command(tmp_path, monkeypatch, capsys) -> None:
    from salmask.cli.main import main
    from salmask.data.synthetic import write_folder

    monkeypatch.chdir(tmp_path)
    *python, own, labels = _blocks("docs/own-network.md")
    names = _run([*python, labels], {}, smaller={"torch.rand(24,": "torch.rand(6,", "steps=4": "steps=2"})
    assert names["explanation"].masks.shape == (2, 1, 64, 64)
    assert names["classifier"].layers[-1].startswith("layer4")
    assert names["several"].multilabel and names["of_label"].masks.shape == (2, 1, 64, 64)
    (tmp_path / "mine.py").write_text(own.replace("in_features, 3)", "in_features, 10)"))
    write_folder(tmp_path / "DATA", train=2, val=1, seed=0, size=64)
    spec = ["--classifier", "mine.py:network"]
    assert main(["layers", "mine.py:network"]) == 0
    steps = ["--epochs", "0.5", "--batch-size", "4", "--target", "predicted"]
    assert main(["train", "--data", "DATA", *spec, *steps, "--out", "runs/mine"]) == 0
    picture = str(next((tmp_path / "DATA" / "val").rglob("*.png")))
    assert main(["explain", picture, "--explainer", "runs/mine", "--out", "explained"]) == 0
    assert "layer4" in capsys.readouterr().out and list((tmp_path / "explained").glob("*.png"))
