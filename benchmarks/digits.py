"""What the studies on spoken digits share: the classifier, the trainings, and listening to mixtures of two digits.

DATA holds <digit>_<speaker>_<n>.wav (Free Spoken Digit Dataset). The last speaker by name is heard in measuring alone.
What is there already is not computed again.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from salmask.audio.hearing import Hearing
from salmask.audio.mixtures import Another, AnyOf, Mixed, Mixing, Mixture, Ratios, White, ideal_mask, si_snr, snr
from salmask.audio.network import sound_network
from salmask.audio.readers import Sounds, open_sounds
from salmask.classifier import Classifier
from salmask.data import SampleTransform, cached
from salmask.data.sample import Sample
from salmask.data.streams import spread
from salmask.explain import EXPLAINERS
from salmask.explain.base import Explainer
from salmask.explain.learned import Learned
from salmask.files import writable_folder
from salmask.masking import MeanColour, keep
from salmask.report.page import write_report
from salmask.rows.read import META, write_json
from salmask.rows.trainings import compare_rows
from salmask.rows.write import Writer
from salmask.training.classifier import FitSettings, fit_classifier
from salmask.training.recipes import Recipe
from salmask.training.run import RUN, Loaded, load_classifier, load_run, save_classifier
from salmask.training.settings import Settings, Target
from salmask.training.train_run import train_run
from salmask.training.variant import stream_of

HEARING = Hearing(8000, 0.7, n_fft=256, window=256, hop=128, taper="hann")
NETWORK = "cnn14-w8-d4-m40"
TRANSPOSED = {"decoder": "transposed", "width": 32}

PER_IMAGE: Mapping[str, Explainer] = {
    "gradient": EXPLAINERS["gradient"](),
    "SmoothGrad": EXPLAINERS["smoothgrad"](samples=10),
    "integrated gradients": EXPLAINERS["integrated_gradients"](steps=10),
    "guided backprop": EXPLAINERS["guided_backprop"](),
    "Grad-CAM": EXPLAINERS["gradcam"](),
    "full": EXPLAINERS["full"](),
    "center": EXPLAINERS["center"](),
    "random": EXPLAINERS["random"](),
}
RAW = dict.fromkeys(("gradient", "SmoothGrad", "integrated gradients", "guided backprop", "Grad-CAM"), "max")
"""Raw maps come to [0, 1] by relu(a) / max a."""
IDEAL = "ideal mask"
UNFINISHED = 3
"""Exit status of a run that stopped after --minutes: the same command goes on."""

Cells = dict[str, dict[str, dict[str, float]]]
"""Row -> score -> mean, low, high, n, trainings."""


class Trained(NamedTuple):
    """How the maskers of a row are trained. start: the row whose maskers they go on from.

    others: ratios at which another digit is mixed in.
    """

    recipe: Recipe
    options: Mapping[str, object]
    start: str | None = None
    target: Target = "predicted"
    others: Ratios | None = None
    decay_at: Sequence[float] = Settings.decay_at
    absent: float = 0.0


def read_options(
    about: str, rows: Mapping[str, Trained], *, classifier_epochs: float, epochs: float
) -> argparse.Namespace:
    """Return what was typed; until: when no piece is begun any more."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--classifier-epochs", type=float, default=classifier_epochs)
    parser.add_argument("--epochs", type=float, default=epochs)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--no-train", action="store_true", help="measure the maskers that are there")
    parser.add_argument("--rows", nargs="*", default=list(rows), help="train and measure these alone")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop between two pieces after so many")
    options = parser.parse_args()
    options.out = writable_folder(options.out)
    options.began = time.monotonic()
    options.until = options.began + 60 * options.minutes
    return options


def write_results(options: argparse.Namespace, text: str, results: Mapping[str, object]) -> None:
    """Write the tables and their numbers, and say what it took."""
    (options.out / "table.md").write_text(text)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"all: {spent(options.began, 0)}; {options.out / 'table.md'}", flush=True)


