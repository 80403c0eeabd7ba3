"""Training a masker: the game of `objective`, played over a data set, step by step (`steps`).

A run is a pure function of (data, settings, seed): batches are drawn by number, everything else that draws holds a
generator of its own, and a checkpoint holds all state. A run that was killed and resumed gives, on a CPU, the
bit-identical masker.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from lightning.fabric import Fabric

from salmask.classifier import Classifier
from salmask.classifier.inputs import checked
from salmask.data.streams import Batches
from salmask.draws import drawing_on
from salmask.files import JSON, Facts, writable_folder
from salmask.masker import Masker
from salmask.masking import MeanColour
from salmask.training.checkpoint import CHECKPOINT, fresh, read_checkpoint, scaler_state, set_scaler, write_checkpoint
from salmask.training.joint import joint_normalisation
from salmask.training.log import Log, timed
from salmask.training.precision import chosen_precision
from salmask.training.processes import check_alike, within
from salmask.training.recipes import Recipe
from salmask.training.resume import described_infill
from salmask.training.settings import Settings
from salmask.training.steps import Steps
from salmask.training.unfinished import interruptible
from salmask.types import Infill

__all__ = ["train_masker"]

POOL = "pool"


def train_masker(
    masker: Masker,
    classifier: Classifier | Sequence[Classifier],
    batches: Batches,
    images: int,
    *,
    recipe: Recipe,
    settings: Settings,
    out: str | Path,
    infill: Infill | Mapping[str, Infill] | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Masker:
    """Train a masker beside a classifier, in place, and return it. A CA recipe trains the classifier too, in place.

    classifier: of several, which are states of one network, each step draws one: the masker reads its maps and plays
    against it. They stay as they are, so the recipe is one that holds its classifier.
    batches: k -> the batches from number k on, endless and the same at every call (`data.training_batches`).
    images: how many one pass has. infill: the classifier's mean colour unless given, or
    {"kept": ..., "removed": ...}; the generators of random ones are saved too.
    out: folder for metrics.jsonl, TensorBoard events and the checkpoint. resume: go on from the checkpoint there.
    fabric: a launched Lightning Fabric, for devices, precision and several processes; one CPU or GPU if None.

    Ctrl-C waits for the end of a step, and leaves a checkpoint.
    Warns of a training that collapses: more than half of the masks empty, or full, after a third of the run.
    Raises ValueError for a masker that does not fit the classifier, a folder that holds another run, NaN losses.
    """
    members = () if isinstance(classifier, Classifier) else tuple(classifier)
    classifier = _first(members, recipe) if members else classifier
    assert isinstance(classifier, Classifier)
    masker.fits(classifier)
    recipe.check(classifier)
    recipe = recipe.at(classifier.answers)
    settings = recipe.settled(settings, masker)
    out = writable_folder(out)
    if fabric is None:
        settings = replace(settings, precision=chosen_precision(settings.precision, classifier))
        fabric = Fabric(accelerator="auto", devices=1, precision=settings.precision)  # type: ignore[arg-type]
    infill, steps = infill or MeanColour.of(classifier), settings.steps(images)
    run = Steps(masker, classifier, recipe, settings, infill, steps, fabric, members)
    start, logged = _load(run, out, images) if resume else fresh(out)
    with within(fabric):
        check_alike(fabric, classifier)
    stopping, logging = interruptible(alone=fabric.world_size == 1), Log(out, start, run.steps, fabric=fabric, **logged)
    with within(fabric), run.held(), logging as log, stopping as stops:
        if run.pool is not None and fabric.is_global_zero:
            run.pool.prune(out / POOL)  # files that an earlier run, or the lost part of this one, has left
        masker.train()
        stream = timed(islice(batches(start), run.steps - start), log.clock)
        for step, batch in zip(progress(range(start, run.steps)), stream, strict=True):
            drawn = drawing_on(fabric.device, settings.seed, step, fabric.global_rank)
            with drawn, checked(batch.images, classifier.channels_in), joint_normalisation(fabric):
                numbers = run.step(step, batch)
            log.add(numbers)
            if (step + 1) % settings.log_every == 0 or step + 1 == run.steps:
                log.write(step + 1)
            if (step + 1) % settings.save_every == 0 or step + 1 == run.steps or stops():
                _save(run, out, step + 1, images, log.state(step + 1))
            if stops() and step + 1 < run.steps:
                raise KeyboardInterrupt
    return run.finished().eval()


def _facts(run: Steps, images: int) -> JSON:
    return {
        "settings": {**asdict(run.settings), "save_every": None, "log_every": None, "compile": None},
        "recipe": run.recipe.settings(),
        "masker": run.masker.settings(),
        "images": images,
        "infill": described_infill(run.infill),
        **({"members": [one.fingerprint() for one in run.members]} if run.members else {}),
    }


def _save(run: Steps, out: Path, step: int, images: int, logged: Facts) -> None:
    """Write the checkpoint: everything that a later process needs to go on as if nothing had happened."""
    if not run.fabric.is_global_zero:
        return
    state: JSON = {
        "step": step,
        "masker": run.masker.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "generators": {name: generator.get_state() for name, generator in run.generators.items()},
        "scaler": scaler_state(run.fabric.strategy.precision),
        "log": dict(logged),
    }
    if run.averaged is not None:
        state["averaged"] = run.averaged.state_dict()
    if not run.recipe.fixed:
        state["opponent"] = run.opponent.network.state_dict()
        state["opponent_optimiser"] = run.opponent_optimiser.state_dict()
    if run.pool is not None:
        state["pool"] = run.pool.save(out / POOL)
    write_checkpoint(out, _facts(run, images), state)
    if run.pool is not None:
        run.pool.prune(out / POOL)


def _load(run: Steps, out: Path, images: int) -> tuple[int, Facts]:
    """Take up the state of a checkpoint; return its step and what was to be logged. Step 0 if there is none."""
    state = read_checkpoint(out, _facts(run, images), run.fabric.device)
    if state is None:
        return 0, {}
    try:
        _take_up(run, state, out)
    except (RuntimeError, KeyError, IndexError, TypeError) as error:  # tensors of other shapes, entries that lack
        raise ValueError(
            f"{out / CHECKPOINT} does not fit the training that it belongs to ({type(error).__name__}): "
            "delete it to start anew"
        ) from error
    return int(state["step"]), state["log"]


def _take_up(run: Steps, state: Facts, out: Path) -> None:
    run.masker.load_state_dict(state["masker"])
    run.optimiser.load_state_dict(state["optimiser"])
    if state["generators"].keys() != run.generators.keys() or not run.optimiser.state:
        raise KeyError("generators or optimiser state that are missing")
    for name, generator_state in state["generators"].items():
        run.generators[name].set_state(generator_state.cpu())
    run.set_apart({name: run.generators[name] for name in run.own}, int(state["step"]))
    set_scaler(run.fabric.strategy.precision, state["scaler"])
    if run.averaged is not None:
        run.averaged.load_state_dict(state["averaged"])
    if not run.recipe.fixed:
        run.opponent.network.load_state_dict(state["opponent"])
        run.opponent_optimiser.load_state_dict(state["opponent_optimiser"])
    if run.pool is not None:
        run.pool.load(out / POOL, state["pool"])


def _first(members: Sequence[Classifier], recipe: Recipe) -> Classifier:
    """Return the first of several classifiers. Errors: ValueError for a recipe that would train them."""
    if not recipe.fixed:
        raise ValueError(
            f"recipe {recipe.name} trains a classifier alongside, and several classifiers are met as they are: use the "
            "recipe 'fix'"
        )
    return members[0]
