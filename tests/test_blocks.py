"""Every code block of README and docs: Python runs, commands are parsed by the commands themselves, the rest is text.

A page needs no line here to be covered: its Python blocks run one after the other in an empty folder, with the names of
the blocks before. `PAGES` gives what a page takes for granted, cheaper settings, and what must come out.
A block that begins with `# NAME.py` is a file of that name for what follows.
"""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import pytest
import torch
import tyro
from lightning.fabric import Fabric
from markdown_it import MarkdownIt
from markdown_it.token import Token

from salmask.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
RESULTS = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "results").rglob("README.md")}
Names = dict[str, object]


def blocks_of(text: str) -> list[Token]:
    return [one for one in MarkdownIt("commonmark").parse(text) if one.type in ("fence", "code_block")]


def of_language(page: str, language: str) -> list[str]:
    text = DOCUMENTS[page].read_text(encoding="utf-8")
    return [one.content for one in blocks_of(text) if one.info == language]


WITH_PYTHON = sorted(page for page in DOCUMENTS if of_language(page, "python"))


# --- what pages take for granted ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """given: names and files that a page takes for granted. smaller: text that must stand there -> cheaper text."""

    given: Callable[[], Names] = dict
    smaller: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Names, str], None] = lambda names, printed: None


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, 2, 1), torch.nn.ReLU()
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 10))


def _readme() -> Names:
    return {"network": _network(), "mean": (0.5,) * 3, "std": (0.2,) * 3, "images": torch.rand(2, 3, 64, 64)}