def trained_classifier(sounds: Sounds, path: Path, kinds: Sequence[Mixing], *, epochs: float) -> Loaded:
    """Return the classifier in a file, trained with one of `kinds` mixed in where there is none yet."""
    if not path.is_file():
        torch.manual_seed(0)
        network = sound_network(NETWORK, HEARING, len(sounds.classes))
        classifier = Classifier(network, mean=[0.0], std=[1.0], layers=network.layers, image_size=HEARING.image_size)
        began = time.monotonic(), time.process_time()
        fit_classifier(
            classifier,
            cached(sounds),
            settings=FitSettings(epochs=epochs, batch_size=32, precision="32-true"),
            augment=shifted(kinds[0] if len(kinds) == 1 else AnyOf(tuple(kinds))),
        )
        save_classifier(path, Loaded(classifier, f"audio:{NETWORK}", HEARING, tuple(sounds.classes)))
        print(f"classifier: {spent(*began)}", flush=True)
    return load_classifier(f"audio:{NETWORK}@{path}")


def shifted(mixing: SampleTransform) -> SampleTransform:
    """Return what mixes a sound and then lets it begin at another time."""
    turned = HEARING.augmentation()

    def augment(sample: Sample) -> Sample:
        return turned(mixing(sample))

    return augment


def run_folder(rows: Mapping[str, Trained], out: Path, name: str, seed: int) -> Path:
    """Return where a masker lies."""
    return out / "runs" / f"{list(rows).index(name)}-{seed}"


def explained_by(
    rows: Mapping[str, Trained], loaded: Loaded, sounds: Sounds, options: argparse.Namespace
) -> dict[str, Explainer]:
    """Return the maskers of the rows asked for, by row and seed, trained where they are not there, and the methods."""
    if not options.no_train:
        train_maskers(rows, loaded, sounds, options)
    wanted = {*options.rows, *PER_IMAGE}
    table = {**learned(rows, options.out, options.seeds), **PER_IMAGE}
    return {name: one for name, one in table.items() if name.partition(" #")[0] in wanted}


def train_maskers(rows: Mapping[str, Trained], loaded: Loaded, sounds: Sounds, options: argparse.Namespace) -> None:
    """Train the rows asked for that are not there yet; leave the program before one would begin after `until`."""
    pictures, out, epochs = cached(sounds), options.out, options.epochs
    for seed in range(options.seeds):
        for name in (name for name in rows if name in options.rows):
            row, folder = rows[name], run_folder(rows, out, name, seed)
            if (folder / RUN).is_file():
                continue
            began, worked = time.monotonic(), time.process_time()
            if began > options.until:
                raise SystemExit(UNFINISHED)
            settings = Settings(
                epochs=epochs / 2 if row.start else epochs,
                batch_size=32,
                lr=3e-3,
                weight_decay=2e-6,
                target=row.target,
                seed=seed,
                averaging=0.9,
                decay_at=row.decay_at,
                absent=row.absent,
                save_every=40,
                precision="32-true",
            )
            first = None if row.start is None else load_run(run_folder(rows, out, row.start, seed)).masker
            mixed = None if row.others is None else shifted(Mixing(sounds, Another(sounds), row.others, share=0.8))
            train_run(
                pictures,
                loaded,
                recipe=row.recipe,
                settings=settings,
                batches=stream_of(pictures, settings, mixed or HEARING.augmentation()),
                out=folder,
                masker_options={**row.options, "start": first},
                facts={"row": name},
                resume=True,
            )
            print(f"{name}, seed {seed}: {spent(began, worked)}", flush=True)


def spent(began: float, worked: float) -> str:
    """Return what the clock and the processor say since then."""
    return f"{time.monotonic() - began:.0f} s, {time.process_time() - worked:.0f} s of the processor"


def learned(rows: Mapping[str, Trained], out: Path, seeds: int) -> dict[str, Explainer]:
    """Return the maskers that are there, by row and seed."""
    table: dict[str, Explainer] = {}
    for name in rows:
        for seed in range(seeds):
            if (run_folder(rows, out, name, seed) / RUN).is_file():
                run = load_run(run_folder(rows, out, name, seed))
                table[f"{name} #{seed}"] = Learned(run.masker).read_by(run.reader)
    return table


