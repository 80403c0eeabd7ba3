"""`salmask --help`: the usual commands on one screen; `salmask help --all`: what each of them does."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from types import MappingProxyType

__all__ = ["MORE", "USUAL", "asked_for", "overview"]

USUAL: Mapping[str, str] = MappingProxyType(
    {
        "explain": "pictures: which pixels does the decision rest on?",
        "serve": "the same in the browser: drop a picture, move a slider",
        "train": "a masker for your classifier, on your pictures",
        "evaluate": "measure explainers side by side: scores, intervals, a page",
        "demo": "all of it on built-in data, in six to nine minutes",
    }
)
"""The usual five, with what they do."""
MORE: Mapping[str, str] = MappingProxyType(
    {
        "classifier": "train a classifier, for data that has none",
        "score": "maps that any other tool made",
        "sanity": "do the maps change when the weights do?",
        "study": "the paper's tables and figures, or a study of your own",
        "report": "rebuild the page of an evaluation from its rows",
        "layers": "what is read of a network: names, shapes, strides",
        "export": "classifier and masker as one ONNX or torch.export graph",
        "share": "a run as one folder with a model card, for others or the hub",
        "inpainter": "train a counterfactual infill",
        "pooling": "attention pooling beside a frozen classifier",
        "convert": "a run from a checkpoint of the paper's released code",
        "doctor": "versions, devices, and what each extra would add",
        "completion": "for bash, zsh or fish: commands and options at a press of Tab",
    }
)
"""The other commands, with what they do."""
_ABOUT = "Saliency maps by masking: what a classifier's decision rests on."
_END = """with every command:
  --help        its options
  --quiet       print where the result is, and nothing else
  --json        print the result as JSON; all else goes to stderr"""


def asked_for(arguments: Sequence[str]) -> list[str] | None:
    """Return the overview that is asked for, as arguments of `overview`; None for a command.

    `help COMMAND` is `COMMAND --help`.
    """
    if not arguments or arguments[0] in ("-h", "--help") or [*arguments] in (["help"], ["help", "--all"]):
        return [one for one in arguments[1:2] if one == "--all"]
    return None


def overview(*, every: bool) -> str:
    """Return the help of the program, within 24 lines of 80 columns; every: a line for each command."""
    lines = ["usage: salmask COMMAND ...", "", _ABOUT, "", *_listed(USUAL), ""]
    if every:
        lines += _listed(MORE)
    else:
        names = fill(" ".join(MORE), 78, initial_indent="  ", subsequent_indent="  ")
        lines += ["more (`salmask help --all` says what they do):", names]
    return "\n".join([*lines, "", _END, ""])


def _listed(commands: Mapping[str, str]) -> list[str]:
    return [f"  {name:<12}  {line}" for name, line in commands.items()]
