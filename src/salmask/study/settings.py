"""The settings of a study: a masker (`Variant`), a row of a table (`Row`), and the length of its trainings (`Scale`).

Settings are values. Two jobs of equal content are one job, whatever table asks for them. Variants are compared
by `Variant.settings` alone, where fields at their default do not count, so that a new field changes no old job.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from math import inf
from types import MappingProxyType

from salmask.files import JSON
from salmask.training.recipes import Recipe
from salmask.training.released import as_released, metric_as_released
from salmask.training.settings import SIDES, Precision
from salmask.training.variant import Variant, build_recipe

__all__ = ["SCALE_SETTINGS", "Axis", "Claim", "Crops", "Regime", "Row", "Scale", "Study"]


@dataclass(frozen=True, kw_only=True)
class Crops:
    """What training shows of a picture.

    scale_crop, scale_most: smallest and largest share of the picture that the augmentation keeps.
    train_size: side of the pictures in training, the classifier's own where None; with crops of that share they keep
    the scale that they have in use, at a cost that falls with the square of the side.
    """

    scale_crop: float = 0.5
    scale_most: float = 1.0
    train_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale_crop <= self.scale_most <= 1:
            raise ValueError(
                "scale_crop and scale_most are shares of the picture, 0 < scale_crop <= scale_most <= 1, "
                f"got {self.scale_crop} and {self.scale_most}"
            )
        if self.train_size is not None and not SIDES[0] <= self.train_size <= SIDES[1]:
            raise ValueError(f"train_size is {SIDES[0]} to {SIDES[1]} pixels, got {self.train_size}")


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How each masker of a study is trained, on what its variant does not say.

    images: training images shown to it. held_out: training images a class that are kept aside, for tuning.
    layers: of the classifier.
    """

    images: int = 11_000
    batch_size: int = 32
    lr: float = 3e-3
    classifier_lr: float = 1e-3
    decay_at: tuple[float, ...] = (0.7, 0.9)
    precision: Precision = "32-true"
    held_out: int = 10
    layers: tuple[int, ...] = (3, 4)

    def __post_init__(self) -> None:
        _check_positive(self, ("images", "batch_size", "lr", "classifier_lr", "held_out"))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much every row of a study costs.

    regime, crops: how a masker is trained, and on which parts of pictures. as_released: train and measure as the
    paper's released code does where it differs from its description. What no masker depends on:
    final: how many times as many images the last rows of table1 are shown. seeds: trainings of headline rows;
    other_seeds: of the others. candidates: how many area weights are tried a row that is tuned; with 1 its first are
    taken. measured: val images, spread evenly; None for all.
    """

    regime: Regime = field(default_factory=Regime)
    crops: Crops = field(default_factory=Crops)
    as_released: bool = False
    final: float = 3.0
    seeds: int = 3
    other_seeds: int = 1
    candidates: int = 2
    measured: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self, ("final", "seeds", "other_seeds", "candidates", "measured"))

    @classmethod
    def of(cls, **settings: object) -> "Scale":
        """Return the scale with these settings, whatever record each belongs to: `Scale.of(images=2000, seeds=1)`.

        Errors: ValueError for a setting that does not exist, or a value out of range.
        """
        parts: dict[str, JSON] = {record: {} for record in _RECORDS}
        own: JSON = {}
        for name, value in settings.items():
            if name not in SCALE_SETTINGS:
                raise ValueError(f"no setting {name!r} of a scale: expected one of {', '.join(SCALE_SETTINGS)}")
            home = next((parts[part] for part, record in _RECORDS.items() if name in _names(record)), own)
            home[name] = tuple(value) if isinstance(value, list) else value  # lists, as JSON has them
        return cls(**own, **{part: record(**parts[part]) for part, record in _RECORDS.items()})

    def settings(self) -> JSON:
        """Return all settings, flat, as `of` takes them."""
        own = {name: getattr(self, name) for name in _names(Scale) if name not in _RECORDS}
        return self.training() | own

    def training(self) -> JSON:
        """Return the settings that a masker depends on, flat; beside them stands `as_released`."""
        return asdict(self.regime) | asdict(self.crops)

    def recipe(self, variant: Variant) -> Recipe:
        """Return the recipe that a variant is trained by."""
        recipe = build_recipe(variant.learns)
        return as_released(recipe) if self.as_released else recipe

    def metric(self, name: str) -> str:
        """Return the protocol that a metric is measured by."""
        return metric_as_released(name) if self.as_released else name


def _names(record: type) -> list[str]:
    return [one.name for one in fields(record)]


def _check_positive(record: Regime | Scale, names: Sequence[str]) -> None:
    for name in names:
        if (value := getattr(record, name)) is not None and not 0 < value < inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


_RECORDS = MappingProxyType({"regime": Regime, "crops": Crops})
SCALE_SETTINGS = [name for record in (Regime, Crops, Scale) for name in _names(record) if name not in _RECORDS]
"""The settings that `Scale.of` takes."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: a variant, trained `seeds` times, or an explainer by name.

    candidates: instead of a variant; the one with the lowest LE on the held-out training images is taken.
    place, line: where the row stands on the study's axis, and the line that it belongs to.
    """

    name: str
    variant: Variant | None = None
    candidates: tuple[Variant, ...] = ()
    explainer: str | None = None
    seeds: int = 1
    place: float | None = None
    line: str = ""

    def __post_init__(self) -> None:
        given = [bool(self.variant), bool(self.candidates), bool(self.explainer)]
        if sum(given) != 1:
            raise ValueError(f"row {self.name!r} needs one of variant, candidates and explainer, got {sum(given)}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that a study can hold against its numbers: `row` does better than `against` on `metric`."""

    text: str
    row: str
    against: str
    metric: str = "le"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A study's figure: LE of its rows by their places. reference: rows drawn as dashed lines."""

    x: str
    log_x: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    reference: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table of the paper: its rows, its figure, and what it is asked.

    checks: rows whose maps are compared while weights are randomised, layer by layer: the classifier's, and the
    masker's own. pairs: rows whose maps of the same pictures are compared, and with another training of their own.
    checked: val pictures that the maps are compared on, spread evenly.
    """

    name: str
    title: str
    rows: Sequence[Row]
    axis: Axis | None = None
    claims: tuple[Claim, ...] = ()
    checks: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    checked: int = 48

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        names = [row.name for row in self.rows]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"study {self.name}: two rows are named {name!r}")
        asked = [one for claim in self.claims for one in (claim.row, claim.against)]
        asked += [*self.checks, *(one for pair in self.pairs for one in pair)]
        for name in [*asked, *(self.axis.reference if self.axis else ())]:
            if name not in names:
                raise ValueError(f"study {self.name} speaks of row {name!r}, which it does not have")
