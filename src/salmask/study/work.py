"""One job: a masker is trained and measured in a folder that is named by the content of its settings.

    python -m salmask.study.work FOLDER tuning|val|maps|checks [OPTIONS]

    job.json      {"content": what the folder's name is made of, "source": where data and classifier are found}
    run.json ...  the trained run;  metrics.jsonl, checkpoint.pt;  seconds.json
    tuning/, val-N/  rows of the held-out training images, and of N images of val; val-N-top0.5/ and the like: of
                  other readings of the same masker; OPTIONS: JSON {"top": ..., "area": ..., "pictures": N}
    maps-N/, checks-N/  maps of N images of val, and what randomised weights do to them (`checking`)
    failed.txt    why the last try failed; the next one begins where it stopped

Only one process at a time works in a folder, also where several machines share it.
"""

import hashlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from salmask.classifier.inputs import Inputs
from salmask.data import CropFlip, Labelled, Reader, SampleTransform, Subset, open_data, split_off
from salmask.data.streams import spread
from salmask.data.synthetic import Synthetic
from salmask.evaluation.evaluate import compare
from salmask.evaluation.explained import Rules
from salmask.explain import EXPLAINERS
from salmask.explain.base import Explainer
from salmask.explain.learned import Learned
from salmask.files import JSON, Facts, replace_file
from salmask.metrics import METRICS
from salmask.specs import load_infills
from salmask.study.checking import CHECKS, MAPS, write_checks, write_maps
from salmask.study.settings import Regime, Scale
from salmask.training.run import Loaded, load_classifier, load_run
from salmask.training.settings import ORIGINAL, ReadAs, Settings
from salmask.training.train_run import train_run
from salmask.training.variant import Variant, chosen_data, decoded_once, masker_options

__all__ = ["METRICS_OF", "Source", "StudyJob", "finished", "layers_read", "results", "work"]

METRICS_OF = {
    "tuning": ("le", "f1", "mask_mean"),
    "val": ("om", "le", "f1", "sm", "pxap:boxes", "mask_mean", "mask_entropy", "mask_tv"),
}
_MASKER, _EXPLAINER = 3, 2  # formats of a job's content: raise one where the same settings would give other rows


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a study finds its pictures and its classifier. data: of `open_data`, or None for built-in pictures.

    seen: further keyword arguments of `load_classifier`, name and value: how pictures are seen, what the answer means.
    """

    data: str | None
    classifier: str
    image_size: int | None = None
    seen: tuple[tuple[str, object], ...] = ()

    @classmethod
    def of(cls, facts: Facts) -> "Source":
        """Return the source that a file of a job describes, where tuples are lists."""
        return cls(**{**facts, "seen": tuple((name, _hashable(value)) for name, value in facts["seen"])})

    def load(self) -> Loaded:
        """Return the classifier, as it is before any masker."""
        seen: JSON = dict(self.seen)
        loaded = load_classifier(
            self.classifier,
            image_size=self.image_size,
            **seen,
        )
        loaded.classifier.network.to(memory_format=torch.channels_last)  # a third faster on a CPU
        return loaded

    def folder(
        self, split: str, *, transform: SampleTransform | None, classes: Sequence[str] | None = None
    ) -> Labelled:
        """Return the pictures of a split; classes: another split's, else the network's, as far as it has names."""
        if self.data is not None:
            classes = _named_classes(self, split) if classes is None else classes
            read, inputs = _reading(self)
            return open_data(self.data, split, transform=transform, classes=classes, read=read, inputs=inputs)
        pictures = Synthetic(4000 if split == "train" else 500, seed=int(split != "train"), size=64)
        return pictures if transform is None else Subset(pictures, transform=transform)

    def classes(self) -> int:
        """Return how many classes the pictures have; the network may know more."""
        return len(set(self.folder("train", transform=None).targets))

    def fingerprint(self) -> JSON:
        """Return an identity of data and classifier that does not depend on their paths."""
        train = self.folder("train", transform=None)
        digest = hashlib.sha256(json.dumps([list(train.ids), list(train.targets)]).encode()).hexdigest()[:16]
        loaded = self.load()
        options = loaded.classifier.options()
        return {
            **({"options": options} if options else {}),
            "data": digest,
            "classifier": loaded.classifier.fingerprint(),
            "network": loaded.network,
            "view": asdict(loaded.sight),
        }


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """A variant with a seed, or an explainer by name, at a scale, on the data and classifier of a source."""

    source: Source
    scale: Scale
    seed: int = 0
    variant: Variant | None = None
    explainer: str | None = None

    def content(self, fingerprint: JSON) -> JSON:
        """Return the settings that make this job different from others, as JSON has it."""
        facts: JSON = fingerprint | ({"as_released": True} if self.scale.as_released else {})
        if self.variant is None:
            facts |= {"format": _EXPLAINER, "explainer": self.explainer}
        else:
            trained = {"variant": self.variant.trained().settings(), "scale": self.scale.training()}
            facts |= {"format": _MASKER, **trained, "seed": self.seed}
        return json.loads(json.dumps(facts))  # type: ignore[no-any-return]

    def folder(self, under: Path, fingerprint: JSON) -> Path:
        """Return the job's folder, named by its content."""
        text = json.dumps(self.content(fingerprint), sort_keys=True)
        return under / hashlib.sha256(text.encode()).hexdigest()[:12]

    def write(self, folder: Path, fingerprint: JSON) -> None:
        """Make the job's folder, with the job.json that `work` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"content": self.content(fingerprint), "source": asdict(self.source), "scale": self.scale.settings()}
        replace_file(folder / "job.json", lambda at: at.write_text(json.dumps(facts, indent=1) + "\n"))


def results(folder: Path, on: str, count: int | None, reading: str = "") -> Path:
    """Return the folder of a job's results; count: of pictures, None for all."""
    return folder / ((on if on == "tuning" else f"{on}-{count or 'all'}") + reading)


