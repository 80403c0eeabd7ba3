"""Commands that make something: a classifier, a masker, everything at once on built-in data."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from salmask.cli.console import print_table, progress_bar, say, typed_command, version
from salmask.cli.options import Data, Precision

if TYPE_CHECKING:
    from salmask.training.variant import Variant

__all__ = ["Classifier", "Convert", "Demo", "Inpainter", "Train"]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Main job on built-in data: train a classifier and two maskers, explain, compare, report."""

    out: Path = Path("demo")
    """Folder for everything that is made; open index.html in it."""
    seed: int = 0
    """Of the data and of the trainings."""
    quick: bool = False
    """Tiny settings, to see that everything runs; the numbers mean nothing."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.cli.demo import run_demo

        summary = run_demo(self.out, seed=self.seed, quick=self.quick, say=say, progress=progress_bar)
        say(f"report: {self.out / 'index.html'}")
        print_table(summary, ("le", "f1", "mask_mean", "acc_kept", "acc_removed"))


@dataclass(frozen=True, kw_only=True)
class Classifier(Data):
    """Train or fine-tune a classifier on a folder of pictures, for data that has none."""

    network: str
    """timm:NAME, or timm:NAME@FILE to go on from weights."""
    out: Path
    """.safetensors file for the weights."""
    pretrained: bool = False
    """Begin with timm's pretrained weights."""
    epochs: float = 12.0
    """Full passes over the data."""
    batch_size: int = 64
    """Pictures a step."""
    lr: float = 0.1
    """Top of the one-cycle learning rate."""
    precision: Precision = "32-true"
    """32-true, bf16-mixed or 16-mixed."""
    workers: int = 0
    """Processes that read pictures."""
    seed: int = 0
    """Of everything that is drawn."""

    def __call__(self) -> None:
        """Run the command."""
        import torch

        from salmask.classifier import Classifier
        from salmask.data import has_split
        from salmask.files import writable_folder
        from salmask.training.classifier import FitSettings, accuracy, fit_classifier
        from salmask.training.run import Loaded, View, load_classifier, save_classifier

        writable_folder(self.out.parent)
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out names a .safetensors file, came {self.out}")
        pictures = self.read("train")
        name = self.network.removeprefix("timm:")
        torch.manual_seed(self.seed)  # timm draws first weights from torch's global generator
        if "@" in name:
            loaded = load_classifier(self.network, **self.pictures())
            if loaded.classifier.num_classes != len(pictures.classes):
                raise ValueError(
                    f"{name} tells {loaded.classifier.num_classes} classes apart, {self.data} has "
                    f"{len(pictures.classes)}: go on from weights for these classes, or begin anew"
                )
        else:
            built = Classifier.from_timm(
                name, pretrained=self.pretrained, num_classes=len(pictures.classes), image_size=self.image_size
            )
            loaded = Loaded(built, name, View(built.image_size, self.fit or "crop", self.interpolation or "bilinear"))
        loaded = replace(loaded, classes=tuple(pictures.classes))
        settings = FitSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            precision=self.precision,
            seed=self.seed,
            workers=self.workers,
        )
        fit_classifier(
            loaded.classifier,
            pictures,
            settings=settings,
            augment=loaded.view.augmentation(),
            progress=progress_bar("training"),
        )
        save_classifier(self.out, loaded)
        say(f"classifier: timm:{loaded.network}@{self.out}")
        if has_split(self.data, "val"):
            val = self.read("val", transform=loaded.view.transform(), classes=pictures.classes)
            say(f"accuracy on val: {accuracy(loaded.classifier, val):.3f}")


