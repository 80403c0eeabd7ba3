"""L-MAC and the maskers of this library on spoken digits: one table, with a ground truth that mixtures bring along.

    python benchmarks/lmac.py --data spoken-digits --out OUT

DIR holds <digit>_<speaker>_<n>.wav (Free Spoken Digit Dataset). The last speaker by name is heard in measuring alone.
Trains a classifier and, for each seed, one masker a recipe; measures them and the per-image methods on recordings of
the held-out speaker, alone, in white noise and over another digit; then listens: of two digits mixed at a known ratio,
how much nearer does what is kept come to the recording of the digit that is explained? What is there already is not
computed again. Everything lies in OUT: runs/, rows of each condition with a page, table.md, results.json.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from salmask.audio.hearing import Hearing
from salmask.audio.listening import Listening
from salmask.audio.mixtures import Another, Mixed, Mixing, White, si_snr, snr
from salmask.audio.network import sound_network
from salmask.audio.readers import Sounds, open_sounds
from salmask.classifier import Classifier
from salmask.data import cached
from salmask.data.sample import Sample
from salmask.data.streams import spread
from salmask.evaluation.evaluate import compare
from salmask.evaluation.explained import Rules
from salmask.explain import EXPLAINERS
from salmask.explain.base import Explainer
from salmask.explain.learned import Learned
from salmask.files import writable_folder
from salmask.masking import MeanColour, keep
from salmask.metrics import METRICS
from salmask.report.page import write_report
from salmask.rows.read import META, read_rows, write_json
from salmask.rows.trainings import collapsed, compare_rows
from salmask.rows.write import Writer
from salmask.training.classifier import FitSettings, accuracy, fit_classifier
from salmask.training.recipes import RECIPES, Recipe
from salmask.training.released import as_released
from salmask.training.run import RUN, Loaded, load_classifier, load_run, save_classifier
from salmask.training.settings import Settings
from salmask.training.train_run import train_run
from salmask.training.variant import stream_of

HEARING = Hearing(8000, 0.7, n_fft=256, window=256, hop=128, taper="hann")
NETWORK = "cnn14-w8-d4-m40"
METRIC_NAMES = (
    "average_increase",
    "average_drop",
    "average_gain",
    "faithfulness",
    "fidelity_in",
    "sparseness",
    "complexity",
    "mask_mean",
)
TRANSPOSED = {"decoder": "transposed", "width": 32}
JOINED = {"layers": (1, 2, 3), "upsample": "bilinear"}
BASE = "L-MAC (area 6.4, as released)"

MASKERS: Mapping[str, tuple[Recipe, Mapping[str, object], str | None]] = {
    "L-MAC (area .4)": (RECIPES["lmac"], TRANSPOSED, None),
    BASE: (as_released(RECIPES["lmac"]), TRANSPOSED, None),
    "L-MAC fine-tuned (4)": (as_released(RECIPES["lmac_tuned"]), TRANSPOSED, BASE),
    "L-MAC fine-tuned (16)": (as_released(RECIPES["lmac_tuned"].weighted(energy_guidance=16.0)), TRANSPOSED, BASE),
    "FIX": (RECIPES["fix"], JOINED, None),
    "CA": (replace(RECIPES["ca"], statistics="held"), JOINED, None),
    "frozen reader": (RECIPES["reader"], JOINED, None),
}
"""Row -> recipe, options of the masker, and the row whose masker it goes on from."""

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

UNFINISHED = 3
"""Exit status of a run that stopped after --minutes: the same command goes on."""

RAW = dict.fromkeys(("gradient", "SmoothGrad", "integrated gradients", "guided backprop", "Grad-CAM"), "max")
"""Raw maps come to [0, 1] by relu(a) / max a."""


def trained_classifier(data: str, out: Path, *, epochs: float) -> tuple[Loaded, Sounds]:
    """Return the classifier, trained on all speakers but the last unless it lies in `out`, and the training sounds."""
    sounds = open_sounds(data, "train", HEARING)
    path = out / "classifier.safetensors"
    if not path.is_file():
        torch.manual_seed(0)
        network = sound_network(NETWORK, HEARING, len(sounds.classes))
        classifier = Classifier(network, mean=[0.0], std=[1.0], layers=network.layers, image_size=HEARING.image_size)
        mixing, shifted = Mixing(sounds, White(), (0.0, 20.0), share=0.5), HEARING.augmentation()

        def augment(sample: Sample) -> Sample:
            return shifted(mixing(sample))

        fit_classifier(
            classifier,
            cached(sounds),
            settings=FitSettings(epochs=epochs, batch_size=32, precision="32-true"),
            augment=augment,
        )
        save_classifier(path, Loaded(classifier, f"audio:{NETWORK}", HEARING, tuple(sounds.classes)))
    return load_classifier(f"audio:{NETWORK}@{path}"), sounds


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Return where a masker lies."""
    return out / "runs" / f"{list(MASKERS).index(name)}-{seed}"


def train_maskers(loaded: Loaded, sounds: Sounds, out: Path, *, seeds: int, epochs: float, until: float) -> None:
    """Train what is not there yet; leave the program before a training that would begin after `until`."""
    pictures = cached(sounds)
    for seed in range(seeds):
        for name, (recipe, options, start) in MASKERS.items():
            folder = run_folder(out, name, seed)
            if (folder / RUN).is_file():
                continue
            began, worked = time.monotonic(), time.process_time()
            if began > until:
                raise SystemExit(UNFINISHED)
            own = epochs / 2 if start else epochs
            settings = Settings(
                epochs=own,
                batch_size=32,
                lr=3e-3,
                weight_decay=2e-6,
                target="predicted",
                seed=seed,
                averaging=0.9,
                precision="32-true",
            )
            first = None if start is None else load_run(run_folder(out, start, seed)).masker
            train_run(
                pictures,
                loaded,
                recipe=recipe,
                settings=settings,
                batches=stream_of(pictures, settings, HEARING.augmentation()),
                out=folder,
                masker_options={**options, "start": first},
                facts={"row": name},
            )
            print(f"{name}, seed {seed}: {_spent(began, worked)}", flush=True)


def _spent(began: float, worked: float) -> str:
    return f"{time.monotonic() - began:.0f} s, {time.process_time() - worked:.0f} s of the processor"


def methods(out: Path, loaded: Loaded, seeds: int) -> dict[str, tuple[Explainer, Loaded]]:
    """Return all explainers by name; the maskers that are there by row and seed."""
    table: dict[str, tuple[Explainer, Loaded]] = {}
    for name in MASKERS:
        for seed in range(seeds):
            if not (run_folder(out, name, seed) / RUN).is_file():
                continue
            run = load_run(run_folder(out, name, seed))
            table[f"{name} #{seed}"] = (Learned(run.masker).read_by(run.reader), loaded)
    return table | {name: (explainer, loaded) for name, explainer in PER_IMAGE.items()}


def conditions(sounds: Sounds, count: int) -> dict[str, Sounds | Mixed]:
    """Return the held-out recordings alone and on top of others, by name; the same for all."""
    chosen = some(sounds, count)
    return {
        "in domain": chosen,
        "white noise, 6 dB": Mixed(chosen, White(), 6.0),
        "another digit, 12 dB": Mixed(chosen, Another(sounds), 12.0),
    }


def some(sounds: Sounds, count: int) -> Sounds:
    """Return `count` recordings, spread over all."""
    ids = spread(sounds, count).ids
    labels = [sounds.classes[sounds.targets[sounds.ids.index(name)]] for name in ids]
    return Sounds(sounds.root, list(zip(ids, labels, strict=True)), sounds.hearing, classes=sounds.classes)


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


