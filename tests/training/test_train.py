"""The loops: what moves and what stays, CA written out, the pool's modes, killing and resuming to the bit."""

import copy
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import salmask.training.steps
from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.classifier.hold import still_statistics
from salmask.data import Batch, no_boxes
from salmask.masker import Concrete, Masker
from salmask.masking import MeanColour, Noise, keep, remove
from salmask.objective import Objective
from salmask.outcome import Outcome
from salmask.terms import area
from salmask.training.log import Log, collapse, extremes, numbers_of
from salmask.training.recipes import RECIPES, Recipe
from salmask.training.settings import Settings
from salmask.training.train import train_masker
from salmask.types import Infill

SIZE, BATCH, IMAGES = 16, 6, 12
TWO_SIDED = RECIPES["fix"].objective
ALONGSIDE = Recipe(TWO_SIDED, fixed=False)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def batch_number(k: int, size: int = SIZE) -> Batch:
    g = seeded(1000 + k)
    images = torch.rand(BATCH, 3, size, size, generator=g)
    targets = torch.randint(4, (BATCH,), generator=g)
    return Batch([str(i) for i in range(BATCH)], images, targets, [no_boxes()] * BATCH, [None] * BATCH)


def stream(start: int) -> Iterator[Batch]:
    while True:
        yield batch_number(start)
        start += 1


class Dying(Exception):  # noqa: N818
    """The process is killed here."""


def until(last: int) -> Callable[[int], Iterator[Batch]]:
    def dying(start: int) -> Iterator[Batch]:
        for k in range(start, last):
            yield batch_number(k)
        raise Dying

    return dying


def new_classifier(net: Callable[[], nn.Module] = SmallNet) -> Classifier:
    torch.manual_seed(0)
    layers = ("stem", "middle", "deep")
    return Classifier(net(), mean=(0.5, 0.4, 0.3), std=(0.2,) * 3, layers=layers, image_size=SIZE)


def new_masker(classifier: Classifier, **options) -> Masker:
    return Masker.for_classifier(classifier, **{"layers": (1, 2), "width": 8, "generator": seeded(), **options})


SETTINGS = Settings(
    epochs=4,
    batch_size=BATCH,
    log_every=2,
    save_every=2,
    lr=0.01,
    classifier_lr=0.01,
    weight_decay=0.03,  # strong, so that a step without it is seen
    precision="32-true",
)


def run(
    out: Path,
    recipe: Recipe = RECIPES["fix"],
    settings: Settings = SETTINGS,
    *,
    batches: Callable[[int], Iterable[Batch]] = stream,
    infill: Infill | None = None,
    resume: bool = False,
    net: Callable[[], nn.Module] = SmallNet,
    **options,
) -> tuple[Masker, Classifier]:
    classifier = new_classifier(net)
    masker = new_masker(classifier, **options)
    train_masker(
        masker, classifier, batches, IMAGES, recipe=recipe, settings=settings, out=out, infill=infill, resume=resume
    )
    return masker, classifier


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# What moves and what stays


@pytest.mark.parametrize("training", [True, False])
def test_fix_leaves_the_classifier_to_the_bit_and_gives_its_weights_no_gradient(tmp_path, training) -> None:
    classifier = new_classifier()
    classifier.network.train(training)
    classifier.network.deep.weight.requires_grad_(False)
    before = copy.deepcopy(classifier.network)
    masker = new_masker(classifier)
    start = copy.deepcopy(masker)
    wanted = []

    def spy(images: Tensor, holes: Tensor) -> Tensor:
        wanted.append(any(p.requires_grad or p.grad is not None for p in classifier.network.parameters()))
        wanted.append(classifier.network.training)
        return images.new_full((1, 3, 1, 1), 0.4)

    trained = train_masker(
        masker, classifier, stream, IMAGES, recipe=RECIPES["fix"], settings=SETTINGS, out=tmp_path, infill=spy
    )
    assert trained is masker and not masker.training
    assert wanted and not any(wanted)
    assert equal(classifier.network, before)
    assert [m.training for m in classifier.network.modules()] == [training] * len(list(before.modules()))
    assert [p.requires_grad for p in classifier.network.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in classifier.network.parameters())
    assert not equal(masker, start)


def test_ca_trains_the_classifier_and_leaves_its_modes_gradients_and_hooks_as_they_were(tmp_path) -> None:
    classifier = new_classifier()
    classifier.network.eval()
    classifier.network.stem.train()
    gradient = torch.ones_like(classifier.network.head.weight)
    classifier.network.head.weight.grad = gradient
    modes = [m.training for m in classifier.network.modules()]
    before = copy.deepcopy(classifier.network)
    for out, batches in ((tmp_path / "whole", stream), (tmp_path / "killed", until(3))):
        try:
            train_masker(
                new_masker(classifier), classifier, batches, IMAGES, recipe=ALONGSIDE, settings=SETTINGS, out=out
            )
        except Dying:
            assert out.name == "killed"
        assert [m.training for m in classifier.network.modules()] == modes
        assert classifier.network.head.weight.grad is gradient and bool((gradient == 1).all())
        assert classifier.network.stem[0].weight.grad is None
        assert not any(m._forward_hooks for m in classifier.network.modules())
    assert not equal(classifier.network, before)


