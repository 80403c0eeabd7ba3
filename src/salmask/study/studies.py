"""The studies of Phang, Park & Geras (2020), each a function Scale -> Study, and how to derive one's own.

    # mine.py:  salmask study mine.py --data DIR --classifier SPEC --out DIR
    from salmask.study import Row, Study, Variant

    def study(scale):
        smooth = {w: Variant.of(recipe="fix", weights=(("total_variation", w),)) for w in (0.002, 0.02)}
        rows = [Row(name=f"tv {w}", variant=variant) for w, variant in smooth.items()]
        return Study(name="tv", title="Smoother masks", rows=rows)

Area weights are tuned on boxes of held-out training images, from two candidates a row: the published ones belong to
ImageNet with its 1,000 classes. Everything is measured on `val` once.
"""

import runpy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from salmask.files import JSON, Facts
from salmask.study.settings import Axis, Claim, Row, Scale, Study
from salmask.training.settings import ORIGINAL
from salmask.training.variant import Variant

__all__ = ["STUDIES", "both_sides", "ca", "chosen_studies", "fix", "one_sided"]

T = TypeVar("T")
NAIVE = ("full", "center", "gradcam")
TV = 0.001  # once per active side
CAREFUL = 1 / 3  # of the study's learning rate: a classifier that learns too moves the masker's target


def both_sides(kept: str, removed: str, area_in: float, area_out: float, **changes: object) -> Variant:
    """Return a variant with one term on each side and its conditional areas."""
    terms = ((kept, 1), (removed, 1), ("area_if_kept_right", area_in), ("area_if_removed_wrong", area_out))
    return _made((*terms, ("total_variation", 2 * TV)), changes)


def one_sided(term: str, area: float, **changes: object) -> Variant:
    """Return a variant with a term on one side alone, and the conditional area of that side."""
    conditional = "area_if_kept_right" if term.endswith("kept") else "area_if_removed_wrong"
    return _made(((term, 1), (conditional, area), ("total_variation", TV)), changes)


def _made(terms: tuple[tuple[str, float], ...], changes: Facts) -> Variant:
    return Variant.of(**{"recipe": "fix", "terms": terms, **changes})


def fix(
    area_in: float = 0.3, area_out: float = 3.0, *, total_variation: float | None = None, **changes: object
) -> Variant:
    """Return the simple masker beside a fixed classifier, at these weights."""
    weights = [("area_if_kept_right", area_in), ("area_if_removed_wrong", area_out)]
    weights += [] if total_variation is None else [("total_variation", total_variation)]
    return Variant.of(**{"recipe": "fix", "weights": weights, **changes})


def ca(area_in: float = 1.0, area_out: float = 10.0, **changes: object) -> Variant:
    """Return the simple masker beside a classifier that is trained alongside."""
    return fix(area_in, area_out).changed(**{"recipe": "ca", "lr": CAREFUL, **changes})


def objectives(scale: Scale) -> Study:
    """Every single objective and every pair of both sides, beside a fixed and a learning classifier."""
    kept = {"MaxClass(I)": "max_class_kept", "MinEnt(I)": "min_entropy_kept"}
    removed = {"MinClass(O)": "min_class_removed", "MaxEnt(O)": "max_entropy_removed"}
    rows = []
    for kind in ("FIX", "CA"):
        changes = _beside(kind)
        for name, term in kept.items():
            tried = tuple(one_sided(term, area, **changes) for area in (1.0, 3.0))
            rows.append(Row(name=f"{kind} {name}", candidates=tried, seeds=scale.other_seeds))
        for name, term in removed.items():
            tried = tuple(one_sided(term, area, **changes) for area in (3.0, 9.0))
            rows.append(Row(name=f"{kind} {name}", candidates=tried, seeds=scale.other_seeds))
        for first in kept:
            for second in removed:
                tried = tuple(
                    both_sides(kept[first], removed[second], *areas, **changes) for areas in _tried_areas(kind)
                )
                rows.append(Row(name=f"{kind} {first} + {second}", candidates=tried, seeds=scale.other_seeds))
    best = "MaxClass(I) + MaxEnt(O)"
    claims = [
        Claim(text="Both sides beat one side", row=f"{kind} {best}", against=f"{kind} {one}")
        for kind in ("FIX", "CA")
        for one in ("MaxClass(I)", "MaxEnt(O)")
    ]
    claims += [Claim(text="CA beats FIX", row=f"CA {best}", against=f"FIX {best}")]
    return Study(name="objectives", title="What the masker is asked for", rows=(*_naive(), *rows), claims=tuple(claims))


