"""What every command says, and where: --quiet, --json, progress, colours, completion, doctor, the overview."""

import json
import logging
import os
import pty
import re
import runpy
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from salmask.cli import doctor
from salmask.cli import main as front
from salmask.cli.console import Command, carry_out, count_bar, progress_bar, say
from salmask.cli.main import COMMANDS, main
from salmask.cli.overview import MORE, USUAL
from salmask.training import precision

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Writing(Command):
    """Say two lines, show progress, and return a result."""

    files: tuple[Path, ...] = (Path("a/b.png"), Path("c.npy"))

    def __call__(self):
        for _ in progress_bar("counting", every=0)(range(3)):
            pass
        logging.getLogger("lightning.fabric").info("of a library")
        say("one")
        print("two")
        return {"written": [*self.files], "scores": {"le": float("nan"), "f1": 0.5}, "none": None, "yes": True}


@pytest.mark.parametrize(
    ("options", "out", "lines"),
    [
        ({}, "one\ntwo\n", 2),
        ({"quiet": True}, "a/b.png\nc.npy\n", 0),
        ({"quiet": True, "files": ()}, "one\ntwo\n", 0),
    ],
)
def test_quiet_leaves_the_paths_or_the_answer(options, out, lines, capsys, caplog) -> None:
    caplog.set_level(logging.INFO, logger="lightning.fabric")
    carry_out(Writing(**options))
    shown = capsys.readouterr()
    assert bool(caplog.records) is (lines > 0)
    assert shown.out == out and shown.err.count("\n") == lines


@pytest.mark.parametrize("quiet", [False, True])
def test_json_is_one_object_alone_on_stdout_and_all_else_on_stderr(quiet, capsys) -> None:
    carry_out(Writing(json=True, quiet=quiet))
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1 and json.loads(shown.out) == {
        "written": ["a/b.png", "c.npy"],
        "scores": {"le": None, "f1": 0.5},
        "none": None,
        "yes": True,
    }
    assert ("one\ntwo\n" in shown.err) is not quiet


def test_a_process_that_has_no_result_prints_none(capsys) -> None:
    class Second(Command):
        def __call__(self):
            return None

    for options in ({}, {"quiet": True}, {"json": True}):
        carry_out(Second(**options))
    assert capsys.readouterr() == ("", "")


def test_after_a_failure_the_output_is_as_it_was(capsys) -> None:
    class Failing(Command):
        def __call__(self):
            say("half")
            raise ValueError("no")

    for options in ({"quiet": True}, {"json": True}):
        with pytest.raises(ValueError, match="no"):
            carry_out(Failing(**options))
    assert capsys.readouterr().out == ""
    carry_out(Writing())
    shown = capsys.readouterr()
    assert shown.out == "one\ntwo\n" and "counting" in shown.err


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys) -> None:
    assert [*progress_bar("training", every=0)(range(4))] == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["training: 1/4", "training: 2/4", "training: 3/4"]
    assert all("/s, 0:00:0" in line and line.endswith(" left") for line in lines)
    assert [*progress_bar("training", every=0)(iter("ab"))] == ["a", "b"]  # of no length
    assert capsys.readouterr().err.splitlines()[0].startswith("training: 1, ")
    assert [*progress_bar("training")(range(4))] == [0, 1, 2, 3]
    assert capsys.readouterr() == ("", "")


def in_terminal(code: str, **environment: str) -> str:
    """Return what a program writes where it has a terminal."""
    ours, theirs = pty.openpty()
    names = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs, env={**names, "TERM": "xterm", **environment}
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    process.wait()
    os.close(ours)
    return shown.decode()


def test_a_terminal_gets_colours_and_a_bar_with_the_rate_and_no_color_takes_the_colours_away() -> None:
    bar = "import time\nfrom salmask.cli.console import progress_bar\n"
    bar += "for _ in progress_bar('training')(range(5)): time.sleep(.05)"
    helping = "from salmask.cli.main import main; main(['report', '--help'])"
    shown, plain = in_terminal(bar), in_terminal(bar, NO_COLOR="1")
    for text in (shown, plain):
        text = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert "5/5" in text and "/s 0:00:0" in text
    assert "\x1b[3" in shown and "\x1b[3" not in plain
    assert "\x1b[1m" in in_terminal(helping) and "\x1b[" not in in_terminal(helping, NO_COLOR="1")
    piped = subprocess.run([sys.executable, "-c", helping], capture_output=True, text=True, check=True)
    assert "\x1b[" not in piped.stdout