def finished(folder: Path, on: str, count: int | None, reading: str = "") -> Path:
    """Return the file that exists once a job is done."""
    return results(folder, on, count, reading) / {"maps": MAPS, "checks": CHECKS}.get(on, "summary.json")


def work(
    folder: Path,
    on: str,
    top: float | None = None,
    area: float | None = None,
    reads: str | None = None,
    pictures: int | None = None,
) -> None:
    """Do a job, as far as it is not done: train, then measure on the held-out images or on val, or check the maps.

    top, area, reads: as in `ReadAs`. pictures: of val, for "maps" and "checks".

    Errors: whatever goes wrong, after it was written to failed.txt; ValueError where another process is at it.
    """
    try:
        with FileLock(folder / ".job.lock"):
            try:
                _work(folder, on, ReadAs(top=top, area=area, reads=reads), pictures)
            except KeyboardInterrupt:  # the study was interrupted; the job has not failed
                raise
            except BaseException:
                (folder / "failed.txt").write_text(traceback.format_exc())
                raise
            (folder / "failed.txt").unlink(missing_ok=True)
    except Timeout:
        raise ValueError(f"another process works in {folder}") from None


def _work(folder: Path, on: str, read: ReadAs, pictures: int | None) -> None:
    facts = json.loads((folder / "job.json").read_text())
    content, source, scale = facts["content"], Source.of(facts["source"]), Scale.of(**facts["scale"])
    count = scale.measured if on == "val" else pictures
    if finished(folder, on, count, read.word()).is_file():
        return
    out = results(folder, on, count, read.word())
    base = source.load()
    if "explainer" in content:
        explainer: Explainer = EXPLAINERS[content["explainer"]]()
        loaded, name = base, content["explainer"]
    else:
        explainer, loaded = _masker(folder, Variant.of(**content["variant"]), read, content["seed"], source, scale)
        name = folder.name
    dataset = _pictures(source, on, count, scale, base.view.transform())
    if on == "maps":
        write_maps(explainer, loaded, dataset, out)
    elif on == "checks":
        write_checks(explainer, loaded, dataset, out, released=scale.as_released)
    else:
        compare(
            {name: (explainer, loaded)},
            {metric: METRICS[metric] for metric in map(scale.metric, METRICS_OF[on])},
            dataset,
            rules=Rules(target="label", scoring=base.classifier),
            out=out,
            about={},
            batch_size=50,
            pictures=0 if on == "tuning" else 24,
        )


