"""`salmask train`: a masker for a classifier."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from salmask.cli.console import progress_bar, say, typed_command, version
from salmask.cli.options import Data, Precision

if TYPE_CHECKING:
    from salmask.training.variant import Variant

__all__ = ["Train"]


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