def classifier(scale: Scale) -> Study:
    """A fixed classifier, and ways to train one alongside; a masker that reads the features of another classifier."""
    rows = [
        Row(name="FIX", candidates=_candidates("FIX"), seeds=scale.other_seeds),
        Row(name="CA, pool off", variant=ca(history="off"), seeds=scale.other_seeds),
        Row(name="CA, skip update", variant=ca(), seeds=scale.other_seeds),
        Row(name="CA, statistics held", variant=ca(statistics="held"), seeds=scale.other_seeds),
        Row(name="CA, read with the original", variant=ca(reads=ORIGINAL), seeds=scale.other_seeds),
    ]
    for size, every in ((30, 100), (30, 10), (5, 10)):
        pool = ca(history="sample", pool_size=size, pool_every=every)
        rows.append(Row(name=f"CA, {size} of every {every}", variant=pool, seeds=scale.other_seeds))
    rows += [Row(name="reader", variant=Variant.of(recipe="reader", lr=CAREFUL), seeds=scale.other_seeds)]
    claims = (
        Claim(text="CA beats FIX", row="CA, skip update", against="FIX"),
        Claim(text="A pool of historic classifiers helps", row="CA, 30 of every 10", against="CA, skip update"),
        Claim(
            text="Its own classifier suits a masker better", row="CA, skip update", against="CA, read with the original"
        ),
    )
    return Study(name="classifier", title="Fixed or trained alongside", rows=(*_naive(), *rows), claims=claims)


def layers(scale: Scale) -> Study:
    """Which of the classifier's maps the masker reads: each alone, and with all that are deeper."""
    alone, deeper = "this layer alone", "this and all deeper ones"
    rows = [Row(name="layers 3, 4", variant=fix(), seeds=scale.other_seeds, place=3, line=deeper)]
    rows += [
        Row(
            name=f"layer {used[0]}" if len(used) == 1 else f"layers {', '.join(map(str, used))}",
            variant=fix(layers=used),
            seeds=scale.other_seeds,
            place=used[0],
            line=alone if len(used) == 1 else deeper,
        )
        for used in (*((k,) for k in range(5)), (2, 3, 4), (1, 2, 3, 4), (0, 1, 2, 3, 4))
    ]
    axis = Axis(x="layer, from the shallowest to the deepest", ticks=tuple((k, str(k)) for k in range(5)))
    claims = (Claim(text="Two deep layers beat the deepest alone", row="layers 3, 4", against="layer 4"),)
    return Study(name="layers", title="What the masker reads", rows=(*_naive(), *rows), axis=axis, claims=claims)