def measure(
    table: Mapping[str, tuple[Explainer, Loaded]], sounds: Sounds | Mixed, out: Path, title: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure everything on one condition; return row -> metric -> cell."""
    compare(
        table,
        {name: METRICS[name] for name in METRIC_NAMES},
        sounds,
        rules=Rules(target="predicted", normalize=RAW),
        out=out,
        about={"data": f"spoken digits, {title}", "heard": str(HEARING)},
        pictures=8,
        listening=Listening(sounds),
    )
    rows = read_rows(out)
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for metric in METRIC_NAMES:
        values = {name: rows.values[name][metric] for name in table if name in rows.values}
        for name, matrix in by_row(values).items():
            cells.setdefault(name, {})[metric] = cell(name, matrix)
    means = {name: rows.values[name]["mask_mean"] for name in table if " #" in name}
    for name, share in collapsed(means).items():
        print(f"collapsed: {name} on {title}, {share:.0%} of its masks are empty or full", flush=True)
    return cells


def listen(
    table: Mapping[str, tuple[Explainer, Loaded]], sounds: Sounds, ratio: float, out: Path
) -> tuple[dict[str, dict[str, dict[str, float]]], int, int]:
    """Return, of two digits mixed at a ratio, what is kept against both recordings: row -> score -> cell.

    Mixtures count whose decision is one of the two digits: that one is explained, its recording the reference. Rows and
    a page go into `out`.
    """
    shutil.rmtree(out, ignore_errors=True)
    writer = Writer(out, SCORES)
    mixed = Mixed(sounds, Another(sounds), ratio, seed=1)
    gains: dict[str, dict[str, list[float]]] = {name: {} for name in table}
    used = 0
    for index in range(len(mixed)):
        mixture = mixed.mixture(index)
        heard = HEARING.hear(mixture.wave)
        images = heard.picture[None]
        loaded = next(iter(table.values()))[1]
        with torch.no_grad():
            decision = int(loaded.classifier.logits(images).argmax())
        if decision not in (mixed.targets[index], mixture.other_target):
            continue
        used += 1
        own, other = (mixture.sound, mixture.other)[:: 1 if decision == mixed.targets[index] else -1]
        for name, (explainer, _) in table.items():
            explanation = explainer(loaded.classifier, images, torch.tensor([decision]))
            how = RAW.get(name.partition(" #")[0], "none")
            masks = explanation.masks if how == "none" else explanation.normalized(how).masks
            kept = HEARING.sound(keep(images, masks.float(), MeanColour((0.0,)))[0], heard)
            scores = scored(kept, mixture.wave, own, other)
            for score, value in scores.items():
                gains[name].setdefault(score, []).append(value)
            writer.add(name, mixed.ids[index], scores)
    writer.finish()
    meta = {
        "explainers": {name: {"kind": type(explainer).__name__} for name, (explainer, _) in table.items()},
        "metrics": {score: {**ABOUT, "range": RANGES[score]} for score in SCORES},
        "data": f"two spoken digits mixed at {ratio:g} dB; only mixtures that are decided as one of the two",
    }
    write_json(out / META, meta)
    write_report(out)
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for score in SCORES:
        values = {name: np.array(found[score]) for name, found in gains.items()}
        for name, matrix in by_row(values).items():
            cells.setdefault(name, {})[score] = cell(name, matrix)
    return cells, used, len(mixed)


RANGES = {
    "snr_gain": [None, None],
    "si_snr_gain": [None, None],
    "own_minus_other": [-2, 2],
    "nearer_to_own": [0, 1],
}
SCORES = tuple(RANGES)
ABOUT = {"direction": "up", "protocol": {}, "source": "this benchmark", "needs": [], "set_level": False}


def scored(kept: torch.Tensor, mixture: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
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


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the cosine between two sounds."""
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


def table_of(cells: Mapping[str, Mapping[str, Mapping[str, float]]], columns: Sequence[str]) -> str:
    """Return a Markdown table of means with intervals."""
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, scores in cells.items():
        texts = [f"{c['mean']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in (scores[column] for column in columns)]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--classifier-epochs", type=float, default=20)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--no-train", action="store_true", help="measure the maskers that are there")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop between two pieces after so many")
    options = parser.parse_args()
    out, began = writable_folder(options.out), time.monotonic()
    loaded, sounds = trained_classifier(options.data, out, epochs=options.classifier_epochs)
    held_out = open_sounds(options.data, "val", HEARING, classes=sounds.classes)
    right = {"held-out speaker": accuracy(loaded.classifier, cached(held_out))}
    print(f"classifier: {right} after {_spent(began, 0)}", flush=True)
    until = began + 60 * options.minutes
    if not options.no_train:
        train_maskers(loaded, sounds, out, seeds=options.seeds, epochs=options.epochs, until=until)
    print(f"maskers: {time.monotonic() - began:.0f} s", flush=True)
    table = methods(out, loaded, options.seeds)
    results: dict[str, object] = {"accuracy": right, "measured": {}, "mixtures": {}}
    text = ""
    for ratio in (0.0, 6.0):
        folder = out / f"two-digits-{ratio:g}-dB"
        cells, used, whole = listen(table, some(held_out, options.count), ratio, folder)
        results["mixtures"][f"{ratio:g} dB"] = {"used": used, "of": whole, "rows": cells}  # type: ignore[index]
        text += f"## two digits at {ratio:g} dB: {used} of {whole} mixtures decided as one of the two\n\n"
        text += table_of(cells, SCORES) + "\n"
    for title, data in conditions(held_out, options.count).items():
        if time.monotonic() > until:
            raise SystemExit(UNFINISHED)
        right[title] = accuracy(loaded.classifier, data)
        cells = measure(table, data, out / title.replace(" ", "-").replace(",", ""), title)
        results["measured"][title] = cells  # type: ignore[index]
        text += f"## {title}: {len(data)} recordings, classifier right on {right[title]:.2f}\n\n"
        text += table_of(cells, METRIC_NAMES) + "\n"
        print(f"{title}: {_spent(began, 0)} so far", flush=True)
    results["seconds"] = time.monotonic() - began
    (out / "table.md").write_text(text)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"all: {_spent(began, 0)}; {out / 'table.md'}", flush=True)


if __name__ == "__main__":
    main()
