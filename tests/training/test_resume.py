"""Going on from a checkpoint: with other pictures, sights or infills it is refused by name, and so are spoilt files."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import ALONGSIDE, IMAGES, SETTINGS, Dying, new_classifier, run, until
from torch import Generator

from salmask.data import Sight, training_batches
from salmask.data.synthetic import Synthetic
from salmask.files import in_use
from salmask.masking import Blur, Noise
from salmask.training.checkpoint import CHECKPOINT
from salmask.training.log import LOG
from salmask.training.recipes import RECIPES
from salmask.training.resume import agree_on_training, described_infill
from salmask.training.run import Loaded
from salmask.training.train_run import train_run


def noise(seed: int = 0) -> Noise:
    return Noise(Generator().manual_seed(seed))


def killed(out: Path, **options: object) -> None:
    with pytest.raises(Dying):
        run(out, batches=until(4), **options)  # type: ignore[arg-type]
    assert (out / CHECKPOINT).is_file()


@pytest.mark.parametrize("other", [{"kept": noise(), "removed": noise()}, noise(), Blur(5.0)])
def test_another_infill_is_refused_by_name(tmp_path, other) -> None:
    killed(tmp_path, infill=Blur(20.0))
    with pytest.raises(ValueError, match=r"belongs to another run: its infill\."):
        run(tmp_path, infill=other, resume=True)


def test_infills_are_told_apart_by_kind_and_setting_and_not_by_what_they_draw() -> None:
    kinds = [described_infill(one) for one in (None, noise(), Blur(5.0), Blur(20.0), {"kept": noise()})]
    assert all(one != other for k, one in enumerate(kinds) for other in kinds[k + 1 :])
    assert described_infill(noise(1)) == described_infill(noise(2))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: {"weights": state["masker"]}, "expected the entry"),
        (lambda state: {**state, "step": -3}, "step: expected a whole number"),
        (lambda state: {**state, "masker": {"final.weight": 3}}, r"masker\.final\.weight: expected Tensor"),
        (lambda state: {**state, "facts": "[" * 100_000}, "facts: expected a JSON file"),
        (lambda state: {**state, "masker": {"final.weight": torch.zeros(2)}}, "does not fit the training"),
        (lambda state: {**state, "generators": {"tail": torch.zeros(2)}}, "does not fit the training"),
        (lambda state: {**state, "generators": {}}, "does not fit the training"),
        (lambda state: {**state, "optimiser": {**state["optimiser"], "state": {}}}, "does not fit the training"),
        (lambda state: [state], "expected a table"),
    ],
)
def test_a_checkpoint_that_was_changed_is_one_clear_line(tmp_path, spoil, words) -> None:
    killed(tmp_path)
    path = tmp_path / CHECKPOINT
    torch.save(spoil(torch.load(path, weights_only=True)), path)
    with pytest.raises(ValueError, match=rf"checkpoint\.pt.*{words}"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"step": "x"}\n{"step": 1}\n', "line 1, step: expected a whole number"),
        (b"[" * 100_000 + b"\n{}\n", "line 1: expected"),
    ],
)
def test_a_broken_line_of_the_log_names_file_and_line(tmp_path, text, words) -> None:
    killed(tmp_path)
    (tmp_path / LOG).write_bytes(text)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl {words}"):
        run(tmp_path, resume=True)


def test_a_checkpoint_that_is_a_pipe_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="is no regular file"):
        run(tmp_path, resume=True)


def test_a_pool_file_that_is_cut_short_is_named(tmp_path) -> None:
    recipe = replace(ALONGSIDE, history="sample", pool_size=2, pool_every=1)
    killed(tmp_path, recipe=recipe)
    member = min((tmp_path / "pool").glob("*.pt"))
    member.write_bytes(member.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{member.name} does not hold an earlier state"):
        run(tmp_path, recipe=recipe, resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seen": {"image_size": 96, "fit": "crop"}}, r"seen\.image_size is 64, asked for is 96"),
        ({"seen": {"image_size": 64, "fit": "pad"}}, r"seen\.fit is 'crop', asked for is 'pad'"),
        ({"dataset": Synthetic(12, seed=1, size=16)}, r"data\.names"),
        ({"dataset": Synthetic(13, seed=0, size=16)}, r"data\.images is 12, asked for is 13"),
        ({"infill": Blur(3.0)}, r"infill\.infill is 'MeanColour of the classifier'"),
    ],
)
def test_other_pictures_or_another_sight_of_them_are_refused_by_name(tmp_path, change, words) -> None:
    given = {"dataset": Synthetic(12, seed=0, size=16), "seen": {"image_size": 64, "fit": "crop"}, "infill": None}
    agree_on_training(tmp_path, **given, resume=False)
    (tmp_path / CHECKPOINT).write_bytes(b"")
    agree_on_training(tmp_path, **given, resume=True)
    with pytest.raises(ValueError, match=f"belongs to another run: its {words}"):
        agree_on_training(tmp_path, **{**given, **change}, resume=True)


def test_a_second_training_into_a_folder_in_use_is_refused(tmp_path) -> None:
    classifier = new_classifier()
    data = Synthetic(IMAGES, seed=0, size=16)
    loaded = Loaded(classifier, "own", Sight(16, "squash"))
    data.classes = data.classes[:4]
    with in_use(tmp_path), pytest.raises(ValueError, match="in use by another process"):
        train_run(
            data,
            loaded,
            recipe=RECIPES["fix"],
            settings=SETTINGS,
            masker_options={"layers": (1, 2)},
            batches=lambda start: training_batches(data, batch_size=6, seed=0, start=start),
            out=tmp_path,
            facts={},
        )
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []
