"""Training a masker: the game of `objective`, played over a data set.

FIX: the classifier is held still, and both pictures go through it as one batch. CA: it is trained alongside,
step by step as in Phang, Park & Geras (2020), with the masker's gradient taken before the classifier moves.

    FIX  maps = F(x);  m = M(maps);  lower objective(play(F, x, m, y)) over M
    CA   F learns on x;  m = M(maps);  F' = F or an earlier self;  lower objective(play(F', x, m, y)) over M;
         unless F' is an earlier self: F learns on the kept and on the removed picture

A run is a pure function of (data, settings, seed): batches are drawn by number, everything else that draws holds
a generator of its own, and a checkpoint holds all state. A run that was killed and resumed gives, on a CPU, the
bit-identical masker.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from salmask.classifier import Classifier
from salmask.classifier.hold import _learning, still_statistics
from salmask.data import Batch
from salmask.draws import drawing
from salmask.files import replace_file, writable_folder
from salmask.masker import Masker
from salmask.masking import Draws, MeanColour
from salmask.objective import Score
from salmask.outcome import Outcome, play
from salmask.training.pool import ClassifierPool
from salmask.training.recipes import Recipe
from salmask.training.settings import Settings
from salmask.types import Infill

__all__ = ["LOG", "Batches", "train"]

CHECKPOINT, LOG, POOL = "checkpoint.pt", "metrics.jsonl", "pool"
Batches = Callable[[int], Iterable[Batch]]


def train(
    masker: Masker,
    classifier: Classifier,
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
    """Train a masker beside a classifier, in place, and return it.

    batches: k -> the batches from number k on, endless and the same at every call (`data.training_batches`).
    images: how many one pass has. infill: the classifier's mean colour unless given, or
    {"kept": ..., "removed": ...}; the generators of random ones are saved too.
    out: folder for metrics.jsonl, TensorBoard events and the checkpoint. resume: go on from the checkpoint there.
    fabric: a launched Lightning Fabric, for devices, precision and several processes; one CPU or GPU if None.

    Raises ValueError for a masker that does not fit the classifier, a folder that holds another run, NaN losses.
    """
    masker.fits(classifier)
    out = writable_folder(out)
    fabric = fabric or Fabric(accelerator="auto", devices=1, precision=settings.precision)  # type: ignore[arg-type]
    run = _Run(
        masker, classifier, recipe, settings, infill or MeanColour.of(classifier), settings.steps(images), fabric
    )
    start, logged = run.load(out, images) if resume else _fresh(out)
    with ExitStack() as held, _Log(out, start, fabric.is_global_zero, **logged) as log:
        held.enter_context(
            classifier.frozen()
            if recipe.fixed
            else _learning(classifier.network, hold_statistics=recipe.statistics == "held")
        )
        if run.pool is not None and fabric.is_global_zero:
            run.pool.prune(out / POOL)  # files that an earlier run, or the lost part of this one, has left
        masker.train()
        step_of = run.fixed_step if recipe.fixed else run.alongside_step
        stream = iter(batches(start))
        for step, batch in zip(progress(range(start, run.steps)), islice(stream, run.steps - start), strict=True):
            with _drawing(fabric.device, settings.seed, step, fabric.global_rank):
                numbers = step_of(step, batch)
            log.add(numbers)
            if (step + 1) % settings.log_every == 0 or step + 1 == run.steps:
                log.write(step + 1)
            if ((step + 1) % settings.save_every == 0 or step + 1 == run.steps) and fabric.is_global_zero:
                run.save(out, step + 1, images, log.state(step + 1))
    return masker.eval()


class _Run:
    """Everything that moves during training, and the two kinds of step."""

    def __init__(
        self,
        masker: Masker,
        classifier: Classifier,
        recipe: Recipe,
        settings: Settings,
        infill: Infill | Mapping[str, Infill],
        steps: int,
        fabric: Fabric,
    ) -> None:
        self.recipe, self.settings, self.steps, self.fabric, self.infill = recipe, settings, steps, fabric, infill
        self.masker, self.classifier = masker.to(fabric.device), classifier.to(fabric.device)
        self.parameters = list(masker.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        self.wrapped: Any = fabric.setup_optimizers(self.optimiser)
        # Of several processes, each draws noise and areas of its own; all of them meet the same opponent, for a
        # process that alone taught its classifier would wait for the others for ever.
        ranks = {"head": fabric.global_rank, "area": fabric.global_rank, "pool": 0, "history": 0}
        self.generators = {
            name: torch.Generator().manual_seed(1_000_003 * settings.seed + 101 * place + rank)
            for place, (name, rank) in enumerate(ranks.items())
        }
        if hasattr(masker.head, "generator"):
            masker.head.generator = self.generators["head"]  # type: ignore[assignment]
        for side, one in infill.items() if isinstance(infill, Mapping) else [("infill", infill)]:
            if isinstance(one, Draws) and one.generator is not None:
                self.generators[side] = one.generator
        self.balance = recipe.balance.start(classifier.num_classes, fabric.device) if recipe.balance else None
        self.pool: ClassifierPool | None = None
        if not recipe.fixed:
            self.weights = list(classifier.network.parameters())
            self.classifier_optimiser = torch.optim.SGD(
                self.weights,
                lr=settings.classifier_lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
            self.classifier_wrapped: Any = fabric.setup_optimizers(self.classifier_optimiser)
            if recipe.history == "sample":
                self.pool = ClassifierPool(
                    classifier, size=recipe.pool_size, every=recipe.pool_every, generator=self.generators["pool"]
                )

    def fixed_step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """One step of FIX: the classifier lends gradients to the pictures and is not touched."""
        self._schedule(step)
        images, targets = self._placed(batch)
        with self.fabric.autocast():
            with torch.no_grad():
                clean, maps = self.classifier.features(images)
            small, outcome = self._play(self.classifier, images, targets, maps, clean, together=True)
        score = self._objective()(outcome)
        self._learn(score)
        return self._numbers(score, outcome, small)

    def alongside_step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """One step of CA: the classifier learns on the clean pictures, the masker from both pictures, and then
        the classifier from both too, unless history says otherwise."""
        self._schedule(step)
        images, targets = self._placed(batch)
        if self.pool is not None:
            self.pool.offer(step, self.classifier.network)

        with self.fabric.autocast():
            clean, maps = self.classifier.features(images)
        self._teach(F.cross_entropy(clean, targets))

        opponent, learns = self._opponent()
        with self.fabric.autocast(), self._statistics(opponent):
            maps = [tap.detach() for tap in maps]
            small, outcome = self._play(opponent, images, targets, maps, clean.detach(), together=False)
        score = self._objective()(outcome)
        self._learn(score, keep_graph=learns)
        if learns:
            self._teach(sum(F.cross_entropy(logits, targets) for logits in _sides(outcome)))  # type: ignore[arg-type]
        return self._numbers(score, outcome, small)

    def _play(
        self,
        classifier: Classifier,
        images: Tensor,
        targets: Tensor,
        maps: Sequence[Tensor],
        clean: Tensor,
        *,
        together: bool,
    ) -> tuple[Tensor, Outcome]:
        size = (images.shape[-2], images.shape[-1])
        areas = self._draw_areas(len(images)) if self.masker.area_condition else None
        classes = targets if self.masker.classes else None
        small = self.masker.small(maps, size, areas=areas, targets=classes).float()
        masks = self.masker.enlarge(small, size)
        outcome = play(
            classifier,
            images,
            masks,
            targets,
            infill=self.infill,
            clean=clean,
            sides=self.recipe.objective.sides,
            together=together,
        )
        outcome = replace(outcome, areas=areas)
        zoom = self.masker.zoom(size)
        return small, outcome if zoom is None else replace(outcome, masks=small, zoom=zoom)

    def _learn(self, score: Score, *, keep_graph: bool = False) -> None:
        """Move the masker down its objective; gradients reach the masker alone."""
        self.wrapped.zero_grad()
        self.fabric.backward(score.total.mean(), inputs=self.parameters, retain_graph=keep_graph)
        self._average(self.parameters)
        self.fabric.clip_gradients(self.masker, self.wrapped, max_norm=self.settings.clip, error_if_nonfinite=False)
        self.wrapped.step()

    def _teach(self, loss: Tensor) -> None:
        """Move the classifier down a cross-entropy; gradients reach the classifier alone."""
        self.classifier_wrapped.zero_grad()
        self.fabric.backward(loss, inputs=self.weights)
        self._average(self.weights)
        self.classifier_wrapped.step()

    def _opponent(self) -> tuple[Classifier, bool]:
        """Return the classifier that meets the masked pictures, and whether it learns from them."""
        current = self.recipe.history == "off" or _uniform(self.generators["history"]) > self.recipe.historic
        if current or self.pool is None:
            return self.classifier, current
        return self.pool.draw(), False

    def _statistics(self, opponent: Classifier) -> Any:
        return still_statistics(opponent.network) if self.recipe.statistics == "clean" else ExitStack()

    def _objective(self) -> Any:
        steering, objective = self.recipe.balance, self.recipe.objective
        if steering is None or self.balance is None:
            return objective
        return steering.weigh(objective, self.balance, self.classifier.num_classes)

    def _numbers(self, score: Score, outcome: Outcome, small: Tensor) -> dict[str, Tensor]:
        """Return what is logged, as tensors, so that no step waits for the device; let the price of area move."""
        numbers = {"loss": score.total.mean(), "mask_mean": small.mean(), "acc_whole": outcome.clean_right}
        if outcome.kept is not None:
            numbers["acc_kept"] = outcome.kept_right
        if outcome.removed is not None:
            numbers["acc_removed"] = outcome.removed.argmax(1) == outcome.targets
        numbers |= {name: value.mean() for name, value in score.terms.items()}
        steering = self.recipe.balance
        if steering is not None and self.balance is not None:
            self.balance = self._over_processes(steering.step(self.balance, outcome))
            numbers |= {"price_of_area": steering.price(self.balance, self.classifier.num_classes)}
        return {name: value.detach().float().mean() for name, value in numbers.items()}

    def _placed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        images = batch.images.to(self.fabric.device, non_blocking=True).contiguous(memory_format=layout)
        return images, batch.targets.to(self.fabric.device, non_blocking=True)

    def _draw_areas(self, count: int) -> Tensor:
        low, high = self.settings.areas
        drawn = torch.rand(count, generator=self.generators["area"])
        return (low + (high - low) * drawn).to(self.fabric.device)

    def _schedule(self, step: int) -> None:
        factor = self.settings.rate(step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * factor
        if not self.recipe.fixed:
            for group in self.classifier_optimiser.param_groups:
                group["lr"] = self.settings.classifier_lr * factor

    def _average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients over processes. By hand, as several passes share a backward that names its inputs."""
        if self.fabric.world_size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = self._over_processes(torch.cat([grad.flatten() for grad in grads]))
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def _over_processes(self, value: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.fabric.world_size == 1:
            return value
        mean = self.fabric.all_reduce(value, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean

    # Checkpoints

    def _fixed_facts(self, images: int) -> dict[str, Any]:
        return {
            "settings": {**asdict(self.settings), "save_every": None, "log_every": None},
            "recipe": self.recipe.settings(),
            "masker": self.masker.settings(),
            "images": images,
        }

    def save(self, out: Path, step: int, images: int, logged: Mapping[str, Any]) -> None:
        """Write the checkpoint: everything that a later process needs to go on as if nothing had happened."""
        state: dict[str, Any] = {
            "step": step,
            "facts": json.dumps(self._fixed_facts(images), sort_keys=True),
            "masker": self.masker.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "balance": self.balance,
            "scaler": _scaler_state(self.fabric),
            "log": dict(logged),
        }
        if not self.recipe.fixed:
            state["classifier"] = self.classifier.network.state_dict()
            state["classifier_optimiser"] = self.classifier_optimiser.state_dict()
        if self.pool is not None:
            state["pool"] = self.pool.save(out / POOL)
        replace_file(out / CHECKPOINT, lambda path: torch.save(state, path))
        if self.pool is not None:
            self.pool.prune(out / POOL)

    def load(self, out: Path, images: int) -> tuple[int, Mapping[str, Any]]:
        """Take up the state of a checkpoint; return its step and what was to be logged. Step 0 if there is none."""
        path = out / CHECKPOINT
        if not path.exists():
            return 0, {}
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
        except Exception as error:
            kind = type(error).__name__  # what torch says of it fills a page, and advises to trust the file
            raise ValueError(f"{path} cannot be read as a checkpoint ({kind}): delete it to start anew") from error
        earlier, asked = json.loads(state["facts"]), json.loads(json.dumps(self._fixed_facts(images)))
        if earlier != asked:
            raise ValueError(f"{path} belongs to another run: {_first_difference(earlier, asked)}; name another folder")
        self.masker.load_state_dict(state["masker"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name, generator_state in state["generators"].items():
            self.generators[name].set_state(generator_state.cpu())
        self.balance = state["balance"]
        _set_scaler(self.fabric, state["scaler"])
        if not self.recipe.fixed:
            self.classifier.network.load_state_dict(state["classifier"])
            self.classifier_optimiser.load_state_dict(state["classifier_optimiser"])
        if self.pool is not None:
            self.pool.load(out / POOL, state["pool"])
        return int(state["step"]), state["log"]


class _Log:
    """Means of what the steps say, as JSON lines and TensorBoard events; a resumed run cuts what it repeats."""

    def __init__(
        self, out: Path, start: int, active: bool, *, sums: Mapping[str, Tensor] = MappingProxyType({}), count: int = 0
    ) -> None:
        self.path, self.active = out / LOG, active
        self.sums, self.count = dict(sums), count
        if active:
            kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= start]
            replace_file(self.path, lambda path: path.write_text("".join(kept)))
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def add(self, numbers: Mapping[str, Tensor]) -> None:
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.count += 1

    def write(self, step: int) -> None:
        """Bring the means over since the last line to the host, once for all, and write them."""
        if not self.active:
            return
        values = dict(zip(self.sums, (torch.stack([*self.sums.values()]) / self.count).tolist(), strict=True))
        self.sums, self.count = {}, 0
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **{name: round(value, 6) for name, value in values.items()}}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        _refuse_nan(values["loss"], step)

    def state(self, step: int) -> dict[str, Any]:
        """Return what is not written yet, for a checkpoint; there is none of a run whose loss is not a number."""
        if "loss" in self.sums:
            _refuse_nan(float(self.sums["loss"]), step)
        return {"sums": self.sums, "count": self.count}

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.active:
            self.board.close()


@contextmanager
def _drawing(device: torch.device, *key: int) -> Iterator[None]:
    """Let layers that draw from torch's global generators, such as dropout, draw from `key`."""
    cuda = device.type == "cuda"
    with drawing(*key), torch.random.fork_rng(devices=[device] if cuda else []):
        if cuda:
            torch.cuda.manual_seed(int(torch.randint(2**62, ())))
        yield


def _sides(outcome: Outcome) -> list[Tensor]:
    return [logits for logits in (outcome.kept, outcome.removed) if logits is not None]


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _fresh(out: Path) -> tuple[int, Mapping[str, Any]]:
    if (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds a run already: resume it (--resume), or name another folder")
    return 0, {}


def _refuse_nan(loss: float, step: int) -> None:
    if loss != loss:
        raise ValueError(
            f"the loss is not a number at step {step}: are there NaNs in the images or the classifier, "
            "or is the learning rate too high? Nothing after the last checkpoint was kept"
        )


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a file; the last one may have been cut off by a kill."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


def _first_difference(earlier: dict[str, Any], asked: dict[str, Any], path: str = "") -> str:
    for key in sorted(earlier.keys() | asked.keys()):
        one, other = earlier.get(key), asked.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and one != other:
            return _first_difference(one, other, f"{path}{key}.")
        if one != other:
            return f"its {path}{key} is {one!r}, asked for is {other!r}"
    return "its settings differ"


def _scaler_state(fabric: Fabric) -> dict[str, Any]:
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return {} if scaler is None else scaler.state_dict()


def _set_scaler(fabric: Fabric, state: dict[str, Any]) -> None:
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if scaler is not None and state:
        scaler.load_state_dict(state)