def masks(scale: Scale) -> Study:
    """Soft, binary, area-conditioned and class-conditioned masks, and masks cut at their top pixels."""
    concrete: JSON = {"head": "concrete"}
    settings = {
        "sigmoid": fix(),
        "Gumbel, hard, 0.1": fix(**concrete),
        "Gumbel, hard, 0.5": fix(**concrete, temperature=0.5),
        "Gumbel, soft, 0.1": fix(**concrete, hard=False),
        "Gumbel, learnable": fix(**concrete, temperature=0.5, learnable=True),
        "class-conditioned": fix(class_condition=True),
    }
    rows = [Row(name=name, variant=one, seeds=scale.other_seeds) for name, one in settings.items()]
    for share in (0.3, 0.5, 0.7):
        for power, norm in ((1.0, "l1"), (2.0, "l2")):
            conditioned = fix(area_condition=True, area_power=power, area=share)
            line = f"told its area, {norm}"
            rows.append(
                Row(name=f"{line}, {share:g}", variant=conditioned, place=share, line=line, seeds=scale.other_seeds)
            )
        cut = fix(top=share)
        rows.append(Row(name=f"top {share:g}", variant=cut, place=share, line="top pixels", seeds=scale.other_seeds))
    claims = (
        Claim(text="Gumbel masks help", row="Gumbel, hard, 0.1", against="sigmoid"),
        Claim(text="Being told the class helps", row="class-conditioned", against="sigmoid"),
        Claim(text="Being told the area beats cutting", row="told its area, l1, 0.5", against="top 0.5"),
    )
    axis = Axis(x="area of the mask", reference=("sigmoid",))
    return Study(name="masks", title="Kinds of masks", rows=(*_naive(), *rows), axis=axis, claims=claims)


def infilling(scale: Scale, *, inpainter: str | None = None) -> Study:
    """What stands in the holes while the masker learns, on both sides or on one."""
    kinds = {"mean colour": "mean", "blur": "blur", "noise": "noise", "random colour": "colour", "bank": "bank"}
    if inpainter:
        kinds["inpainter"] = inpainter
    rows = [
        Row(name=name, variant=fix(infill_kept=kind, infill_removed=kind), seeds=scale.other_seeds)
        for name, kind in kinds.items()
    ]
    last, kind = list(kinds.items())[-1] if inpainter else ("blur", "blur")
    sides = {
        f"{last}, kept side": fix(infill_kept=kind),
        f"{last}, removed side": fix(infill_removed=kind),
        f"{last}, re-masked": fix(infill_kept=kind, infill_removed=kind, remask=True),
    }
    rows += [Row(name=name, variant=one, seeds=scale.other_seeds) for name, one in sides.items()]
    claims = tuple(
        Claim(text="Counterfactual infilling helps", row=name, against="mean colour")
        for name in kinds
        if name != "mean colour"
    )
    return Study(name="infilling", title="What stands in the holes", rows=(*_naive(), *rows), claims=claims)


def few_shot(scale: Scale) -> Study:
    """How many images a class the masker needs, at the same number of steps."""
    counts = (1, 2, 5, 10, 25, 125)
    line = "examples a class"
    rows = [
        Row(name=f"{n} a class", variant=fix(per_class=n), place=n, line=line, seeds=_few(scale, n)) for n in counts
    ]
    rows += [Row(name="all", variant=fix(), seeds=scale.seeds)]
    claims = (Claim(text="All examples beat 10 a class", row="all", against="10 a class"),)
    axis = Axis(x="examples a class", log_x=True, ticks=tuple((n, str(n)) for n in counts), reference=("all",))
    rows = [*_naive(), *rows]
    return Study(name="few_shot", title="How few examples are enough", rows=tuple(rows), axis=axis, claims=claims)


def few_classes(scale: Scale, *, total: int | None = None) -> Study:
    """Of how many classes the masker needs examples, at the same number of steps; the classifier knows them all.

    total: classes of the data; rows of as many or more are left out.
    """
    counts = [count for count in (1, 2, 5, 10, 25, 100) if total is None or count < total]
    rows = [
        Row(name=f"{n} of the classes", variant=fix(classes=n), place=n, line="classes", seeds=scale.other_seeds)
        for n in counts
    ]
    rows += [Row(name="all", variant=fix(), seeds=scale.seeds)]
    most = rows[-2].name if counts else "all"
    claims = (Claim(text="All classes beat some of them", row="all", against=most),)
    axis = Axis(x="classes", log_x=True, ticks=tuple((n, str(n)) for n in counts), reference=("all",))
    title = "How few classes are enough"
    return Study(name="few_classes", title=title, rows=(*_naive(), *rows), axis=axis, claims=claims)