def some(sounds: Sounds, count: int) -> Sounds:
    """Return `count` recordings, spread over all."""
    ids = spread(sounds, count).ids
    labels = [sounds.classes[sounds.targets[sounds.ids.index(name)]] for name in ids]
    return Sounds(sounds.root, list(zip(ids, labels, strict=True)), sounds.hearing, classes=sounds.classes)


def held_out(data: str, sounds: Sounds) -> Sounds:
    """Return the recordings of the speaker who is heard in measuring alone."""
    return open_sounds(data, "val", HEARING, classes=sounds.classes)


def noise(sounds: Sounds) -> Mixing:
    """Return what mixes white noise into every other recording."""
    return Mixing(sounds, White(), (0.0, 20.0), share=0.5)


# Listening to mixtures


class Question(NamedTuple):
    """A digit of a mixture to explain, its own recording in it, the other one, and a digit that is not there."""

    target: int
    own: Tensor
    other: Tensor
    absent: int


def questions(mixture: Mixture, target: int, classes: int = 10) -> tuple[Question, Question]:
    """Return the question for either digit of a mixture; target: of the first."""
    rest = [one for one in range(classes) if one not in (target, mixture.other_target)]
    absent = rest[(7 * target + 3 * mixture.other_target) % len(rest)]
    return (
        Question(target, mixture.sound, mixture.other, absent),
        Question(mixture.other_target, mixture.other, mixture.sound, absent),
    )


RANGES = {
    "snr_gain": [None, None],
    "si_snr_gain": [None, None],
    "own_minus_other": [-2, 2],
    "nearer_to_own": [0, 1],
    "heard_as_asked": [0, 1],
    "heard_if_absent": [0, 1],
    "mask_mean": [0, 1],
}
SCORES = tuple(RANGES)
ABOUT = {"protocol": {}, "source": "this benchmark", "needs": [], "set_level": False}
DIRECTIONS = {"heard_if_absent": "down", "mask_mean": "none"}  # of the others: up


class Listener:
    """Measures what masks keep of mixtures; judge: a classifier that no masker was trained with, which hears it."""

    def __init__(self, table: Mapping[str, Explainer], loaded: Loaded, judge: Loaded) -> None:
        self.table, self.classifier, self.judge = table, loaded.classifier, judge.classifier

    def decided(self, mixture: Mixture) -> int:
        """Return the classifier's decision on a mixture."""
        with torch.no_grad():
            return int(self.classifier.logits(HEARING.hear(mixture.wave).picture[None]).argmax())

    def masks(self, picture: Tensor, target: int) -> dict[str, Tensor]:
        """Return the mask of every explainer for a digit."""
        masks = {}
        for name, explainer in self.table.items():
            explanation = explainer(self.classifier, picture[None], torch.tensor([target]))
            how = RAW.get(name.partition(" #")[0], "none")
            masks[name] = (explanation if how == "none" else explanation.normalized(how)).masks.float()
        return masks

    def hears(self, picture: Tensor, mask: Tensor) -> int:
        """Return what the judge hears in what a mask keeps."""
        with torch.no_grad():
            return int(self.judge.logits(keep(picture[None], mask, MeanColour((0.0,)))).argmax())

    def scores(self, mixture: Mixture, question: Question) -> dict[str, dict[str, float]]:
        """Return every explainer's scores for a digit of a mixture."""
        heard = HEARING.hear(mixture.wave)
        picture = heard.picture
        absent = {name: self.hears(picture, mask) for name, mask in self.masks(picture, question.absent).items()}
        masks = {IDEAL: ideal_mask(question.own, heard, HEARING)[None], **self.masks(picture, question.target)}
        found = {}
        for name, mask in masks.items():
            kept = HEARING.sound(keep(picture[None], mask, MeanColour((0.0,)))[0], heard)
            found[name] = {
                **scored(kept, mixture.wave, question.own, question.other),
                "heard_as_asked": float(self.hears(picture, mask) == question.target),
                "heard_if_absent": float(absent[name] == question.absent) if name in absent else float("nan"),
                "mask_mean": float(mask.mean()),
            }
        return found