def test_reader_leaves_the_classifier_to_the_bit_and_teaches_a_copy_of_it(tmp_path) -> None:
    classifier = new_classifier()
    classifier.network.requires_grad_(False)  # as users hold a network that is in use; the copy learns all the same
    before, masker = copy.deepcopy(classifier.network), new_masker(classifier)
    train_masker(masker, classifier, stream, IMAGES, recipe=RECIPES["reader"], settings=SETTINGS, out=tmp_path)
    assert equal(classifier.network, before)
    assert not any(p.requires_grad or p.grad is not None for p in classifier.network.parameters())
    opponent = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["opponent"]
    for name, weight in before.named_parameters():
        assert not torch.equal(opponent[name], weight)


def test_a_classifier_that_is_partly_frozen_is_trained_alongside_in_its_other_part(tmp_path) -> None:
    classifier = new_classifier()
    classifier.network.stem.requires_grad_(False)
    before = copy.deepcopy(classifier.network)
    train_masker(new_masker(classifier), classifier, stream, IMAGES, recipe=ALONGSIDE, settings=SETTINGS, out=tmp_path)
    assert torch.equal(classifier.network.stem[0].weight, before.stem[0].weight)
    assert not torch.equal(classifier.network.head.weight, before.head.weight)


def test_a_classifier_that_is_wholly_frozen_cannot_be_trained_alongside(tmp_path) -> None:
    classifier = new_classifier()
    classifier.network.requires_grad_(False)
    with pytest.raises(ValueError, match="none of its weights requires gradients: unfreeze some"):
        train_masker(
            new_masker(classifier), classifier, stream, IMAGES, recipe=RECIPES["ca"], settings=SETTINGS, out=tmp_path
        )
    assert not any(tmp_path.iterdir())


def test_averaged_weights_are_the_running_mean_of_those_of_all_steps(tmp_path, monkeypatch) -> None:
    seen: list[dict[str, Tensor]] = []
    step = salmask.training.steps.Steps.step

    def spy(self, *rest):
        numbers = step(self, *rest)
        seen.append({name: value.clone() for name, value in self.masker.state_dict().items()})
        return numbers

    monkeypatch.setattr(salmask.training.steps.Steps, "step", spy)
    masker, classifier = run(tmp_path, settings=replace(SETTINGS, averaging=0.3))
    mean = new_masker(classifier).final.weight.detach().double()
    for k, state in enumerate(seen):
        kept = min(0.3, (1 + k) / (10 + k))
        mean = kept * mean + (1 - kept) * state["final.weight"]
    torch.testing.assert_close(masker.final.weight.detach().double(), mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(masker.final.weight, seen[-1]["final.weight"])


def test_every_recipe_trains(tmp_path) -> None:
    for name, recipe in RECIPES.items():
        masker, classifier = run(tmp_path / name, recipe, replace(SETTINGS, epochs=1, log_every=1))
        assert equal(classifier.network, new_classifier().network) == recipe.spares_classifier
        numbers = lines(tmp_path / name)
        assert [line["step"] for line in numbers] == [1, 2]
        assert set(recipe.objective.terms) | {"loss", "mask_mean", "acc_whole"} <= numbers[0].keys()
        assert all(p.isfinite().all() for p in masker.parameters())


# The loops, written out


def reference(recipe: Recipe, steps: int, *, learns: bool) -> tuple[Masker, Classifier]:
    """Spec 1.5 with the formulas of spec 1.2 and 1.3 at the picture's own resolution, one statement at a time."""
    classifier = new_classifier()
    masker = new_masker(classifier)
    reader = new_classifier()
    reader.network.eval()
    fixed = recipe.fixed
    classifier.network.train(not fixed)
    masker.train()
    adam = torch.optim.Adam(masker.parameters(), lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay)
    sgd = torch.optim.SGD(
        classifier.network.parameters(), lr=SETTINGS.classifier_lr, momentum=0.9, weight_decay=SETTINGS.weight_decay
    )
    weights = {name: weight for name, (weight, _) in recipe.at(4).objective.terms.items()}
    infill = MeanColour((0.5, 0.4, 0.3))
    for k in range(steps):
        factor = 0.1 ** sum(k >= share * SETTINGS.steps(IMAGES) for share in SETTINGS.decay_at)
        adam.param_groups[0]["lr"], sgd.param_groups[0]["lr"] = SETTINGS.lr * factor, SETTINGS.classifier_lr * factor
        batch = batch_number(k)
        x, y = batch.images, batch.targets
        clean, maps = classifier.features(x)
        if not fixed:
            sgd.zero_grad()
            F.cross_entropy(clean, y).backward()
            sgd.step()
        if recipe.reader == "given":
            maps = reader.features(x).maps
        m = masker([tap.detach() for tap in maps], (SIZE, SIZE))
        inside, outside = classifier.logits(keep(x, m, infill)), classifier.logits(remove(x, m, infill))
        c = (clean.argmax(1) == y).float()
        s = (inside.argmax(1) == y).float()
        confused = c * (outside.argmax(1) != y).float()
        entropy = -(outside.softmax(1) * outside.log_softmax(1)).sum(1)
        area = m.mean((1, 2, 3))
        tv = (m.diff(dim=2) ** 2).sum() + (m.diff(dim=3) ** 2).sum()
        tv = tv + 0.3 * sum((edge**2).sum() for edge in (m[:, :, 0], m[:, :, -1], m[..., 0], m[..., -1]))
        total = (
            F.cross_entropy(inside, y)
            - (c * entropy).mean()
            - weights["area_if_kept_right"] * F.relu(s - area).mean()
            - weights["area_if_removed_wrong"] * F.relu(confused - area).mean()
            + weights["total_variation"] * tv / (2 * len(x))
        )
        down = torch.autograd.grad(total, list(masker.parameters()), retain_graph=True)
        if not fixed and learns:
            taught = F.cross_entropy(inside, y) + F.cross_entropy(outside, y)
            sgd.zero_grad()
            taught.backward(inputs=list(classifier.network.parameters()))
            sgd.step()
        for parameter, gradient in zip(masker.parameters(), down, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(masker.parameters(), 10.0)
        adam.step()
    return masker, classifier


@pytest.mark.parametrize(
    ("recipe", "learns"),
    [
        (RECIPES["fix"], False),
        (ALONGSIDE, True),
        (replace(ALONGSIDE, history="skip_update", historic=0.0), True),
        (replace(ALONGSIDE, history="skip_update", historic=1.0), False),
        (replace(RECIPES["reader"], historic=0.0), True),
        (replace(RECIPES["reader"], historic=1.0), False),
    ],
)
def test_a_run_equals_the_published_step_written_out(tmp_path, recipe, learns) -> None:
    masker, classifier = run(tmp_path, recipe)
    slow_masker, slow_classifier = reference(recipe, SETTINGS.steps(IMAGES), learns=learns)
    if recipe.reader == "given":
        slow_classifier = new_classifier()  # the opponent has learnt, and is gone
    for ours, theirs in ((masker, slow_masker), (classifier.network, slow_classifier.network)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_reference_tells_learning_from_not_learning_and_the_order_of_steps(tmp_path) -> None:
    taught, skipped = (reference(ALONGSIDE, 8, learns=learns)[1].network.head.weight for learns in (True, False))
    assert not torch.allclose(taught, skipped, rtol=1e-3, atol=1e-3)


def test_one_batch_of_both_sides_equals_two_batches_in_fix(tmp_path, monkeypatch) -> None:
    together, _ = run(tmp_path / "one")
    play = salmask.training.steps.play
    monkeypatch.setattr(salmask.training.steps, "play", lambda *a, **k: play(*a, **{**k, "together": False}))
    apart, _ = run(tmp_path / "two")
    for a, b in zip(together.state_dict().values(), apart.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_area_and_variation_on_the_grid_equal_those_at_full_size(tmp_path, monkeypatch) -> None:
    on_grid, _ = run(tmp_path / "grid")
    monkeypatch.setattr(Masker, "zoom", lambda self, size: None)
    full, _ = run(tmp_path / "full")
    for a, b in zip(on_grid.state_dict().values(), full.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_the_gradient_is_clipped_at_its_norm(tmp_path) -> None:
    settings = [replace(SETTINGS, clip=clip, weight_decay=0.0) for clip in (10.0, 1e-9)]
    free, tight = (run(tmp_path / str(given.clip), settings=given)[0] for given in settings)
    start = new_masker(new_classifier())
    moved = [float((m.final.weight - start.final.weight).detach().abs().max()) for m in (free, tight)]
    assert moved[1] < 0.1 * moved[0]  # Adam's epsilon stops a gradient of 1e-9


def test_rates_fall_to_a_tenth_after_each_third_of_the_run() -> None:
    rates = [Settings().rate(step, 90) for step in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_epochs_are_full_passes() -> None:
    assert Settings(epochs=12, batch_size=72).steps(1_281_167) == 213_528
    assert Settings(epochs=0.5, batch_size=10).steps(100) == 5
    assert Settings(epochs=0.001, batch_size=10).steps(10) == 1


def test_as_many_batches_are_read_as_the_passes_need(tmp_path) -> None:
    read = []

    def counted(start: int) -> Iterator[Batch]:
        for batch in stream(start):
            read.append(len(batch.images))
            yield batch

    run(tmp_path, batches=counted)
    assert sum(read) == SETTINGS.epochs * IMAGES


def test_averaging_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"averaging is a share in \[0, 1\), got 1\.0"):
        Settings(averaging=1.0)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "lr", "classifier_lr", "clip", "log_every", "save_every"])
def test_settings_must_be_positive(name) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got 0"):
        Settings(**{name: 0})


# The classifier's part: history


def spied(monkeypatch) -> list[tuple[Classifier, bool, dict[str, Tensor]]]:
    """Note who meets the masked pictures, in which mode, with which weights."""
    met = []
    play = salmask.training.steps.play

    def spy(classifier: Classifier, *rest, **options):
        state = {k: v.clone() for k, v in classifier.network.state_dict().items()}
        met.append((classifier, classifier.network.training, state))
        return play(classifier, *rest, **options)

    monkeypatch.setattr(salmask.training.steps, "play", spy)
    return met


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_sample_shows_the_masked_pictures_to_an_earlier_self_that_does_not_learn(tmp_path, monkeypatch) -> None:
    met = spied(monkeypatch)
    first = {k: v.clone() for k, v in new_classifier().network.state_dict().items()}
    recipe = replace(ALONGSIDE, history="sample", historic=1.0, pool_every=10**9)
    _, classifier = run(tmp_path, recipe)
    assert len(met) == SETTINGS.steps(IMAGES)
    for opponent, training, state in met:
        assert opponent is not classifier and not training
        assert same_state(state, first)  # the first classifier, before its first step, and for ever
        assert not any(p.requires_grad for p in opponent.network.parameters())
    # The live network has learnt on clean pictures alone.
    alone = new_classifier()
    sgd = torch.optim.SGD(alone.network.parameters(), lr=0.01, momentum=0.9, weight_decay=SETTINGS.weight_decay)
    alone.network.train()
    for k in range(SETTINGS.steps(IMAGES)):
        sgd.param_groups[0]["lr"] = 0.01 * SETTINGS.rate(k, SETTINGS.steps(IMAGES))
        batch = batch_number(k)
        sgd.zero_grad()
        F.cross_entropy(alone.logits(batch.images), batch.targets).backward()
        sgd.step()
    for a, b in zip(classifier.network.state_dict().values(), alone.network.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("history", "historic"), [("off", 1.0), ("skip_update", 1.0), ("sample", 0.0)])
def test_the_other_modes_show_them_to_the_current_classifier_in_train_mode(
    tmp_path, monkeypatch, history, historic
) -> None:
    met = spied(monkeypatch)
    _, classifier = run(tmp_path, replace(ALONGSIDE, history=history, historic=historic))
    assert all(opponent is classifier and training for opponent, training, _ in met)


def test_sample_draws_about_as_often_as_it_is_told_and_from_several_selves(tmp_path, monkeypatch) -> None:
    met = spied(monkeypatch)
    recipe = replace(ALONGSIDE, history="sample", historic=0.5, pool_every=4, pool_size=3)
    _, classifier = run(tmp_path, recipe, replace(SETTINGS, epochs=30, save_every=100))
    drawn = [state for opponent, _, state in met if opponent is not classifier]
    assert 0.3 < len(drawn) / len(met) < 0.7
    assert len({float(state["head.weight"][0, 0]) for state in drawn}) > 2
    assert not (tmp_path / "pool").exists() or len(list((tmp_path / "pool").iterdir())) <= 3


def test_clean_statistics_remember_the_clean_pictures_alone(tmp_path) -> None:
    settings = replace(SETTINGS, epochs=0.5)
    twin = new_classifier()
    twin.network.train()
    twin.logits(batch_number(0).images)
    _, mixed = run(tmp_path / "mixed", ALONGSIDE, settings)
    _, clean = run(tmp_path / "clean", replace(ALONGSIDE, statistics="clean"), settings)
    theirs = twin.network.stem[1].running_mean
    torch.testing.assert_close(clean.network.stem[1].running_mean, theirs)
    assert not torch.allclose(mixed.network.stem[1].running_mean, theirs, rtol=1e-3)


def test_held_statistics_are_those_that_the_classifier_came_with(tmp_path) -> None:
    first = new_classifier().network.stem[1]
    _, held = run(tmp_path, replace(ALONGSIDE, statistics="held"), replace(SETTINGS, epochs=0.5))
    last = held.network.stem[1]
    assert torch.equal(last.running_mean, first.running_mean) and torch.equal(last.running_var, first.running_var)
    assert not torch.equal(last.weight, first.weight)  # the rest learns


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="statistics is one of all, clean, held, got 'mine'"):
        replace(ALONGSIDE, statistics="mine")


def test_still_statistics_come_back_to_life() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None)).train()
    with pytest.raises(Dying), still_statistics(net):
        net(torch.rand(4, 3, 5, 5))
        assert net[0].running_mean.eq(0).all() and net[1].running_mean.eq(0).all()
        raise Dying
    assert (net[0].momentum, net[1].momentum) == (0.1, None)


