"""A run as others may have it: one folder of known files, without names of this machine.

    salmask share RUN --out FOLDER [--push OWNER/NAME]

The classifier lies in the folder, or is only named there (`reference_to`): timm's, torchvision's or Hugging Face's
network with the SHA-256 of its weights, which is compared when the run is loaded.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from salmask.classifier.named import full_spec
from salmask.classifier.weights import weights_digest
from salmask.classifier.wrappers import unwrapped
from salmask.data.sight import Sight
from salmask.files import JSON, Facts, writable_folder
from salmask.training.provenance import FILES, place_on_hub
from salmask.training.run import CLASSIFIER, READER, RUN, Loaded, Run, load_classifier, save_run
from salmask.training.schemas import read_run

__all__ = ["push_folder", "reference_to", "run_facts", "share_run"]

_TOLD = ("data", "images", "processes", "recipe", "settings", "variant", "collapsed", "speed", "version")
_FOLDERS = re.compile(r"(?:(?<=^)|(?<=[\s=:,@'\"\[]))(?:[A-Za-z]:\\|~?/|\.\.?/)(?:[^:,@'\"/]*/)*")


def run_facts(folder: Path) -> JSON:
    """Return what a run says of its training, without folders of this machine and without the command."""
    facts = read_run(folder / RUN)
    return {name: _without_folders(facts[name]) for name in _TOLD if name in facts}


def _without_folders(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def reference_to(loaded: Loaded) -> Facts:
    """Return what run.json says of a classifier that is named instead of written.

    Errors: ValueError where the name alone, on this machine, does not give this classifier: with its weights, layers
    and outputs.
    """
    spec = full_spec(loaded.network)
    remedy = "share the run with its classifier (--include-classifier)"
    if spec.partition(":")[0] not in ("timm", "torchvision", "hf"):
        raise ValueError(f"the name of {spec} says nothing of its weights: {remedy}")
    sight = asdict(loaded.view) if isinstance(loaded.view, Sight) else {}
    try:
        named = load_classifier(spec, layers=loaded.classifier.layers, **sight).classifier
    except (ValueError, OSError) as error:
        raise ValueError(f"{spec} cannot be built by its name ({error}): {remedy}") from error
    own = loaded.classifier
    if weights_digest(unwrapped(named.network)) != weights_digest(unwrapped(own.network)):
        raise ValueError(f"the weights of the run's classifier are not those that {spec} has by its name: {remedy}")
    if named.options() != own.options():
        raise ValueError(f"the run's classifier has other outputs or tokens than {spec} has by its name: {remedy}")
    return {name: getattr(own, name).flatten().tolist() for name in ("mean", "std")}


def share_run(run: Run, out: Path, facts: JSON, *, reference: Facts | None = None) -> JSON:
    """Write a run into a folder of its own and return what its run.json says.

    facts: of `run_facts`. reference: of `reference_to`; the classifier lies in the folder where None.
    Errors: ValueError for the folder of a training, whose files would be overwritten.
    """
    if (out / "checkpoint.pt").exists() or (out / "training.json").exists():
        raise ValueError(f"{out} is the folder of a training: name another one (--out)")
    out = writable_folder(out)
    network = run.loaded.network
    loaded = replace(run.loaded, network=str(_without_folders(network)))
    for name in (*((CLASSIFIER,) if reference is not None else ()), *((READER,) if run.reader is None else ())):
        (out / name).unlink(missing_ok=True)  # of what was shared into this folder before
    save_run(out, run.masker, loaded, facts, reader=run.reader, reference=reference)
    content: JSON = json.loads((out / RUN).read_text())
    return content


def push_folder(folder: Path, place: str, *, beside: Sequence[str] = (), private: bool | None = None) -> str:
    """Push the files of a run, and those named beside them, to the hub; return the address of the commit.

    place: OWNER/NAME. Nothing else that lies in the folder is pushed. Errors: ValueError for another place, OSError
    where the hub refuses.
    """
    from huggingface_hub import HfApi

    owner, revision = place_on_hub(f"hf-hub:{place}")
    if revision is not None:
        raise ValueError(f"expected OWNER/NAME to push to, got {place!r}")
    api = HfApi(library_name="salmask")
    at = api.create_repo(owner, private=private, exist_ok=True).repo_id
    # What an earlier version of the run had, and this one has not, must not be read with it.
    gone = [name for name in FILES if not (folder / name).is_file()]
    return str(
        api.upload_folder(
            repo_id=at,
            folder_path=folder,
            allow_patterns=[*FILES, *beside],
            delete_patterns=gone or None,
            commit_message="A run of salmask",
        )
    )