def regularisers(scale: Scale) -> Study:
    """Conditional and plain areas, and total variation, by their weights."""
    plain = (("max_class_kept", 1), ("max_entropy_removed", 1))
    smooth = ("total_variation", 2 * TV)
    settings = {
        "conditional areas (0.3, 3)": fix(),
        "conditional areas (0.1, 1)": fix(0.1, 1.0),
        "conditional areas (1, 10)": fix(1.0, 10.0),
        "kept side's area alone, 3": Variant.of(recipe="fix", terms=(*plain, ("area_if_kept_right", 3), smooth)),
        "removed side's area alone, 3": Variant.of(recipe="fix", terms=(*plain, ("area_if_removed_wrong", 3), smooth)),
        "plain area, 1": Variant.of(recipe="fix", terms=(*plain, ("area", 1), smooth)),
        "plain area, 3": Variant.of(recipe="fix", terms=(*plain, ("area", 3), smooth)),
        "no total variation": fix(total_variation=0.0),
        "ten times the total variation": fix(total_variation=20 * TV),
        "total variation without border": fix(tv_border=0.0),
        "Dabkowski & Gal": Variant.of(recipe="dabkowski_gal"),
    }
    rows = tuple(Row(name=name, variant=one, seeds=scale.other_seeds) for name, one in settings.items())
    return Study(name="regularisers", title="What keeps masks small and smooth", rows=(*_naive(), *rows))


def sanity(scale: Scale) -> Study:
    """Maps while weights are randomised, and maps of maskers that have learned random labels.

    A sound method's maps change with the weights of the classifier that it explains, and those learned from random
    labels are no more like the others than maps of other pictures are; two trainings of one setting are alike.
    """
    rows = [
        Row(name="gradcam", explainer="gradcam"),
        Row(name="FIX", variant=fix(), seeds=2),
        Row(name="FIX, random labels", variant=fix(shuffled=True)),
        Row(name="CA", variant=ca()),
        Row(name="CA, random labels", variant=ca(shuffled=True)),
    ]
    pairs = (("FIX", "FIX, random labels"), ("CA", "CA, random labels"), ("FIX", "CA"))
    title = "Do the maps depend on what was learned"
    return Study(name="sanity", title=title, rows=tuple(rows), checks=("FIX", "CA", "gradcam"), pairs=pairs)


def table1(scale: Scale) -> Study:
    """The paper's main table: naive boxes and CAM, single objectives, pairs, the best FIX and the best CA."""
    rows = [Row(name=name, explainer=name) for name in ("full", "center", "ground_truth", "gradcam")]
    for kind in ("FIX", "CA"):
        changes = _beside(kind)
        lone = {"MaxClass(I)": ("max_class_kept", 1.0), "MaxEnt(O)": ("max_entropy_removed", 3.0)}
        rows += [
            Row(name=f"{kind} {name}", variant=one_sided(term, area, **changes), seeds=scale.other_seeds)
            for name, (term, area) in lone.items()
        ]
        pair = both_sides("max_class_kept", "min_class_removed", *_tried_areas(kind)[0], **changes)
        rows.append(Row(name=f"{kind} MaxClass(I) + MinClass(O)", variant=pair, seeds=scale.other_seeds))
    published = Variant.of(recipe="fix", images=scale.final)
    rows += [Row(name="FIX, published weights", variant=published, seeds=scale.seeds)]
    reader = Variant.of(recipe="reader", lr=CAREFUL, images=scale.final)
    rows += [Row(name="reader", variant=reader, seeds=scale.seeds)]
    few = Variant.of(recipe="reader", lr=CAREFUL, images=scale.final, per_class=10)
    rows += [Row(name="reader, 10 a class", variant=few, seeds=scale.seeds)]
    for kind in ("FIX", "CA"):
        longer = tuple(one.changed(images=scale.final) for one in _candidates(kind))
        rows.append(Row(name=f"best {kind}", candidates=longer, seeds=scale.seeds))
    claims = [Claim(text="Maskers beat Grad-CAM", row=f"best {kind}", against="gradcam") for kind in ("FIX", "CA")]
    claims += [Claim(text="Maskers beat the centre box", row="best FIX", against="center")]
    claims += [Claim(text="CA beats FIX", row="best CA", against="best FIX")]
    claims += [Claim(text="Tuning on boxes beats the default", row="best FIX", against="reader")]
    claims += [Claim(text="All examples beat 10 a class", row="reader", against="reader, 10 a class")]
    return Study(name="table1", title="Maskers and their rivals", rows=tuple(rows), claims=tuple(claims))


