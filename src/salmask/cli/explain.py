"""`salmask explain`: pictures, or sounds, with their maps."""

import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from salmask.cli.console import Command, progress_bar, say
from salmask.cli.options import InferencePrecision, Normalize, PictureOptions, ProcessOptions, refuse_unused
from salmask.cli.quick import import_networks
from salmask.files import JSON, Facts

if TYPE_CHECKING:
    from salmask.data import Labelled
    from salmask.explain.base import Explainer
    from salmask.training.run import Loaded

__all__ = ["ExplainCommand"]


@dataclass(frozen=True, kw_only=True)
class ExplainCommand(Command, PictureOptions, ProcessOptions):
    """Explain pictures: a PNG (picture, mask, kept, removed, probabilities) and the raw map (.npy) of each; of sounds
    the spectrogram, and what is kept and removed as .wav. With --data, the masks of a whole data set."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Picture files, or folders of them; sounds, where the classifier hears."""
    explainer: str | None = None
    """Folder of a run, a released checkpoint (.chk), or a name such as gradcam or rise:masks=500; where neither it nor
    a classifier is given, the masker for photographs that comes with the package (`imagenet`)."""
    out: Path = Path("explained")
    """Folder for the pictures."""
    list: bool = False
    """List all explainers by name with their settings, and do nothing else."""
    classifier: str | None = None
    """timm:NAME, torchvision:NAME, hf:NAME or one's own module.py:function, each with @FILE for weights of a file; or a
    run's folder, for explainers by name."""
    target: str | None = None
    """Class to explain, by name or index; the predicted one where not given."""
    normalize: Normalize | None = None
    """How maps outside [0, 1] are shown."""
    top: int = 3
    """How many class probabilities are shown."""
    data: str | None = None
    """A whole data set in place of files: a folder of pictures or sounds, wds:PATTERN, hf-dataset:PATH. Its masks go to
    --out with an index; what is there already is not explained again."""
    split: str = "val"
    """Which part of --data."""
    form: Literal["png", "array"] = "png"
    """Of the masks of --data: an 8-bit PNG for each, or one array (masks.npy)."""
    batch_size: int = 64
    """Pictures of --data at once; halved where they do not fit into memory."""
    precision: InferencePrecision = "32-true"
    """In which --data is explained: 32-true, bf16-mixed, or auto, which takes the latter where the hardware is faster
    at it."""

    def __call__(self) -> Facts | None:
        """Run the command."""
        import_networks()
        from salmask.audio.hearing import Hearing
        from salmask.cli.explain_files import Shown, explain_files
        from salmask.cli.explain_sounds import explain_sounds
        from salmask.explain import EXPLAINERS
        from salmask.specs import SHIPPED, heard_otherwise, list_explainers, load_explainer
        from salmask.training.run import load_classifier

        if self.list:
            say(list_explainers())
            return {"explainers": [*EXPLAINERS]}
        self._check_used()
        explainer = self.explainer or (None if self.classifier else SHIPPED)
        if explainer is None:
            raise ValueError("name an explainer with --explainer: a run's folder, or a name that --list shows")
        loaded = load_classifier(self.classifier, **self.pictures()) if self.classifier else None
        name, method, own = load_explainer(explainer, loaded=loaded)
        if loaded is not None and _other_weights(loaded, own):
            warnings.warn(
                f"{explainer} explains the classifier that it was trained for, {own.network}, with the weights of its "
                f"run, and not {self.classifier}",
                stacklevel=2,
            )
        own = heard_otherwise(name, method, own, self.pictures())
        if self.data is not None:
            return self._explain_data(self.data, method, own)
        shown = Shown(self.target, self.normalize, self.top)
        options: JSON = {"out": self.out, "shown": shown, "skip_broken": self.skip_broken, "say": say}
        options["progress"] = progress_bar("explaining")
        if isinstance(own.view, Hearing):
            done = explain_sounds(self.images, name, method, own, **options)
        else:
            done = explain_files(self.images, name, method, own, max_pixels=self.max_pixels, **options)
        written = [path for one in done for path in one.shown]
        for path in written:
            say(str(path))
        return {"explainer": name, "written": written, "pictures": [one.facts() for one in done]}

    def _check_used(self) -> None:
        """Raise ValueError for options of a whole data set without one, and those of single files with one."""
        if self.data is None:
            of_data = ("split", "form", "batch_size", "precision", *(field.name for field in fields(ProcessOptions)))
            refuse_unused(self, of_data, "of a whole data set, and --data is not given")
        else:
            refuse_unused(self, ("top",), "of the figures of single files, and --data is given")

    def _explain_data(self, spec: str, explainer: "Explainer", loaded: "Loaded") -> Facts | None:
        from salmask.cli.explain_files import class_index
        from salmask.evaluation.masks import INDEX, explain_data
        from salmask.training.precision import chosen_precision
        from salmask.training.processes import move_to

        if self.images:
            raise ValueError("expected picture files or --data, got both: give one")
        names = loaded.classes or tuple(str(k) for k in range(loaded.classifier.num_classes))
        target = None if self.target is None else class_index(self.target, names)
        dataset = self._data_set(spec, loaded)
        fabric = self.launch(precision=chosen_precision(self.precision, loaded.classifier))
        move_to(fabric, [(explainer, loaded)])
        done = explain_data(
            explainer,
            loaded.classifier,
            dataset,
            out=self.out,
            fabric=fabric,
            form=self.form,
            batch_size=self.batch_size,
            workers=self.workers,
            how={"class": target, "normalize": self.normalize},
            about={"data": spec, "split": self.split, "view": asdict(loaded.view)},
            progress=progress_bar("explaining") if fabric.is_global_zero else iter,
        )
        if not fabric.is_global_zero:
            return None
        say(f"{done}: {self.out}")
        return {"explainer": explainer.kind, "index": self.out / INDEX, **asdict(done)}

    def _data_set(self, spec: str, loaded: "Loaded") -> "Labelled":
        """Return what `--data` names, as the classifier sees or hears it."""
        from salmask.audio.hearing import Hearing
        from salmask.audio.readers import open_sounds
        from salmask.data import open_data
        from salmask.data.flat import FlatFolder, is_flat

        if isinstance(loaded.view, Hearing):
            return open_sounds(spec, self.split, loaded.view, skip_broken=self.skip_broken)
        options: JSON = {"transform": loaded.view.transform(), "skip_broken": self.skip_broken}
        options["read"] = loaded.reader(max_pixels=self.max_pixels)
        if not is_flat(Path(spec)):
            return open_data(spec, self.split, **options, inputs=loaded.classifier.inputs)
        refuse_unused(self, ("split",), f"of data with train and val, and {spec} is one folder of pictures")
        return FlatFolder(spec, **options)


def _other_weights(given: "Loaded", own: "Loaded") -> bool:
    """Return whether the classifier that is explained is not the one that was given."""
    return own.classifier is not given.classifier and own.classifier.fingerprint() != given.classifier.fingerprint()