# Killing and resuming


class WithDropout(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


SAMPLE = replace(RECIPES["casm_l100"], pool_every=2, pool_size=2, objective=TWO_SIDED)
RUNS = {
    "fix": {},
    "reader": {"recipe": RECIPES["reader"]},
    "averaged": {"recipe": RECIPES["reader"], "settings": replace(SETTINGS, averaging=0.8)},
    "ca": {"recipe": RECIPES["ca"]},
    "sample": {"recipe": SAMPLE},
    "sizes": {"recipe": RECIPES["reader"], "settings": replace(SETTINGS, sizes=(16, 24))},
    "concrete": {"head": lambda: Concrete(0.5, learnable=True)},
    "areas and classes": {"area_condition": True, "classes": 4},
    "noise": {"infill": lambda: Noise(seeded(5))},
    "dropout": {"recipe": ALONGSIDE, "net": WithDropout},
}


def options_of(name: str) -> dict[str, object]:
    return {key: value() if key in {"head", "infill"} else value for key, value in RUNS[name].items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_and_resumed_is_the_same_to_the_bit(tmp_path, name) -> None:
    torch.manual_seed(1)
    masker, classifier = run(tmp_path / "whole", **options_of(name))
    for last in (1, 5):  # before the first checkpoint, and between two
        out = tmp_path / f"killed after {last}"
        torch.manual_seed(last)
        with pytest.raises(Dying):
            run(out, batches=until(last), **options_of(name))
        again, again_classifier = run(out, resume=True, **options_of(name))
        assert equal(masker, again)
        assert equal(classifier.network, again_classifier.network)
        assert lines(out) == lines(tmp_path / "whole")


def test_lines_are_the_same_also_where_checkpoints_fall_between_them(tmp_path) -> None:
    settings = replace(SETTINGS, log_every=3, save_every=2)
    run(tmp_path / "whole", settings=settings)
    with pytest.raises(Dying):
        run(tmp_path / "killed", settings=settings, batches=until(5))
    run(tmp_path / "killed", settings=settings, resume=True)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "killed")] == [3, 6, 8]


