"""Two digits at once: which part of the mixture is whose? Maskers that are told the class, trained on mixtures.

    python benchmarks/mixtures.py --data spoken-digits --out OUT

Trains a classifier with noise or another digit mixed into the recordings, a second one without other digits, and for
each seed one masker a row. A masker is told which of the two digits to explain. Of mixtures of the held-out speaker
the parts are known: how much nearer to the explained digit's own recording is what a mask keeps? What is there already
is not computed again. Everything lies in OUT: runs/, rows of each condition with a page, table.md, results.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from digits import (
    HEARING,
    IDEAL,
    SCORES,
    TRANSPOSED,
    Listener,
    Question,
    Trained,
    explained_by,
    held_out,
    listen,
    noise,
    questions,
    read_options,
    table_of,
    trained_classifier,
    two_digits,
    write_results,
)
from lmac import METRIC_NAMES, measure

from salmask.audio.mixtures import Another, Mixed, Mixing, Mixture, White, ideal_mask
from salmask.audio.readers import open_sounds
from salmask.data import cached
from salmask.objective import Objective
from salmask.training.classifier import accuracy
from salmask.training.recipes import RECIPES, Recipe
from salmask.training.variant import TERMS

OTHERS = (-6.0, 6.0)
"""Decibels by which the explained digit is above the other one in training."""


def class_gone(recipe: Recipe) -> Recipe:
    """Return a two-sided recipe that asks for the removed sound to lose the class, instead of all decision.

    What is removed of a mixture holds the other digit, of which a classifier should be sure.
    """
    terms = dict(recipe.objective.terms)
    del terms["max_entropy_removed"]
    return replace(recipe, objective=Objective({"min_class_removed": (1.0, TERMS["min_class_removed"]), **terms}))


def asked(recipe: Recipe) -> Trained:
    """Return a row whose maskers are told the class and trained on mixtures."""
    return Trained(recipe, {**TRANSPOSED, "classes": 10}, target="label", others=OTHERS, decay_at=(0.6, 0.9))


MASKERS: Mapping[str, Trained] = {
    "L-MAC (area .4)": asked(RECIPES["lmac"]),
    "FIX": asked(class_gone(RECIPES["fix"])),
    "CA": asked(class_gone(replace(RECIPES["ca"], statistics="held"))),
    "frozen reader": asked(class_gone(RECIPES["reader"])),
    "L-MAC (area .4), not told": Trained(RECIPES["lmac"], TRANSPOSED, others=OTHERS),
    "L-MAC (area .4), no mixtures": asked(RECIPES["lmac"])._replace(others=None),
    "L-MAC (area .4), absent digits": asked(RECIPES["lmac"])._replace(absent=0.3),
    "FIX, absent digits": asked(class_gone(RECIPES["fix"]))._replace(absent=0.3),
}

CONDITIONS: Mapping[str, tuple[float, tuple[int, ...]]] = {
    "0 dB, either digit": (0.0, (0, 1)),
    "6 dB, the quieter digit": (6.0, (1,)),
    "6 dB, the louder digit": (6.0, (0,)),
}
"""Title -> ratio, and which of the two digits are explained."""


def asked_in_turn(mixed: Mixed, turns: Sequence[int]) -> Iterator[tuple[str, Mixture, list[Question]]]:
    """Return every mixture with the questions for the digits at `turns`."""
    for index, name in enumerate(mixed.ids):
        mixture = mixed.mixture(index)
        both = questions(mixture, mixed.targets[index])
        yield name, mixture, [both[turn] for turn in turns]


def draw(listener: Listener, mixed: Mixed, names: Sequence[str], path: Path, *, rows: int = 4) -> None:
    """Draw mixtures, their parts, and for either digit the mask that the parts give and those of explainers."""
    figure, axes = plt.subplots(2 * rows, 3 + 2 * len(names), figsize=(2.1 * (3 + 2 * len(names)), 3 * rows))
    for ax in axes.flat:
        ax.set_axis_off()
    places = [index * len(mixed) // rows for index in range(rows)]
    for row, place in enumerate(places):
        mixture = mixed.mixture(place)
        heard = HEARING.hear(mixture.wave)
        for turn, question in enumerate(questions(mixture, mixed.targets[place])):
            masks = {IDEAL: ideal_mask(question.own, heard, HEARING)[None]}
            masks |= listener.masks(heard.picture, question.target)
            digit = mixed.classes[question.target]
            alone = HEARING.pictures(HEARING.spectrum(question.own * heard.gain).abs()[None, None])[0]
            panels = [("both digits", heard.picture) if turn == 0 else None, (f"{digit} alone", alone)]
            panels += [(f"ideal mask of {digit}", masks[IDEAL][0])]
            for name in names:
                mask = masks[name][0]
                panels += [(f"{name.partition(' #')[0]}\nmask for {digit}", mask), ("kept", mask * heard.picture)]
            for ax, panel in zip(axes[2 * row + turn], panels, strict=True):
                if panel is not None:
                    title, picture = panel
                    ax.imshow(picture[0], cmap="gray" if "mask" in title else "magma", vmin=0, vmax=1, aspect="auto")
                    ax.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=75, pil_kwargs={"quality": 88})
    plt.close(figure)


def main() -> None:
    """Run everything."""
    options = read_options(__doc__, MASKERS, classifier_epochs=30, epochs=8)
    out = options.out
    sounds = open_sounds(options.data, "train", HEARING)
    white, others = (Mixing(sounds, kind, (0.0, 20.0), share=0.7) for kind in (White(), Another(sounds)))
    epochs = options.classifier_epochs
    loaded = trained_classifier(sounds, out / "mixtures.safetensors", [white, others], epochs=epochs)
    judge = trained_classifier(sounds, out / "classifier.safetensors", [noise(sounds)], epochs=20)
    measured = held_out(options.data, sounds)
    right = {name: accuracy(one.classifier, cached(measured)) for name, one in (("own", loaded), ("judge", judge))}
    print(f"right on the held-out speaker: {right}", flush=True)
    table = explained_by(MASKERS, loaded, sounds, options)
    listener = Listener(table, loaded, judge)
    results: dict[str, object] = {"accuracy": right, "mixtures": {}}
    mixed = two_digits(measured, options.count, 0.0)
    title = f"two digits, 0 dB, decision explained: {len(mixed)} mixtures"
    folder = out / "two-digits-0-dB-metrics"
    results["measured"] = cells = measure({name: (one, loaded) for name, one in table.items()}, mixed, folder, title)
    text = f"## {title}\n\n{table_of(cells, METRIC_NAMES)}\n"
    for title, (ratio, turns) in CONDITIONS.items():
        mixed = two_digits(measured, options.count, ratio)
        folder = out / title.replace(" ", "-").replace(",", "")
        cells, used = listen(listener, asked_in_turn(mixed, turns), folder, f"two spoken digits, {title} explained")
        results["mixtures"][title] = {"mixtures": used, "rows": cells}  # type: ignore[index]
        text += f"## {title} explained: {used} mixtures\n\n{table_of(cells, SCORES)}\n"
    shown = [
        f"{name} #0"
        for name in ("L-MAC (area .4)", "L-MAC (area .4), absent digits", "frozen reader")
        if f"{name} #0" in table
    ]
    draw(listener, two_digits(measured, options.count, 0.0), shown, out / "two-digits.jpg")
    write_results(options, text, results)


if __name__ == "__main__":
    main()