def _check_readme(names: Names, printed: str) -> None:
    first, second = of_language("README.md", "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 5
    assert len([line for line in second.splitlines() if line.strip()]) <= 3
    assert names["explanation"].masks.shape == (2, 1, 64, 64)
    assert printed.splitlines()[0].split()[0] == "explainer"


def _check_start(names: Names, printed: str) -> None:
    assert torch.equal(names["explanation"].masks, names["again"].masks)
    assert list(names["scores"]) == ["masker", "Grad-CAM", "centre"]


def _check_own(names: Names, printed: str) -> None:
    assert names["explanation"].masks.shape == (2, 1, 64, 64)
    assert names["classifier"].layers[-1].startswith("layer4")
    assert names["several"].multilabel and names["of_label"].masks.shape == (2, 1, 64, 64)


def _check_pooling(names: Names, printed: str) -> None:
    assert names["raw"].masks.shape == (2, 1, 64, 64)
    assert not torch.equal(names["through_average"].masks, names["through_attention"].masks)


def _check_formalism(names: Names, printed: str) -> None:
    said = re.search(r"`(palace: [^`]*)`", DOCUMENTS["docs/formalism.md"].read_text(encoding="utf-8"))
    assert said is not None and said[1] in printed.splitlines(), printed
    assert Path("formalism.png").stat().st_size > 50_000


def _check_migrating(names: Names, printed: str) -> None:
    assert names["explanation"].masks.shape == names["attributions"].shape == (2, 1, 64, 64)
    assert names["grayscale"].shape == (2, 64, 64)
    assert names["maps"].shape == names["masks"].shape == names["saliency"].shape == (2, 1, 64, 64)
    raw = names["explanation"].normalized("minmax").masks[:, 0].numpy()
    assert abs(names["grayscale"] - raw).max() < 1e-4


def _check_explainers(names: Names, printed: str) -> None:
    assert printed.count("tensor(") == 6
    assert names["found"].keys() == {"true", "predicted", "wrong"}
    assert names["found"]["true"].agrees.shape == (4, 4) and names["bias"].shape == (4,)


def _classified() -> Names:
    import salmask

    classifier = salmask.Classifier(_network(), mean=[0.5] * 3, std=[0.2] * 3, layers=["1", "3"], image_size=32)
    return {"classifier": classifier, "images": torch.rand(2, 3, 32, 32), "targets": torch.tensor([0, 1])}


def _exported() -> Names:
    from PIL import Image

    import salmask
    from salmask.explain.exported import export_pass

    classifier = salmask.Classifier(_network(), mean=[0.5] * 3, std=[0.2] * 3, layers=["1", "3"], image_size=224)
    masker = salmask.Masker.for_classifier(classifier, layers=(0, 1))
    export_pass(salmask.Learned(masker), classifier, Path("imagenet.onnx"), image_size=224)
    Image.new("RGB", (400, 300), "red").save("photo.jpg")
    return {"classifier": classifier}


def _check_exported(names: Names, printed: str) -> None:
    made = names["masks.py"]
    assert made["logits"].shape == (1, 10) and made["masks"].shape == (1, 1, 224, 224)
    assert Path("photo.mask.npy").is_file() and Path("photo.mask.png").is_file()
    assert re.fullmatch(r"photo: class \d, \d+\.\d% kept", printed.strip())


def _check_shared(names: Names, printed: str) -> None:
    assert names["again"].fingerprint() == names["masker"].fingerprint()


PAGES = {
    "README.md": Page(_readme, {"Synthetic(200,": "Synthetic(40,"}, _check_readme),
    "docs/start.md": Page(check=_check_start),
    "docs/own-network.md": Page(smaller={"torch.rand(24,": "torch.rand(6,", "steps=4": "steps=2"}, check=_check_own),
    "docs/formalism.md": Page(check=_check_formalism),
    "docs/migrating.md": Page(check=_check_migrating),
    "docs/explainers.md": Page(check=_check_explainers),
    "docs/optimise.md": Page(
        _classified, {"iterations=50": "iterations=2", "0.2)).solve": "0.2), iterations=2).solve"}
    ),
    "docs/pooling.md": Page(check=_check_pooling),
    "docs/export.md": Page(_exported, {"sys.argv[1:]": '["photo.jpg"]'}, _check_exported),
    "docs/sharing.md": Page(_classified, check=_check_shared),
}


# --- Python -----------------------------------------------------------------------------------------------------------


def _run_python(page: str, names: Names, smaller: Mapping[str, str]) -> None:
    source = of_language(page, "python")
    for text, instead in smaller.items():
        assert any(text in block for block in source), f"{page} has no {text!r} any more"
        source = [block.replace(text, instead) for block in source]
    for block in source:
        if (file := re.match(r"# (\w+\.py)\n", block)) is not None:
            Path(file[1]).write_text(block, encoding="utf-8")
            names[file[1]] = runpy.run_path(file[1])
        else:
            exec(compile(block, page, "exec"), names)


@pytest.mark.filterwarnings("default:the training has collapsed")  # of masks for a network that knows nothing
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    told = PAGES.get(page, Page())
    names = told.given()
    _run_python(page, names, told.smaller)
    told.check(names, capsys.readouterr().out)


def test_the_study_of_the_page_is_a_study(tmp_path, monkeypatch) -> None:
    from salmask.study import Scale

    monkeypatch.chdir(tmp_path)
    names: Names = {}
    _run_python("docs/studies.md", names, {})
    assert [row.name for row in names["mine.py"]["study"](Scale()).rows] == ["tv 0.002", "tv 0.02"]


# --- what a block may be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(DOCUMENTS))
def test_every_block_says_its_language_and_none_hides_from_the_tests(page) -> None:
    for block in blocks_of(DOCUMENTS[page].read_text(encoding="utf-8")):
        where = f"{page}, line {block.map[0] + 1}"
        assert block.type == "fence", f"{where}: an indented block; fence it, and name its language"
        assert block.info in ("python", "sh", "text"), f"{where}: {block.info!r} is none of python, sh, text"
        if block.info == "text":
            code = re.search(r"^\s*(salmask|pip|python|make|torchrun|srun|import|from)\b", block.content, re.MULTILINE)
            assert code is None, f"{where}: {code and code[0]!r} in a block of text is run by nobody"


# --- commands ---------------------------------------------------------------------------------------------------------


def commands_of(block: str) -> Iterator[list[str]]:
    """Yield the commands of a block, word by word, without comments and with lines joined."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def check_command(words: list[str]) -> None:
    """Fail where a command could not be typed: no such file, target, extra, command, option or value."""
    match words:
        case ["salmask" | ".venv/bin/salmask", *arguments]:
            check_arguments([*takewhile(lambda word: word not in ("|", ">"), arguments)])
        case ["srun", *words_of_srun] if "salmask" in words_of_srun:
            check_arguments(words_of_srun[words_of_srun.index("salmask") + 1 :])
        case ["torchrun", *rest] | ["python", "-m", "torch.distributed.run", *rest]:
            check_arguments(rest[rest.index("-m") + 2 :])
        case ["python", "-m", "venv", "fresh"] | ["fresh/bin/python", "masks.py", _]:
            pass  # the script is on the page, and is run as its Python is
        case ["fresh/bin/pip", "install", *packages]:
            assert {*packages} <= {"onnxruntime", "numpy", "pillow"}
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), f"no file {script}"
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
        case ["pip", "install", what]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            named = re.fullmatch(r"(?:salmask|\.)(?:\[([a-z,]+)\])?", what)
            assert named is not None, f"pip install {what} is not of this project"
            assert set((named[1] or "serve").split(",")) <= set(project["optional-dependencies"])
        case _:
            raise AssertionError(f"nothing here checks {shlex.join(words)!r}: teach check_command what it is")


def check_arguments(arguments: list[str]) -> None:
    """Parse what follows `salmask`, as the command line does; nothing is run."""
    command, *rest = arguments
    assert command in COMMANDS, f"no command {command}"
    try:
        tyro.cli(COMMANDS[command], args=rest, console_outputs=False)
    except SystemExit as error:
        raise AssertionError(f"salmask {shlex.join(arguments)} is not understood") from error


@pytest.mark.parametrize("page", sorted(page for page in DOCUMENTS if of_language(page, "sh")))
def test_every_command_could_be_typed(page) -> None:
    for block in of_language(page, "sh"):
        for words in commands_of(block):
            check_command(words)


def test_the_script_for_slurm_is_one_that_bash_and_fabric_understand(monkeypatch) -> None:
    """Process 13 of 16, as Slurm tells it who it is where the script's own #SBATCH line was obeyed."""
    (script,) = (block for block in of_language("docs/scale.md", "sh") if "#SBATCH" in block)
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    asked = dict(re.findall(r"--([\w-]+)=(\S+)", script.splitlines()[1]))
    nodes, tasks = int(asked["nodes"]), int(asked["ntasks-per-node"])
    (line,) = (words for words in commands_of(script) if words[0] == "srun")
    start = line.index("salmask")
    assert f"--cpus-per-task={asked['cpus-per-task']}" in line[:start]  # srun does not take it from #SBATCH
    command = tyro.cli(COMMANDS[line[start + 1]], args=line[start + 2 :])
    assert (command.nodes, command.devices, asked["gpus-per-node"]) == (nodes, tasks, str(tasks))
    assert command.settings.batch_size % (nodes * tasks) == 0 and command.workers <= int(asked["cpus-per-task"])
    told = {"NTASKS": nodes * tasks, "NTASKS_PER_NODE": tasks, "NNODES": nodes, "JOB_ID": 41234, "JOB_NAME": "train"}
    told["STEP_NUM_TASKS"] = nodes * tasks
    told |= {"PROCID": 13, "NODEID": 13 // tasks, "LOCALID": 13 % tasks, "NODELIST": "n[07-08]"}
    for name in ("MASTER_ADDR", "MASTER_PORT", "SALMASK_STARTED_BY"):  # which are set below, and are not to stay
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Fabric, "launch", lambda fabric: None)
    fabric = command.launch()
    assert (fabric.global_rank, fabric.local_rank, fabric.world_size) == (13, 5, 16)
    assert fabric.strategy.cluster_environment.main_address == "n07"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(ValueError, match="8 processes were started, and 16 asked for"):
        command.launch()


@pytest.mark.parametrize("page", sorted(RESULTS))
def test_the_commands_that_made_the_results_are_commands_still(page) -> None:
    for block in blocks_of(RESULTS[page].read_text(encoding="utf-8")):
        for words in commands_of(block.content):
            if words[0] == "salmask":
                check_arguments(words[1:])


def test_every_option_that_prose_names_exists() -> None:
    known = {"--help"}
    for command in COMMANDS.values():
        known |= set(re.findall(r"--[a-z][a-z-]*", _help_of(command)))
    for page, path in DOCUMENTS.items():
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`]*)`", text):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)) - known - THEIRS
            assert not unknown, f"{page}: `{code}`"


def _help_of(command: type) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        tyro.cli(command, args=["--help"])
    return shown.getvalue()


THEIRS = {"--masker_use_layers", "--lrde", "--all", "--rounds", "--reader"}
"""Options of other programs, of benchmarks and of `salmask help`, that prose names."""


@pytest.mark.slow
@pytest.mark.filterwarnings("default:the training has collapsed")
def test_one_s_own_network_is_explained_by_the_commands_of_the_page(tmp_path, monkeypatch, capsys) -> None:
    from salmask.data.synthetic import write_folder

    monkeypatch.chdir(tmp_path)
    (own,) = [block for block in of_language("docs/own-network.md", "python") if block.startswith("# mine.py")]
    Path("mine.py").write_text(own.replace("in_features, 3)", "in_features, 10)").replace('size": 64', 'size": 32'))
    write_folder(Path("DATA"), train=10, val=10, seed=0, size=32)
    picture = next(Path("DATA", "val").rglob("*.png"))
    cheap = {"train": ["--epochs", "0.5", "--batch-size", "4", "--target", "predicted"]}
    for words in commands_of(of_language("docs/own-network.md", "sh")[0]):
        arguments = [str(picture) if word == "photo.jpg" else word for word in words[1:]]
        assert main([*arguments, *cheap.get(arguments[0], [])]) == 0, words
    assert "layer3" in capsys.readouterr().out and list(Path("explained").glob("*.png"))
    assert Path("compared", "index.html").is_file()