def _naive() -> tuple[Row, ...]:
    return tuple(Row(name=name, explainer=name) for name in NAIVE)


def _beside(kind: str) -> JSON:
    return {} if kind == "FIX" else {"recipe": "ca", "lr": CAREFUL}


def _tried_areas(kind: str) -> tuple[tuple[float, float], ...]:
    return ((0.3, 3.0), (1.0, 5.0)) if kind == "FIX" else ((1.0, 10.0), (0.5, 5.0))


def _candidates(kind: str) -> tuple[Variant, ...]:
    return tuple((fix if kind == "FIX" else ca)(*areas) for areas in _tried_areas(kind))


def _few(scale: Scale, count: int) -> int:
    return scale.seeds if count == 10 else scale.other_seeds


STUDIES: Mapping[str, Callable[[Scale], Study]] = MappingProxyType(
    {
        "table1": table1,
        "objectives": objectives,
        "classifier": classifier,
        "layers": layers,
        "masks": masks,
        "infilling": infilling,
        "regularisers": regularisers,
        "few_shot": few_shot,
        "few_classes": few_classes,
        "sanity": sanity,
    }
)
"""Studies by name."""


def chosen_studies(
    name: str, *, inpainter: Path | None = None, classes: Callable[[], int]
) -> dict[str, Callable[[Scale], Study]]:
    """Return the studies that a word stands for: a name of `STUDIES`, "all", or a .py file with study(scale).

    inpainter: its file, for the study `infilling`. classes: counts the classes of the data, for `few_classes`.
    Errors: ValueError for another word, a missing inpainter, and a file without such a function.
    """
    if inpainter is not None and not inpainter.is_file():
        raise ValueError(f"no inpainter at {inpainter}: make one with `salmask inpainter`")
    if name.endswith(".py"):
        return {Path(name).stem: _own(Path(name))}
    if name != "all" and name not in STUDIES:
        raise ValueError(f"no study {name!r}: expected {', '.join(STUDIES)}, all, or a .py file")
    chosen = dict(STUDIES) if name == "all" else {name: STUDIES[name]}
    if inpainter is not None and "infilling" in chosen:
        chosen["infilling"] = partial(infilling, inpainter=str(inpainter))
    if "few_classes" in chosen:
        chosen["few_classes"] = partial(few_classes, total=classes())
    return chosen


def _own(path: Path) -> Callable[[Scale], Study]:
    """Return the function `study` of a user's file."""
    if not path.is_file():
        raise ValueError(f"no file {path}: expected Python with a function study(scale)")
    study = _called(path, lambda: runpy.run_path(str(path))).get("study")
    if not callable(study):
        raise ValueError(f"{path} has no function study(scale) that returns a salmask.study.Study")

    def checked(scale: Scale) -> Study:
        made = _called(path, lambda: study(scale))
        if not isinstance(made, Study):
            raise ValueError(f"study(scale) of {path} is to return a salmask.study.Study, got {type(made).__name__}")
        return made

    return checked


def _called(path: Path, code: Callable[[], T]) -> T:
    """Return what a user's code returns. Errors: ValueError naming its file where it fails."""
    try:
        return code()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} ends in {type(error).__name__}: {error}") from error