def _pictures(source: Source, on: str, count: int | None, scale: Scale, transform: SampleTransform) -> Labelled:
    """Return the pictures of a phase: the held-out training images, or `count` images of val."""
    if on == "tuning":
        return Subset(_split(source, scale.regime.held_out)[1], transform=transform)
    classes = source.folder("train", transform=None).classes
    return spread(source.folder("val", transform=transform, classes=classes), count)


def _masker(
    folder: Path, variant: Variant, read: ReadAs, seed: int, source: Source, scale: Scale
) -> tuple[Explainer, Loaded]:
    base = source.load()
    if not (folder / "run.json").is_file():
        start = time.perf_counter()
        _train(folder, variant, seed, base, scale, _split(source, scale.regime.held_out)[0])
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - start))
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    run = load_run(folder)
    reader = run.reader
    if read.reads is not None:
        own = read.reads == ORIGINAL
        reader = None if own else load_classifier(read.reads, **asdict(base.sight)).classifier
    return Learned(run.masker, area=read.area, top=read.top).read_by(reader), base


def _train(folder: Path, variant: Variant, seed: int, loaded: Loaded, scale: Scale, train_set: Labelled) -> None:
    regime, crops = scale.regime, scale.crops
    dataset = chosen_data(variant.data, train_set, seed)
    settings = Settings(
        epochs=variant.images * regime.images / len(dataset),
        batch_size=regime.batch_size,
        lr=variant.lr * regime.lr,
        classifier_lr=regime.classifier_lr,
        decay_at=regime.decay_at,
        precision=regime.precision,
        seed=seed,
        save_every=100,
        target=variant.target,
    )
    augment = loaded.view.augmentation()
    if isinstance(augment, CropFlip):  # sounds are shifted, not cropped
        size = crops.train_size or loaded.view.image_size
        augment = replace(augment, size=size, scale=(crops.scale_crop, crops.scale_most))
    learns = variant.learns
    mask = replace(
        variant.mask, layers=variant.mask.layers or layers_read(regime.layers, len(loaded.classifier.layers))
    )
    train_run(
        dataset,
        replace(loaded, classes=loaded.classes or tuple(train_set.classes)),
        recipe=scale.recipe(variant),
        settings=settings,
        masker_options=masker_options(mask, loaded),
        infill=load_infills(learns.infills, loaded, train_set, seed=seed, remask=learns.remask),
        batches=decoded_once(dataset, settings, augment),
        out=folder,
        facts={"variant": variant.settings()},
        resume=(folder / "checkpoint.pt").exists(),
    )


def layers_read(layers: tuple[int, ...], maps: int) -> tuple[int, ...] | None:
    """Return the layers of a study, which are the paper's where it does not say; of fewer maps the two deepest."""
    usual = layers == Regime().layers
    return None if usual and maps <= max(layers) else layers


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@cache
def _reading(source: Source) -> tuple[Reader, Inputs | None]:
    """Return how the files of a source are decoded for its classifier, and what they are of."""
    loaded = source.load()
    return loaded.reader(), loaded.classifier.inputs


@cache
def _named_classes(source: Source, split: str) -> tuple[str, ...] | None:
    """Return a name for each class of the network, that of its folder if it has one; None where nobody names them."""
    names = source.load().folders(str(source.data), split)
    return None if names is None else tuple(names)


@cache
def _split(source: Source, held_out: int) -> tuple[Labelled, Labelled]:
    return split_off(source.folder("train", transform=None), per_class=held_out, seed=0)


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}"))
    except KeyboardInterrupt:
        sys.exit(130)