def test_a_run_that_was_killed_twice_and_one_that_was_finished_resume_too(tmp_path) -> None:
    masker, _ = run(tmp_path / "whole", SAMPLE)
    for last in (3, 5):
        with pytest.raises(Dying):
            run(tmp_path / "killed", SAMPLE, batches=until(last), resume=True)
    assert equal(run(tmp_path / "killed", SAMPLE, resume=True)[0], masker)
    finished, _ = run(tmp_path / "killed", SAMPLE, resume=True)  # nothing is left to do
    assert equal(finished, masker)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def paused(start: int) -> Iterator[Batch]:
    """The stream, so slowly that a kill falls somewhere in it, and never to its end."""
    for k in range(start, SETTINGS.steps(IMAGES) - 1):
        time.sleep(0.02)
        yield batch_number(k)
    time.sleep(600)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes that are born running")
@pytest.mark.parametrize("name", ["reader", "sample"])
def test_a_process_that_is_really_killed_is_taken_up_to_the_bit(tmp_path, name) -> None:
    settings, out = replace(SETTINGS, save_every=1, log_every=1), tmp_path / "killed"
    masker, classifier = run(tmp_path / "whole", settings=settings, **options_of(name))
    for moment in (0.0, 0.03, 0.07):
        process = multiprocessing.get_context("fork").Process(
            target=run,
            args=(out,),
            kwargs={"settings": settings, "batches": paused, "resume": True, **options_of(name)},
        )
        process.start()
        for _ in range(3000):
            if (out / "checkpoint.pt").exists():
                break
            time.sleep(0.01)
        time.sleep(moment)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and (out / "checkpoint.pt").exists()
    again, again_classifier = run(out, settings=settings, resume=True, **options_of(name))
    assert equal(masker, again) and equal(classifier.network, again_classifier.network)
    assert lines(out) == lines(tmp_path / "whole")


def test_tensorboard_shows_the_lines_once_also_after_a_resume(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = replace(SETTINGS, save_every=4)
    with pytest.raises(Dying):
        run(tmp_path, settings=settings, batches=until(7))  # line 6 is written, and will be once more
    files = [file.name for file in (tmp_path / "tensorboard").iterdir()]
    while any(f".{int(time.time())}." in name for name in files):  # TensorBoard reads files in the order of seconds
        time.sleep(0.05)
    run(tmp_path, settings=settings, resume=True)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in lines(tmp_path)[0].keys() - {"step"}:
        shown = {event.step: event.value for event in board.Scalars(name)}
        assert len(shown) == len(board.Scalars(name))
        assert shown == pytest.approx({line["step"]: line[name] for line in lines(tmp_path)}, rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("name", ["fix", "sample"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_kill_in_the_middle_of_a_write_loses_no_checkpoint(tmp_path, monkeypatch, name, call) -> None:
    masker, classifier = run(tmp_path / "whole", **options_of(name))
    save, calls = torch.save, []

    def half(state: object, path: Path) -> None:
        calls.append(path)
        save(state, path)
        if len(calls) == call:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            raise Dying

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Dying):
        run(tmp_path / "killed", **options_of(name))
    monkeypatch.setattr(torch, "save", save)
    again, again_classifier = run(tmp_path / "killed", resume=True, **options_of(name))
    assert equal(masker, again) and equal(classifier.network, again_classifier.network)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_what_a_kill_left_in_the_pool_is_not_taken_for_a_member(tmp_path) -> None:
    masker, _ = run(tmp_path / "whole", SAMPLE)
    out = tmp_path / "killed"
    with pytest.raises(Dying):
        run(out, SAMPLE, replace(SETTINGS, seed=9), batches=until(3))
    (out / "checkpoint.pt").unlink()  # "delete it to start anew"; the pool of the old run stays behind
    (out / "pool" / ".000000004.pt.x1y2.pt").write_bytes(b"half of a member")
    with pytest.raises(Dying):
        run(out, SAMPLE, batches=until(5))
    (out / "pool" / ".000000006.pt.x1y2.pt").write_bytes(b"half of a member")
    assert equal(run(out, SAMPLE, resume=True)[0], masker)
    names = sorted(path.name for path in (out / "pool").iterdir())
    assert len(names) == 2 and all(name.endswith("00.pt") or name[:9].isdigit() for name in names)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path) -> None:
    recipe = RECIPES["ca"]
    torch.manual_seed(11)
    one = run(tmp_path / "1", recipe)
    torch.manual_seed(12)
    two = run(tmp_path / "2", recipe)
    three = run(tmp_path / "3", recipe, replace(SETTINGS, seed=1))
    assert equal(one[0], two[0]) and equal(one[1].network, two[1].network)
    assert not equal(one[1].network, three[1].network)


def test_training_draws_nothing_from_the_global_generator(tmp_path) -> None:
    classifier = new_classifier(WithDropout)
    masker = new_masker(classifier)
    torch.manual_seed(5)
    train_masker(masker, classifier, stream, IMAGES, recipe=ALONGSIDE, settings=SETTINGS, out=tmp_path)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_processes_share_their_opponents_and_differ_in_noise(monkeypatch) -> None:
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(Fabric, "global_rank", property(lambda self, rank=rank: rank))
        classifier = new_classifier()
        fabric = Fabric(accelerator="cpu", devices=1)
        made = salmask.training.steps.Steps(
            new_masker(classifier), classifier, ALONGSIDE, SETTINGS, MeanColour(), 5, fabric
        )
        seeds.append({name: generator.initial_seed() for name, generator in made.generators.items()})
    assert {name for name in seeds[0] if seeds[0][name] == seeds[1][name]} == {"history", "pool"}
    assert len(set(seeds[0].values())) == 4


# Refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": replace(SETTINGS, lr=0.5)}, r"its settings\.lr is 0\.01, asked for is 0\.5"),
        ({"settings": replace(SETTINGS, seed=3)}, r"settings\.seed"),
        ({"recipe": RECIPES["reader"]}, r"recipe\.fixed"),
        ({"recipe": RECIPES["fix"].weighted(area_if_kept_right=0.3)}, r"recipe\.weights\.area_if_kept_right"),
        ({"upsample": "bilinear"}, r"masker\.upsample"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_with_the_first_difference(tmp_path, change, named) -> None:
    with pytest.raises(Dying):
        run(tmp_path, batches=until(3))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=f"belongs to another run: .*{named}.*; name another folder"):
        run(tmp_path, resume=True, **change)
    with pytest.raises(ValueError, match="holds a run already"):
        run(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    run(tmp_path, settings=replace(SETTINGS, save_every=3, log_every=1), resume=True)  # how often is no difference


def test_a_broken_checkpoint_is_named_with_the_remedy(tmp_path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing that torch knows")
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read as a checkpoint .*delete it to start anew"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("recipe", [RECIPES["fix"], RECIPES["reader"], ALONGSIDE])
@pytest.mark.parametrize(("log_every", "save_every"), [(2, 100), (100, 2)])
def test_pictures_that_are_no_numbers_stop_the_run_and_leave_no_poisoned_checkpoint(
    tmp_path, recipe, log_every, save_every
) -> None:
    def broken(start: int) -> Iterator[Batch]:
        for k, batch in enumerate(stream(start), start):
            yield batch if k < 2 else batch._replace(images=batch.images * torch.nan)

    settings = replace(SETTINGS, log_every=log_every, save_every=save_every)
    with pytest.raises(ValueError, match="got NaN in them"):
        run(tmp_path, recipe, settings, batches=broken)
    if save_every == 2:
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert state["step"] == 2 and all(value.isfinite().all() for value in state["masker"].values())
    else:
        assert not (tmp_path / "checkpoint.pt").exists()


def test_a_masker_of_another_classifier_is_refused_before_anything_is_written(tmp_path) -> None:
    masker = Masker((8, 12, 17), (2, 4, 8), layers=(1, 2))
    with pytest.raises(ValueError, match="the classifier gives"):
        train_masker(
            masker, new_classifier(), stream, IMAGES, recipe=ALONGSIDE, settings=SETTINGS, out=tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the output folder .* cannot be written"):
        run(tmp_path / "file" / "below")


# Other maskers and settings


def test_batches_of_several_sizes_are_drawn_and_the_masker_keeps_one_set_of_statistics(tmp_path, monkeypatch) -> None:
    seen: list[tuple[int, bool, Tensor]] = []
    small = Masker.small

    def spy(self, maps, size, **conditions):
        layer = self.projections["2"][1]
        seen.append((size[0], layer.training, layer.running_mean.clone()))
        return small(self, maps, size, **conditions)

    monkeypatch.setattr(Masker, "small", spy)
    masker, _ = run(tmp_path, settings=replace(SETTINGS, epochs=12, sizes=(16, 24, 32)))
    assert {size for size, _, _ in seen} == {16, 24, 32}
    assert [training for _, training, _ in seen] == [True] * 8 + [False] * 16  # a third of the run
    assert not torch.equal(seen[0][2], seen[8][2])
    assert all(torch.equal(mean, masker.projections["2"][1].running_mean) for _, _, mean in seen[8:])


def test_pictures_of_one_size_leave_the_masker_s_statistics_moving(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"sizes are 8 to 4096 pixels, got \(0, 16\)"):
        replace(SETTINGS, sizes=(0, 16))
    one, _ = run(tmp_path / "one", settings=replace(SETTINGS, sizes=(16,)))
    plain, _ = run(tmp_path / "plain")
    assert equal(one, plain)  # the size that they have already


@pytest.mark.parametrize("size", [16, 18, 23])
@pytest.mark.parametrize("options", [{}, {"area_condition": True}, {"classes": 4}, {"upsample": "bilinear"}])
def test_conditioned_and_bilinear_maskers_train_at_any_size(tmp_path, size, options) -> None:
    def sized(start: int) -> Iterator[Batch]:
        yield from (batch_number(k, size) for k in range(start, 100))

    masker, _ = run(tmp_path, settings=replace(SETTINGS, epochs=1), batches=sized, **options)
    assert not equal(masker, new_masker(new_classifier(), **options))


@pytest.mark.parametrize("hard", [True, False])
def test_concrete_maskers_train_to_binary_masks(tmp_path, hard) -> None:
    masker, classifier = run(tmp_path, head=Concrete(0.5, hard=hard))
    with torch.no_grad():
        masks = masker(classifier.features(batch_number(0).images).maps, (SIZE, SIZE))
    assert set(masks.unique().tolist()) <= {0.0, 1.0}


def test_target_areas_are_drawn_in_their_range_and_pull_the_masks(tmp_path) -> None:
    recipe = Recipe(TWO_SIDED.with_weights(area_if_kept_right=50.0, max_class_kept=0.0, max_entropy_removed=0.0))
    settings = replace(SETTINGS, epochs=60, areas=(0.2, 0.8), log_every=50, save_every=1000, decay_at=())
    masker, classifier = run(tmp_path, recipe, settings, area_condition=True)
    maps = classifier.features(batch_number(0).images).maps
    low, high = (float(masker(maps, (SIZE, SIZE), areas=torch.full((BATCH,), p)).detach().mean()) for p in (0.25, 0.75))
    assert low < high - 0.1


@pytest.mark.parametrize("recipe", [RECIPES["fix"], ALONGSIDE])
def test_bfloat16_autocast_stays_near_full_precision(tmp_path, recipe) -> None:
    settings = replace(SETTINGS, epochs=0.5)
    full, _ = run(tmp_path / "32", recipe, settings)
    half, _ = run(tmp_path / "16", recipe, replace(settings, precision="bf16-mixed"))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.parameters())
    assert lines(tmp_path / "16")[0]["loss"] == pytest.approx(lines(tmp_path / "32")[0]["loss"], rel=0.05)
    assert not equal(full, half)


@pytest.mark.filterwarnings("ignore:the training has collapsed")
def test_a_full_mask_comes_back_in_bfloat16_as_it_does_in_float32(tmp_path) -> None:
    """In bfloat16 the sigmoid of 8 is exactly 1 and its gradient exactly 0."""
    recipe, means = Recipe(Objective({"area": (20.0, area)})), []
    for precision in ("32-true", "bf16-mixed"):
        settings = replace(SETTINGS, epochs=80, lr=0.02, weight_decay=0.0, decay_at=(), precision=precision)
        classifier = new_classifier()
        masker = new_masker(classifier)
        nn.init.zeros_(masker.final.weight)
        nn.init.constant_(masker.final.bias, 8.0)
        train_masker(masker, classifier, stream, IMAGES, recipe=recipe, settings=settings, out=tmp_path / precision)
        means.append([line["mask_mean"] for line in lines(tmp_path / precision)])
    assert means[0][0] > 0.99 and means[0][-1] < 0.9
    assert means[1][-1] == pytest.approx(means[0][-1], abs=0.1)


# A training that collapses


@pytest.mark.parametrize(("weight", "name"), [(30.0, "empty"), (-30.0, "full")])
def test_a_training_that_collapses_is_told_while_it_runs_with_the_remedy(tmp_path, weight, name) -> None:
    recipe = Recipe(Objective({"area": (weight, area)}))
    settings = replace(SETTINGS, epochs=30, lr=0.1, decay_at=(), weight_decay=0.0)
    with pytest.warns(UserWarning, match=f"the training has collapsed: .*masks are {name} at step .*reader") as told:
        run(tmp_path, recipe, settings)
    assert len(told) == 1
    shares = collapse(tmp_path / "metrics.jsonl")
    assert shares is not None and shares[name] > 0.5


def test_masks_that_are_full_at_first_alone_are_no_collapse(tmp_path, recwarn) -> None:
    run(tmp_path)
    assert collapse(tmp_path / "metrics.jsonl") is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "empty": 0.0, "full": 0.5}\n')
    assert collapse(tmp_path / "metrics.jsonl") is None  # more than half
    assert collapse(tmp_path / "nothing.jsonl") is None
    log = Log(tmp_path, 0, 9, fabric=Fabric(accelerator="cpu", devices=1))
    for step in (1, 2):
        log.add({"loss": torch.tensor(1.0), "full": torch.tensor(1.0), "empty": torch.tensor(0.0)})
        log.write(step)
    assert not [one for one in recwarn if "collapsed" in str(one.message)]
    log.add({"loss": torch.tensor(1.0), "full": torch.tensor(1.0), "empty": torch.tensor(0.0)})
    with pytest.warns(UserWarning, match="100% of the masks are full at step 3 of 9; raise the weight"):
        log.write(3)


def test_a_mask_of_one_input_that_is_nearly_always_empty_is_told(tmp_path, recwarn) -> None:
    def line(step: int, share: float) -> Log:
        log = Log(tmp_path / str(share), 0, 9, fabric=Fabric(accelerator="cpu", devices=1))
        values = {"loss": 1.0, "empty": 0.0, "full": 0.0, "empty of input 1": share, "full of input 1": 0.0}
        log.add({name: torch.tensor(value) for name, value in values.items()})
        return log

    for share in (0.5, 0.9):  # of scenes whose class another input shows
        (tmp_path / str(share)).mkdir()
        line(3, share).write(3)
        assert collapse(tmp_path / str(share) / "metrics.jsonl") is None
    assert not [one for one in recwarn if "collapsed" in str(one.message)]
    (tmp_path / "0.97").mkdir()
    with pytest.warns(UserWarning, match="97% of the masks of input 1 are empty at step 3 of 9; .*`input_shares`"):
        line(3, 0.97).write(3)
    assert collapse(tmp_path / "0.97" / "metrics.jsonl") is not None
    small = torch.zeros(4, 2, 3, 3)
    small[:2, 1] = 1.0
    outcome = Outcome(small, torch.zeros(4, dtype=torch.int64), torch.rand(4, 3), None, None)
    numbers = numbers_of(Objective({"area": (1.0, area)})(outcome), outcome, small)
    assert numbers["empty of input 1"] == 1 and numbers["empty of input 2"] == 0.5 and numbers["full of input 2"] == 0.5
    assert numbers["empty"] == 0.5


def test_a_mask_is_empty_or_full_by_its_mean() -> None:
    found = extremes(torch.tensor([0.0, 0.01, 0.03, 0.5, 0.97, 0.99, 1.0]))
    assert found["empty"].tolist() == [1, 1, 0, 0, 0, 0, 0] and found["full"].tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_the_fill_is_the_mean_colour_of_the_classifier() -> None:
    assert MeanColour.of(new_classifier()).colour == pytest.approx((0.5, 0.4, 0.3))


# It learns


class Corner(nn.Module):
    """A classifier that looks at the upper left quarter alone: the class is its mean colour."""

    def __init__(self) -> None:
        super().__init__()
        window = torch.zeros(1, 1, 32, 32)
        window[..., :16, :16] = 1
        self.register_buffer("window", window)
        self.shallow, self.deep = nn.AvgPool2d(4), nn.AvgPool2d(2)
        self.lift = nn.Conv2d(3, 6, 1, bias=False)
        with torch.no_grad():
            self.lift.weight[:, :, 0, 0] = torch.cat([torch.eye(3), -torch.eye(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.shallow(self.lift(x * self.window).relu()))
        return 8 * (x[:, :3] - x[:, 3:]).mean((2, 3))


@pytest.mark.parametrize("name", ["fix", "reader"])
def test_a_masker_learns_where_the_classifier_looks(tmp_path, name) -> None:
    classifier = Classifier(Corner(), mean=(0.5,) * 3, std=(0.25,) * 3, layers=("shallow", "deep"), image_size=32)
    masker = Masker.for_classifier(classifier, layers=(0, 1), width=8, generator=seeded())

    def coloured(k: int) -> Batch:
        g = seeded(k)
        targets = torch.randint(3, (BATCH,), generator=g)
        images = torch.rand(BATCH, 3, 32, 32, generator=g)
        for place, target in enumerate(targets):
            images[place, :, :16, :16] *= 0.6
            images[place, target, :16, :16] += 0.4
        return Batch([""] * BATCH, images, targets, [no_boxes()] * BATCH, [None] * BATCH)

    def share() -> float:
        batch = coloured(10**6)
        with torch.no_grad():
            logits, maps = classifier.features(batch.images)
            masks = masker.eval()(maps, (32, 32))
        assert torch.equal(logits.argmax(1), batch.targets)
        return float(masks[..., :16, :16].sum() / masks.sum())

    before = share()
    settings = Settings(epochs=1, batch_size=BATCH, lr=0.01, save_every=10**6, log_every=50, precision="32-true")
    train_masker(
        masker,
        classifier,
        lambda start: (coloured(k) for k in range(start, 10**9)),
        200 * BATCH,
        recipe=RECIPES[name],
        settings=settings,
        out=tmp_path,
    )
    assert before < 0.4 and share() > 0.6
    assert lines(tmp_path)[-1]["acc_kept"] > 0.9
