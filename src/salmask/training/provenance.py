"""Where a run is from, and what it may make this machine do.

    runs/mine                      a folder
    hf-hub:OWNER/NAME[@REVISION]   one on the hub: the files below are downloaded, and no others

A run is data: JSON of a known shape and weights in safetensors. Nothing of it is unpickled. A run may name its network
by a function of one's own (`module.py:function`); that function is called only where its code does not come with the
run. Of a run from the hub no code is run and no other folder of this machine is read.
"""

import importlib.util
import re
from importlib.machinery import PathFinder
from pathlib import Path

from salmask.classifier.fusion import FUSIONS
from salmask.classifier.reach import bounded
from salmask.classifier.weights import CONFIG, WEIGHTS
from salmask.classifier.wrappers import Network

__all__ = ["FILES", "HUB", "allowed", "hub_folder", "is_on_hub"]

HUB = "hf-hub:"
"""What the name of a run on the hub begins with."""

FILES = ("run.json", CONFIG, WEIGHTS, "classifier.safetensors", "reader.safetensors")
"""The files of a run."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_PLACE = re.compile(rf"hf-hub:({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
_NAME = re.compile(rf"(?:{_PART}/)?{_PART}")


def is_on_hub(run: str | Path) -> bool:
    """Return whether a run is named by its place on the hub."""
    return isinstance(run, str) and run.startswith(HUB)


def place_on_hub(run: str) -> tuple[str, str | None]:
    """Return OWNER/NAME and revision. Errors: ValueError for what is no such place."""
    if (found := _PLACE.fullmatch(run)) is None or ".." in run:
        raise ValueError(f"expected hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION, got {run[:120]!r}")
    return found[1], found[2]


def hub_folder(run: str) -> Path:
    """Download the files of a run on the hub, those that are not there yet, and return their folder.

    Errors: ValueError for what is no place, FileNotFoundError where it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    place, revision = place_on_hub(run)
    try:
        with bounded():
            return Path(snapshot_download(place, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"no run can be had from {run} ({type(error).__name__}: {reason}): check the name and the network, or copy "
            "its folder to this machine and name that"
        ) from error


def allowed(spec: str, folder: Path, *, downloaded: bool, code: Network | None) -> Network | None:
    """Return the network that stands in for the one that a run names, None where the one it names may be built.

    spec: of the run's network. folder: of the run. code: the user's own network, for a run whose code is not run.
    Errors: ValueError with the remedy for code that is not run unasked, and for a run of the hub that names a file or
    folder of this machine.
    """
    kind, colon, name = spec.partition(":")
    if colon and kind not in ("timm", "torchvision", "hf", "audio", *FUSIONS):
        if not downloaded and not _comes_along(spec, folder):
            return None
        if code is not None:
            return code
        raise ValueError(
            f"the run in {folder} is of a network that code makes, {spec}, and code that comes with a run is not run "
            "unasked: read it, then name your own copy beside the run, --classifier FILE.py:FUNCTION"
        )
    local = kind == "timm" and name.startswith("local-dir:")
    if kind == "hf":
        local = _NAME.fullmatch(name) is None or Path(name).exists()
    if downloaded and local:
        raise ValueError(
            f"the run in {folder} is from the hub and names a network by a folder, {spec}: expected a network by its "
            "name; ask who shared it for the network, and load the run in Python, load_run(folder, network=...)"
        )
    return None


def _comes_along(function: str, folder: Path) -> bool:
    """Return whether the code of a function lies in a run's folder, or is named as seen from another one."""
    where, inside = function.rpartition(":")[0], folder.resolve()
    if where.endswith(".py"):
        return not Path(where).is_absolute() or Path(where).resolve().is_relative_to(inside)
    top, *rest = where.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):
        return True
    # Both: a folder of that name elsewhere is one package with that of the working folder, from which code is imported.
    specs = [importlib.util.find_spec(top), PathFinder.find_spec(top, [str(Path.cwd())])]
    places: list[str] = []
    for found in specs:
        if found is not None:
            places += [*(found.submodule_search_locations or ()), *([found.origin] if found.origin else ())]
    return any(Path(place, *rest).resolve().is_relative_to(inside) for place in places)
