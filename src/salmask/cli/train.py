"""`salmask train`: a masker for a classifier."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from salmask import __version__
from salmask.cli.console import Command, progress_bar, say, typed_command
from salmask.cli.options import DataOptions, ProcessOptions
from salmask.files import Facts
from salmask.training.settings import Examples, Learns, Mask, Settings

if TYPE_CHECKING:
    from salmask.data import Labelled
    from salmask.training.run import Loaded
    from salmask.training.variant import Variant

__all__ = ["TrainCommand"]


@dataclass(frozen=True, kw_only=True)
class _LearnsOptions(Learns):
    """What the masker is asked for."""

    changes: tyro.conf.Suppress[tuple[tuple[str, object], ...]] = ()


@dataclass(frozen=True, kw_only=True)
class TrainCommand(Command, DataOptions, ProcessOptions):
    """Train a masker beside a classifier."""

    classifier: str
    """timm:NAME, torchvision:NAME, hf:NAME or one's own module.py:function, each with @FILE for weights of a file; or a
    run's folder."""
    out: Path
    """Folder of the run: masker, classifier, metrics, checkpoint."""
    learns: tyro.conf.OmitArgPrefixes[_LearnsOptions] = field(default_factory=_LearnsOptions)
    area_in: float | None = None
    """Weight of the area on the kept side: short for --weights area_if_kept_right."""
    area_out: float | None = None
    """Weight of the area on the removed side, for fix, ca and casm: short for --weights area_if_removed_wrong."""
    mask: tyro.conf.OmitArgPrefixes[Mask] = field(default_factory=Mask)
    examples: tyro.conf.OmitArgPrefixes[Examples] = field(default_factory=Examples)
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    setting: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Any setting of a study's Variant, see docs/studies.md: history=sample pool_size=5, statistics=held,
    head=concrete temperature=0.5, terms.max_class_kept=1 terms.area=2, weights.area_if_kept_right=3, classes=10."""
    as_released: bool = False
    """Train as the paper's released code does where it differs from its description; see docs/as-released.md."""
    start: Path | None = None
    """Folder of a run whose masker is trained on, as L-MAC's fine-tuning does."""
    resume: bool = False
    """Go on from the checkpoint in --out."""

    def __call__(self) -> Facts | None:
        """Run the command."""
        from salmask.data.streams import Share
        from salmask.specs import load_infills
        from salmask.training.log import LOG, SPEED, collapse, in_words, speed
        from salmask.training.precision import chosen_precision
        from salmask.training.processes import share_of
        from salmask.training.released import as_released
        from salmask.training.run import load_classifier, load_run, with_depth
        from salmask.training.train_run import train_run
        from salmask.training.variant import build_recipe, chosen_data, decoded_once, masker_options

        variant, settings = self._variant(), self.settings
        recipe = build_recipe(variant.learns)
        loaded = load_classifier(self.classifier, **self.pictures())
        pictures = self._pictures(loaded)
        loaded = with_depth(loaded, pictures)
        self.check_hears(loaded, pictures, "train")
        start = None if self.start is None else load_run(self.start).masker
        dataset = chosen_data(variant.data, pictures, settings.seed)
        settings = settings.of(len(dataset))
        Share(0, self.devices * self.nodes).check(settings.batch_size, dataset)  # once, before there are several of us
        infill = load_infills(variant.learns.infills, loaded, dataset, seed=settings.seed, remask=variant.learns.remask)
        fabric = self.launch(precision=chosen_precision(settings.precision, loaded.classifier))
        augment, share = self.augmentation(loaded, pictures), share_of(fabric)
        own = tuple(pictures.classes) if settings.target == "label" else None
        train_run(
            dataset,
            replace(loaded, classes=loaded.classes or own),
            recipe=as_released(recipe) if self.as_released else recipe,
            settings=settings,
            masker_options={**masker_options(variant.mask, loaded), "start": start},
            infill=infill,
            batches=decoded_once(dataset, settings, augment, workers=self.workers, share=share),
            out=self.out,
            resume=self.resume,
            facts={
                "data": self.data,
                "variant": variant.settings(),
                "command": typed_command(),
                "version": __version__,
            },
            fabric=fabric,
            progress=progress_bar("training") if fabric.is_global_zero else iter,
        )
        if not fabric.is_global_zero:
            return None
        if settings != self.settings:
            say(f"{settings.batch_size} pictures a step (--batch-size): there are no more")
        pace = speed(self.out / SPEED)
        say(f"run: {self.out}{in_words(pace)}")
        return {"run": self.out, "speed": pace, "collapsed": collapse(self.out / LOG)}

    def _pictures(self, loaded: "Loaded") -> "Labelled":
        """Return the training pictures; those of a flat folder, or of folders of any name, need no labels."""
        from salmask.audio.hearing import Hearing
        from salmask.data import open_data
        from salmask.data.flat import FlatFolder, is_flat

        if isinstance(loaded.view, Hearing):
            return self.read("train", loaded, classes=loaded.classes)
        if is_flat(Path(self.data)):
            return FlatFolder(self.data, skip_broken=self.skip_broken, read=loaded.reader(max_pixels=self.max_pixels))
        if self.settings.target == "label":
            return self.read("train", loaded, classes=loaded.classes)
        return open_data(
            self.data,
            "train",
            skip_broken=self.skip_broken,
            download=self.download,
            read=loaded.reader(max_pixels=self.max_pixels),
            inputs=loaded.classifier.inputs,
        )

    def _variant(self) -> "Variant":
        """Return the masker that the options describe; --setting comes last."""
        from salmask.specs import load_recipe
        from salmask.training.variant import Variant, read_settings

        load_recipe(self.learns.recipe, area_in=self.area_in, area_out=self.area_out)  # for its clear errors
        changes = read_settings(self.setting)
        for name in {"images", "lr", "target", "top", "area", "reads"} & changes.keys():
            raise ValueError(f"--setting {name}=... is no part of a training, or has an option of its own")
        areas = {"area_if_kept_right": self.area_in, "area_if_removed_wrong": self.area_out}
        weights = [(term, weight) for term, weight in areas.items() if weight is not None]
        changes["weights"] = [*self.learns.weights, *changes.get("weights", ()), *weights]
        return Variant(learns=self.learns, mask=self.mask, data=self.examples).changed(**changes)