def listen(
    listener: Listener, mixtures: Iterable[tuple[str, Mixture, Sequence[Question]]], out: Path, title: str
) -> tuple[Cells, int]:
    """Return, of what is kept of mixtures, row -> score -> cell, and the number of mixtures. Rows go into `out`.

    mixtures: name, mixture, and which digits are explained, over which scores are averaged.
    """
    shutil.rmtree(out, ignore_errors=True)
    writer = Writer(out, SCORES)
    rows = [IDEAL, *listener.table]
    gathered: dict[str, dict[str, list[float]]] = {name: {score: [] for score in SCORES} for name in rows}
    used = 0
    for identity, mixture, asked in mixtures:
        used += 1
        answers = [listener.scores(mixture, question) for question in asked]
        for name in rows:
            means = {score: float(np.mean([answer[name][score] for answer in answers])) for score in SCORES}
            for score, value in means.items():
                gathered[name][score].append(value)
            writer.add(name, identity, means)
    writer.finish()
    kinds = {name: {"kind": type(listener.table[name]).__name__ if name in listener.table else name} for name in rows}
    metrics = {score: {**ABOUT, "direction": DIRECTIONS.get(score, "up"), "range": RANGES[score]} for score in SCORES}
    write_json(out / META, {"explainers": kinds, "metrics": metrics, "data": title})
    write_report(out)
    cells: Cells = {}
    for score in SCORES:
        values = {name: np.array(found[score]) for name, found in gathered.items()}
        for name, matrix in by_row(values).items():
            cells.setdefault(name, {})[score] = cell(name, matrix)
    return cells, used


def two_digits(sounds: Sounds, count: int, ratio: float) -> Mixed:
    """Return mixtures of two digits of the same speaker."""
    chosen = some(sounds, count)
    return Mixed(chosen, Another(chosen), ratio, seed=1)


def scored(kept: Tensor, mixture: Tensor, own: Tensor, other: Tensor) -> dict[str, float]:
    """Return how much nearer the kept sound is to the explained digit than the mixture is, in decibels, and so on.

    A silent kept sound is as near to nothing: its SNR is 0 dB, and its correlations count as 0.
    """
    silent = not bool(kept.any())
    mine, others = (0.0, 0.0) if silent else (correlation(kept, own), correlation(kept, other))
    return {
        "snr_gain": snr(kept, own) - snr(mixture, own),
        "si_snr_gain": float("nan") if silent else si_snr(kept, own) - si_snr(mixture, own),
        "own_minus_other": mine - others,
        "nearer_to_own": float(mine > others),
    }


def correlation(first: Tensor, second: Tensor) -> float:
    """Return the cosine between two sounds."""
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


def by_row(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gather (images,) values of `NAME #SEED` as (images, trainings) of NAME."""
    rows: dict[str, list[np.ndarray]] = {}
    for name, one in values.items():
        rows.setdefault(name.partition(" #")[0], []).append(one)
    return {name: np.stack(columns, 1) for name, columns in rows.items()}


def cell(name: str, values: np.ndarray) -> dict[str, float]:
    """Return mean and interval over pictures and trainings."""
    found = compare_rows((name, values))
    return {
        "mean": found.means[0],
        "low": found.interval.low,
        "high": found.interval.high,
        "n": found.interval.n,
        "trainings": values.shape[1],
    }


def table_of(cells: Cells, columns: Sequence[str]) -> str:
    """Return a Markdown table of means with intervals."""
    lines = [f"| | trainings | {' | '.join(columns)} |", "|---|" + "---:|" * (1 + len(columns))]
    for name, scores in cells.items():
        texts = [f"{c['mean']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in (scores[column] for column in columns)]
        trainings = next(iter(scores.values()))["trainings"]
        count = "–" if name in PER_IMAGE or name == IDEAL else trainings
        lines.append(f"| {name} | {count} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"
