"""L-MAC and the maskers of this library on spoken digits: one table, with a ground truth that mixtures bring along.

    python benchmarks/lmac.py --data spoken-digits --out OUT

DIR holds <digit>_<speaker>_<n>.wav (Free Spoken Digit Dataset). The last speaker by name is heard in measuring alone.
Trains a classifier and, for each seed, one masker a recipe; measures them and the per-image methods on recordings of
the held-out speaker, alone, in white noise and over another digit; then listens: of two digits mixed at a known ratio,
how much nearer does what is kept come to the recording of the digit that is explained? What is there already is not
computed again. Everything lies in OUT: runs/, rows of each condition with a page, table.md, results.json.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from digits import (
    HEARING,
    RAW,
    SCORES,
    TRANSPOSED,
    UNFINISHED,
    Cells,
    Listener,
    Question,
    Trained,
    by_row,
    cell,
    explained_by,
    held_out,
    listen,
    noise,
    questions,
    read_options,
    some,
    spent,
    table_of,
    trained_classifier,
    two_digits,
    write_results,
)

from salmask.audio.listening import Listening
from salmask.audio.mixtures import Another, Mixed, Mixture, White, read_mix
from salmask.audio.readers import Sounds, open_sounds
from salmask.audio.sounds import write_sound
from salmask.data import cached
from salmask.draws import generator_for
from salmask.evaluation.evaluate import compare
from salmask.evaluation.explained import Rules
from salmask.explain.base import Explainer
from salmask.metrics import METRICS
from salmask.rows.read import read_rows
from salmask.rows.trainings import collapsed
from salmask.training.classifier import accuracy
from salmask.training.recipes import RECIPES
from salmask.training.released import as_released
from salmask.training.run import Loaded

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
JOINED = {"layers": (1, 2, 3), "upsample": "bilinear"}
BASE = "L-MAC (area 6.4, as released)"

MASKERS: Mapping[str, Trained] = {
    "L-MAC (area .4)": Trained(RECIPES["lmac"], TRANSPOSED),
    BASE: Trained(as_released(RECIPES["lmac"]), TRANSPOSED),
    "L-MAC fine-tuned (4)": Trained(as_released(RECIPES["lmac_tuned"]), TRANSPOSED, BASE),
    "L-MAC fine-tuned (16)": Trained(
        as_released(RECIPES["lmac_tuned"].weighted(energy_guidance=16.0)), TRANSPOSED, BASE
    ),
    "FIX": Trained(RECIPES["fix"], JOINED),
    "CA": Trained(replace(RECIPES["ca"], statistics="held"), JOINED),
    "frozen reader": Trained(RECIPES["reader"], JOINED),
}


def conditions(sounds: Sounds, count: int, speech: Path) -> dict[str, Sounds | Mixed]:
    """Return the held-out recordings alone and on top of others, by name; the same for all."""
    chosen = some(sounds, count)
    return {
        "in domain": chosen,
        "white noise, 6 dB": Mixed(chosen, White(), 6.0),
        "another digit, 12 dB": Mixed(chosen, Another(sounds), 12.0),
        "speech, 12 dB": Mixed(chosen, *read_mix(f"{speech}:12", chosen)),
    }


def running_speech(sounds: Sounds, folder: Path, *, files: int = 40, words: int = 6) -> Path:
    """Write running speech of the training speakers, one word after the other, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        places = torch.randint(len(sounds), (words,), generator=generator_for(0, str(number), "speech"))
        strung = torch.cat([wave / wave.abs().max() for wave in (sounds.wave(int(place)) for place in places)])
        write_sound(folder / f"{number}.wav", strung, HEARING.sample_rate)
    return folder


def decided(listener: Listener, mixed: Mixed) -> Iterator[tuple[str, Mixture, list[Question]]]:
    """Return the mixtures that the classifier decides as one of their two digits: that one is explained."""
    for index, name in enumerate(mixed.ids):
        mixture = mixed.mixture(index)
        decision = listener.decided(mixture)
        for question in questions(mixture, mixed.targets[index]):
            if question.target == decision:
                yield name, mixture, [question]


def measure(table: Mapping[str, tuple[Explainer, Loaded]], sounds: Sounds | Mixed, out: Path, title: str) -> Cells:
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
    cells: Cells = {}
    for metric in METRIC_NAMES:
        values = {name: rows.values[name][metric] for name in table if name in rows.values}
        for name, matrix in by_row(values).items():
            cells.setdefault(name, {})[metric] = cell(name, matrix)
    means = {name: rows.values[name]["mask_mean"] for name in table if " #" in name}
    for name, share in collapsed(means).items():
        print(f"collapsed: {name} on {title}, {share:.0%} of its masks are empty or full", flush=True)
    return cells


def main() -> None:
    """Run everything."""
    options = read_options(__doc__, MASKERS, classifier_epochs=20, epochs=6)
    out, began = options.out, options.began
    sounds = open_sounds(options.data, "train", HEARING)
    loaded = trained_classifier(
        sounds, out / "classifier.safetensors", [noise(sounds)], epochs=options.classifier_epochs
    )
    measured = held_out(options.data, sounds)
    right = {"held-out speaker": accuracy(loaded.classifier, cached(measured))}
    print(f"classifier: {right} after {spent(began, 0)}", flush=True)
    table = explained_by(MASKERS, loaded, sounds, options)
    results: dict[str, object] = {"accuracy": right, "measured": {}, "mixtures": {}}
    text, listener = "", Listener(table, loaded, loaded)
    for ratio in (0.0, 6.0):
        mixed = two_digits(measured, options.count, ratio)
        title = f"two spoken digits mixed at {ratio:g} dB; only mixtures that are decided as one of the two"
        cells, used = listen(listener, decided(listener, mixed), out / f"two-digits-{ratio:g}-dB", title)
        results["mixtures"][f"{ratio:g} dB"] = {"used": used, "of": len(mixed), "rows": cells}  # type: ignore[index]
        text += f"## Two digits at {ratio:g} dB: {used} of {len(mixed)} mixtures decided as one of the two\n\n"
        text += table_of(cells, SCORES) + "\n"
    for title, data in conditions(measured, options.count, running_speech(sounds, out / "speech")).items():
        if time.monotonic() > options.until:
            raise SystemExit(UNFINISHED)
        right[title] = accuracy(loaded.classifier, data)
        folder = out / title.replace(" ", "-").replace(",", "")
        cells = measure({name: (one, loaded) for name, one in table.items()}, data, folder, title)
        results["measured"][title] = cells  # type: ignore[index]
        text += f"## {title}: {len(data)} recordings, classifier right on {right[title]:.2f}\n\n"
        text += table_of(cells, METRIC_NAMES) + "\n"
        print(f"{title}: {spent(began, 0)} so far", flush=True)
    results["seconds"] = time.monotonic() - began
    write_results(options, text, results)


if __name__ == "__main__":
    main()
