"""Explain sound files and write what a person can look at and listen to.

STEM.png            spectrogram, mask, kept, removed, probabilities: what the classifier heard
STEM.npy            the raw map (F, T)
STEM.kept.wav       what the mask keeps, with the phase and the loudness of the recording
STEM.removed.wav    what it removes
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from salmask.audio.hearing import SHOWN, Hearing
from salmask.audio.sounds import Recording, read_sound, sounds_in, write_sound
from salmask.cli.explain_files import (
    ExplainedFile,
    Shown,
    class_index,
    explained_file,
    figure_of,
    named_pictures,
    on_scale,
    save_array,
    title_of,
    write_png,
)
from salmask.data.streams import Bar
from salmask.evaluation.panels import class_names_of, played_panels
from salmask.explain.base import Explainer
from salmask.files import replace_file, writable_folder
from salmask.masking import MeanColour, keep, remove
from salmask.training.run import Loaded

__all__ = ["explain_sounds"]


def explain_sounds(
    paths: Sequence[Path],
    name: str,
    explainer: Explainer,
    loaded: Loaded,
    *,
    out: Path,
    shown: Shown | None = None,
    skip_broken: bool = False,
    progress: Bar = iter,
    say: Callable[[str], None] = lambda text: None,
) -> list[ExplainedFile]:
    """Explain sound files, or all in a folder, one by one; return what became of each.

    All files are read before the first is explained; skip_broken leaves out those that cannot be, with a warning. say:
    prints one line where the classifier hears less than the file. Warns of files that are silent or clipped.
    """
    shown = Shown() if shown is None else shown
    hearing, names = loaded.view, class_names_of(loaded)
    assert isinstance(hearing, Hearing)
    chosen = None if shown.target is None else torch.tensor([class_index(shown.target, names)])
    if explainer.wants & {"boxes", "pixels"}:
        raise ValueError(f"{name} needs ground truth, which sound files do not carry: use `salmask evaluate`")
    recordings = _readable(sounds_in(paths), hearing, skip_broken=skip_broken)
    if note := _length_note(recordings, hearing.seconds):
        say(note)
    done: list[ExplainedFile] = []
    for stem, path in progress(list(named_pictures(list(recordings), writable_folder(out)).items())):
        heard = hearing.hear(recordings[path].wave)
        images = heard.picture[None].to(loaded.classifier.device)
        explanation = explainer(loaded.classifier, images, chosen)
        scaled = on_scale(explanation, shown.normalize)
        (panels,) = played_panels(loaded, images, scaled.masks, explanation, top=shown.top, names=names)
        write_png(out, stem, figure_of(panels, title_of(path.name, name, explanation, names, lost=f", {SHOWN}")))
        replace_file(out / f"{stem}.npy", partial(save_array, explanation.masks[0, 0]))
        infill, masks = MeanColour.of(loaded.classifier), scaled.masks.float()
        for side, play in (("kept", keep), ("removed", remove)):
            sound = hearing.sound(play(images, masks, infill)[0], heard)
            write_sound(out / f"{stem}.{side}.wav", sound, hearing.sample_rate)
        written = tuple(out / f"{stem}{ending}" for ending in (".png", ".kept.wav", ".removed.wav"))
        done.append(explained_file(path, panels, explanation, written, (out / f"{stem}.npy",)))
    return done


def _readable(files: Sequence[Path], hearing: Hearing, *, skip_broken: bool) -> dict[Path, Recording]:
    """Return the files that can be read; others are left out with a warning, or are an error."""
    good = {}
    for path in files:
        try:
            recording = read_sound(path, hearing.sample_rate, seconds=hearing.seconds)
        except (ValueError, OSError) as error:
            if not skip_broken:
                raise
            warnings.warn(f"left out: {error}", stacklevel=3)
            continue
        if recording.cancelled:
            warnings.warn(
                f"the channels of {path.name} cancel each other where they are averaged: what is explained is a "
                "decision on what is left; give one channel",
                stacklevel=3,
            )
        elif recording.silent:
            warnings.warn(f"{path.name} is silent: what is explained is a decision on silence", stacklevel=3)
        if recording.clipped:
            warnings.warn(
                f"{path.name} is clipped: {recording.clipped:.0%} of its samples are at full scale", stacklevel=3
            )
        good[path] = recording
    if not good:
        raise ValueError("none of the sounds can be decoded")
    return good


def _length_note(recordings: Mapping[Path, Recording], seconds: float) -> str:
    """Return one line on sounds that are longer than what is heard of them; "" without any."""
    longer = {path: recording.seconds for path, recording in recordings.items() if recording.seconds > seconds + 0.005}
    if not longer:
        return ""
    most = max(longer, key=lambda path: longer[path])
    others = f", of {len(longer) - 1} more up to as much" if len(longer) > 1 else ""
    return (
        f"the classifier hears the first {seconds:g} seconds: {1 - seconds / longer[most]:.0%} of {most.name} "
        f"is cut off{others}"
    )