@dataclass(frozen=True, kw_only=True)
class Train(Data):
    """Train a masker beside a classifier."""

    classifier: str
    """timm:NAME, timm:NAME@FILE, or the folder of a run."""
    out: Path
    """Folder of the run: masker, classifier, metrics, checkpoint."""
    as_released: bool = False
    """Train as the paper's released code does where it differs from its description; see docs/as-released.md."""
    recipe: str = "auto"
    """auto, auto_ca, fix, ca, casm_f, casm_l, casm_fl, casm_l100, casm_l1000 or dabkowski_gal."""
    area_in: float | None = None
    """Weight of the area on the kept side, for fix and ca."""
    area_out: float | None = None
    """Weight of the area on the removed side, for fix, ca and casm."""
    layers: tuple[int, ...] | None = None
    """Which of the classifier's maps the masker reads, by index; the two deepest where not given."""
    upsample: Literal["nearest", "bilinear"] = "nearest"
    """From the masker's grid to the picture."""
    infill: str = "mean"
    """What stands in the holes: mean, blur, noise, colour, bank, or the file of an inpainter."""
    infill_kept: str | None = None
    """The same for the kept picture alone."""
    infill_removed: str | None = None
    """The same for the removed picture alone."""
    remask: bool = False
    """Mask pictures twice, as the released infillers do."""
    per_class: int | None = None
    """Train on so many pictures a class, drawn with the seed."""
    setting: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Any other setting of a study's Variant, see docs/studies.md: head=concrete temperature=0.5, class_condition=true,
    history=sample pool_size=5, terms.max_class_kept=1 terms.area=2, weights.area_if_kept_right=3, classes=10."""
    epochs: float = 12.0
    """Full passes over the data."""
    batch_size: int = 72
    """Pictures a step."""
    lr: float = 1e-3
    """Learning rate of the masker."""
    classifier_lr: float = 1e-3
    """Learning rate of a classifier that is trained alongside."""
    precision: Precision = "32-true"
    """32-true, bf16-mixed or 16-mixed."""
    channels_last: bool = True
    """Lay pictures out by pixel, which most convolutions like."""
    workers: int = 0
    """Processes that read pictures."""
    save_every: int = 200
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the checkpoint in --out."""
    seed: int = 0
    """Of everything that is drawn."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.data import training_batches
        from salmask.specs import load_infills
        from salmask.training.released import as_released
        from salmask.training.run import load_classifier, train_run
        from salmask.training.train import Settings
        from salmask.training.variant import chosen_data, masker_options

        variant = self._variant()
        recipe = variant.build_recipe()
        loaded = load_classifier(self.classifier, **self.pictures())
        pictures = self.read("train", classes=loaded.classes)
        dataset = chosen_data(variant, pictures, self.seed)
        settings = Settings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            classifier_lr=self.classifier_lr,
            precision=self.precision,
            channels_last=self.channels_last,
            save_every=self.save_every,
            seed=self.seed,
        )
        train_run(
            dataset,
            replace(loaded, classes=loaded.classes or tuple(pictures.classes)),
            recipe=as_released(recipe) if self.as_released else recipe,
            settings=settings,
            masker_options=masker_options(variant, loaded, self.layers),
            infill=load_infills(
                {"kept": variant.infill_kept, "removed": variant.infill_removed},
                loaded,
                dataset,
                seed=self.seed,
                remask=variant.remask,
            ),
            batches=lambda start: training_batches(
                dataset,
                batch_size=self.batch_size,
                seed=self.seed,
                start=start,
                augment=loaded.view.augmentation(),
                workers=self.workers,
            ),
            out=self.out,
            resume=self.resume,
            facts={
                "data": self.data,
                "per_class": self.per_class,
                "variant": variant.settings(),
                "command": typed_command(),
                "version": version(),
            },
            progress=progress_bar("training"),
        )
        say(f"run: {self.out}")

    def _variant(self) -> "Variant":
        """Return what the options say of the masker, as a study has it."""
        from salmask.specs import load_recipe
        from salmask.training.variant import Variant, read_settings

        load_recipe(self.recipe, area_in=self.area_in, area_out=self.area_out)  # for its clear errors
        given = {"area_if_kept_right": self.area_in, "area_if_removed_wrong": self.area_out}
        own: dict[str, Any] = {
            "recipe": self.recipe,
            "upsample": self.upsample,
            "infill_kept": self.infill_kept or self.infill,
            "infill_removed": self.infill_removed or self.infill,
            "remask": self.remask,
            "per_class": self.per_class,
        }
        more = read_settings(self.setting)
        elsewhere = {*own, "layers", "images", "lr", "top", "area", "reads"}
        for name in elsewhere & more.keys():
            raise ValueError(f"--setting {name}=... has an option of its own, or is no part of a training")
        weights = [(term, weight) for term, weight in given.items() if weight is not None]
        return Variant(**own, **{**more, "weights": (*more.get("weights", ()), *weights)})


@dataclass(frozen=True, kw_only=True)
class Inpainter:
    """Train an inpainter on a folder of pictures: a counterfactual infill for `train --infill FILE`."""

    data: str
    """As for `train`."""
    out: Path
    """.safetensors file; a picture of what it fills is written beside it."""
    image_size: int = 128
    """Side of the square pictures that it learns from; it fills others too."""
    steps: int = 2000
    """Batches."""
    batch_size: int = 16
    """Pictures a step."""
    lr: float = 1e-3
    """Learning rate, which falls along a cosine."""
    precision: Precision = "32-true"
    """32-true or bf16-mixed."""
    workers: int = 0
    """Processes that read pictures."""
    seed: int = 0
    """Of everything that is drawn."""
    skip_broken: bool = False
    """Leave out pictures that cannot be decoded, instead of stopping."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.data import open_data
        from salmask.files import writable_folder
        from salmask.training.inpainter import train_inpainter

        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out names a .safetensors file, came {self.out}")
        writable_folder(self.out.parent)
        pictures = open_data(self.data, "train", skip_broken=self.skip_broken)
        errors = train_inpainter(
            pictures,
            out=self.out,
            image_size=self.image_size,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            precision=self.precision,
            workers=self.workers,
            seed=self.seed,
            progress=progress_bar("inpainter"),
        )
        told = ", ".join(f"{name} {value:.4f}" for name, value in errors.items())
        say(f"mean absolute error in the holes: {told}")
        say(f"inpainter: {self.out}; what it fills: {self.out.with_suffix('.png')}")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Make a run of a checkpoint that the paper's released code (or CASM's) has written."""

    checkpoint: tyro.conf.Positional[Path]
    """Its .chk file."""
    out: Path
    """Folder of the run, for `explain` and `evaluate`."""

    def __call__(self) -> None:
        """Run the command."""
        from salmask.files import writable_folder
        from salmask.training.run import load_checkpoint, save_run

        masker, loaded = load_checkpoint(self.checkpoint)
        facts = {"converted": self.checkpoint.name, "command": typed_command(), "version": version()}
        save_run(writable_folder(self.out), masker, loaded, facts)
        say(f"run: {self.out}")