def test_what_is_counted_by_its_own_clock_has_a_bar_on_a_terminal_and_none_elsewhere(capsys) -> None:
    bar = "from salmask.cli.console import count_bar, say\n"
    bar += "with count_bar('few_shot') as move:\n  move(0, 7, None)\n  say('[1/7] done')\n  move(1, 7, 65.0)"
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", in_terminal(bar))
    assert "few_shot" in text and "1/7" in text and "0:01:05 left" in text and text.count("[1/7] done") == 1
    with count_bar("few_shot") as move:
        move(1, 7, 65.0)
    assert capsys.readouterr() == ("", "")


# The overview, completion, doctor


def test_the_overview_fits_a_screen_and_names_every_command_once(capsys) -> None:
    assert {*USUAL, *MORE} == {*COMMANDS} and len(USUAL) == 5
    shown = []
    for arguments in (["--help"], ["-h"], ["help"], ["help", "--all"]):
        assert main(arguments) == 0
        shown.append(capsys.readouterr().out)
        lines = shown[-1].splitlines()
        assert len(lines) <= (24 if arguments[-1] != "--all" else 30) and max(map(len, lines)) < 80
        words = shown[-1].split()
        assert all(words.count(command) >= 1 for command in COMMANDS)
        assert shown[-1].index("  explain") < shown[-1].index("  classifier")
    assert shown[0] == shown[1] == shown[2] != shown[3]
    assert main([]) == 2
    assert capsys.readouterr().out == shown[0]


def test_help_of_a_command_is_its_help(capsys) -> None:
    for arguments in (["help", "layers"], ["layers", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert "usage: salmask layers" in shown and "--quiet" in shown and "--json" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_with_the_commands_and_their_options(shell, capsys) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in (*COMMANDS, "skip-broken", "save-every"))


def test_bash_completes_a_command_and_an_option(tmp_path, capsys) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "salmask").write_text(capsys.readouterr().out)
    ask = (
        f"source {tmp_path / 'salmask'}\n"
        'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _tyro_salmask; echo "${COMPREPLY[@]}"; }\n'
        "ask salmask expl\nask salmask sanity --as-re\n"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["explain", "--as-released"]


def test_doctor_says_what_is_here_and_what_an_extra_would_add(capsys, monkeypatch) -> None:
    real = doctor.importlib.metadata.version

    def version(package: str) -> str:
        if package == "gradio":
            raise doctor.importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("salmask ") and "torchvision" in lines[0]
    assert any(line.startswith("device: cpu") for line in lines)
    (serve,) = [line for line in lines if "pip install 'salmask[serve]'" in line]
    assert "missing gradio" in serve and "the page in the browser" in serve
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert not facts["extras"]["serve"]["installed"] and facts["extras"]["captum"]["installed"]
    assert facts["precision"]["auto"] in precision.PRECISIONS and "CPU" in facts["precision"]["because"]


def test_doctor_knows_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {*doctor.EXTRAS} == {*project["project"]["optional-dependencies"]}


def test_precision_auto_says_why(monkeypatch) -> None:
    import torch

    for features, chosen, why in (({"amx_bf16": True}, "bf16-mixed", "AMX"), ({}, "32-true", "emulate")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features, raising=False)
        found = precision.automatic(torch.device("cpu"))
        assert found.precision == chosen and why in found.reason


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m salmask completion bash | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


# Interruption


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--out", "a b"], "go on with: salmask train --out 'a b' --resume"),
        (["train", "--resume"], "go on with: salmask train --resume"),
        (["explain", "x.png"], "begin anew with: salmask explain x.png"),
        (["explain", "--data", "d"], "go on with: salmask explain --data d"),
        (["serve"], "the page is closed"),
    ],
)
def test_an_interrupted_command_prints_the_line_that_goes_on(words, line, monkeypatch, capsys) -> None:
    def interrupted(words: list[str]) -> Command:
        raise KeyboardInterrupt

    monkeypatch.setattr(front, "_parsed", interrupted)
    assert main(words) == 130
    shown = capsys.readouterr().err
    assert shown.startswith("salmask: interrupted; ") and shown.endswith(f"{line}\n")
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):  # another one of several processes has nothing to add
        monkeypatch.setenv(name, "1")
        assert main(words) == 130 and capsys.readouterr().err == ""
        monkeypatch.delenv(name)


def test_an_interruption_while_the_command_is_imported_prints_no_traceback(monkeypatch, capsys) -> None:
    class Interrupted:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "salmask.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "salmask.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("salmask", run_name="__main__")
    assert ended.value.code == 130 and capsys.readouterr() == ("", "")
