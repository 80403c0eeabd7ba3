"""The study of connectivity: paths between all checkpoints, the evidence that each rests on, and what goes with what.

    OUT/parts/networks/*.safetensors   built-in data: the start and its fine-tunings
    OUT/parts/maskers/NAME/            a masker a checkpoint and recipe, and `in_turn`, trained against all of them
    OUT/parts/paths/A--B.npz           what is measured at each point: losses by picture, shares, evidence
    OUT/parts/maps/NAME.npz            maps of one explainer of one checkpoint
    OUT/connectivity.json, rows.jsonl  what the report is made from (`report.connectivity`)

What is there is not made again: a study that was killed goes on where it stopped. `parts` may be deleted in the end.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from operator import methodcaller
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from salmask.classifier import Classifier
from salmask.data import Batch, Labelled, SampleTransform, collate
from salmask.data.cues import CuePictures
from salmask.data.streams import spread
from salmask.explain.base import Explainer
from salmask.explain.learned import Learned
from salmask.files import ANYTHING, JSON, read_json, replace_file, writable_folder
from salmask.masker import Masker
from salmask.masking import MeanColour
from salmask.metrics.similarity import similarities_for
from salmask.outcome import play_at_rest, whole_logits
from salmask.rows.read import file_name, write_json
from salmask.specs import load_explainer
from salmask.study.checking import Bounded
from salmask.study.connectivity import check_line, places, walk
from salmask.study.evidence import Conflict, cue_scores
from salmask.study.trials import Trial, trial_losses, trials_of
from salmask.training.log import LOG, collapse
from salmask.training.recipes import RECIPES
from salmask.training.run import RUN, Loaded, load_run
from salmask.training.settings import Settings
from salmask.training.train import train_masker
from salmask.training.train_run import train_run
from salmask.training.variant import stream_of
from salmask.training.views import View
from salmask.types import Images

__all__ = ["EXPLAINED_BY", "IN_TURN", "MEASURES", "Connection", "Extent", "Pictures"]

IN_TURN = "in_turn"
"""The explainer that is one masker, trained against all checkpoints in turn."""
EXPLAINED_BY = ("gradcam", "gradient", "rise:masks=200", "fix", "reader", IN_TURN)
MEASURES = ("spearman", "ssim")
_FREE = {"clusters", "explainers"}  # what may change within a folder
Say = Callable[[str], None]
Arrays = dict[str, ndarray]


@dataclass(frozen=True)
class Pictures:
    """What the networks are shown: training pictures as they are read, val pictures as a classifier sees them, and
    pictures whose cues are in conflict, and each cue alone, where the data has cues.

    augment: from how a classifier sees a file to how a masker's training pictures are varied. A cue that lies in a
    corner, and counts there alone, allows no crop and no flip: `View.transform`.
    """

    train: Labelled
    val: Labelled
    conflict: CuePictures | None = None
    alone: Mapping[str, CuePictures] = field(default_factory=dict)
    augment: Callable[[View], SampleTransform] = methodcaller("augmentation")


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured and trained.

    points: of each path, ends included. fresh_statistics: batch statistics are taken anew at each point. measured: val
    pictures of a path. mapped: pictures that are explained. steps, batch_size: of each masker. statistics: batches from
    which batch statistics are taken. layers: that the maskers read, as of `Masker`.
    """

    points: int = 11
    fresh_statistics: bool = True
    clusters: int | None = None
    explainers: tuple[str, ...] = EXPLAINED_BY
    measured: int = 128
    mapped: int = 64
    steps: int = 240
    batch_size: int = 40
    statistics: int = 6
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        places(self.points)
        for name in ("measured", "mapped", "steps", "batch_size", "statistics"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.clusters is not None and self.clusters < 1:
            raise ValueError(f"expected at least one cluster (--clusters), got {self.clusters}")
        if not self.explainers or len(set(self.explainers)) < len(self.explainers):
            raise ValueError(f"expected explainers by name, each once, got {', '.join(self.explainers) or 'none'}")


@dataclass
class Connection:
    """The study at work on some checkpoints: everything that is made lies in `out`, and is made once.

    Errors: ValueError for checkpoints between which there is no line, and for a folder that holds another study.
    """

    networks: Mapping[str, Loaded]
    pictures: Pictures
    extent: Extent
    out: Path
    say: Say

    def __post_init__(self) -> None:
        check_line(self.networks)
        if self.extent.clusters is not None and not 1 <= self.extent.clusters <= len(self.networks):
            raise ValueError(
                f"expected 1 to {len(self.networks)} clusters of {len(self.networks)} networks, got "
                f"{self.extent.clusters}"
            )
        for name in {*self.extent.explainers} - {IN_TURN, *RECIPES}:  # a wrong name, before anything is made
            load_explainer(name, loaded=next(iter(self.networks.values())), seed=self.extent.seed)
        for part in ("maskers", "paths", "maps"):
            writable_folder(self.out / "parts" / part)
        self._agree()
        self.conflict = None if self.pictures.conflict is None else Conflict.of(self.pictures.conflict)

    @property
    def cues(self) -> list[str]:
        """The planted cues; none on other data."""
        return [] if self.conflict is None else [*self.conflict.said]

    # Explainers

    def explainer(self, name: str, network: str) -> Explainer:
        """Return an explainer of a checkpoint: a masker that is trained where it is not there, or one by its name."""
        if name == IN_TURN:
            return Learned(self._in_turn())
        loaded = self.networks[network]
        if name not in RECIPES:
            return load_explainer(name, loaded=loaded, seed=self.extent.seed)[1]
        run = load_run(self._trained(name, network))
        return Learned(run.masker).read_by(run.reader)

    def collapsed(self, name: str) -> list[str]:
        """Return the networks of which a recipe's training collapsed each time it was begun; none of other explainers.

        Of a masker trained in turn, all networks.
        """
        if name == IN_TURN:
            return [*self.networks] if collapse(self._masker_folder(IN_TURN) / LOG) else []
        if name not in RECIPES:
            return []
        return [network for network in self.networks if collapse(self._trained(name, network) / LOG)]

    def _masker_folder(self, name: str) -> Path:
        return self.out / "parts" / "maskers" / file_name(name)

    def _trained(self, name: str, network: str) -> Path:
        """Return the folder of a masker, trained as far as it is not there; begun anew, once, where it collapses."""
        folder = self._masker_folder(f"{network} {name}")
        self._train(name, network, folder, self.extent.seed)
        if collapse(folder / LOG):
            folder = self._masker_folder(f"{network} {name} anew")
            self._train(name, network, folder, self.extent.seed + 1)
        return folder

    def _train(self, name: str, network: str, folder: Path, seed: int) -> None:
        if (folder / RUN).is_file():
            return
        loaded, settings = self.networks[network], replace(self._settings(), seed=seed)
        train_run(
            self.pictures.train,
            loaded,
            recipe=RECIPES[name],
            settings=settings,
            batches=stream_of(self.pictures.train, settings, self.pictures.augment(loaded.view)),
            out=folder,
            masker_options={"layers": self.extent.layers},
            facts={},
            resume=(folder / "checkpoint.pt").exists(),
        )
        self.say(f"masker {name} of {network}{' (begun anew: collapsed)' if seed != self.extent.seed else ''}")

    def _in_turn(self) -> Masker:
        folder, members = self._masker_folder(IN_TURN), list(self.networks.values())
        if not (folder / "config.json").is_file():
            first, settings = members[0], self._settings()
            generator = torch.Generator().manual_seed(settings.seed)
            masker = Masker.for_classifier(first.classifier, layers=self.extent.layers, generator=generator)
            train_masker(
                masker,
                [one.classifier for one in members],
                stream_of(self.pictures.train, settings, self.pictures.augment(first.view)),
                len(self.pictures.train),
                recipe=RECIPES["fix"],
                settings=settings,
                out=folder,
                resume=(folder / "checkpoint.pt").exists(),
            )
            masker.save_pretrained(folder)
            self.say(f"masker trained against all {len(members)} networks in turn")
        return Masker.from_pretrained(folder)

    def _settings(self) -> Settings:
        extent = self.extent
        return Settings(
            epochs=extent.steps * extent.batch_size / len(self.pictures.train),
            batch_size=extent.batch_size,
            seed=extent.seed,
            decay_at=(0.6, 0.85),
            precision="32-true",
            lr=3e-3,
        )

    # Paths

    def paths(self) -> dict[tuple[str, str], Arrays]:
        """Return what is measured along the line between every two checkpoints: name -> (points, pictures)."""
        pairs = list(combinations(self.networks, 2))
        found = {}
        for number, (first, second) in enumerate(pairs, start=1):
            path = self.out / "parts" / "paths" / f"{file_name(first)}--{file_name(second)}.npz"
            if not path.is_file():
                _save(path, self._path(first, second))
                if number % 10 == 0 or number == len(pairs):
                    self.say(f"paths: {number} of {len(pairs)}")
            found[first, second] = _load(path)
        return found

    def _path(self, first: str, second: str) -> Arrays:
        one, other = self.networks[first].classifier, self.networks[second].classifier
        along = places(self.extent.points).tolist()
        statistics = self._statistics if self.extent.fresh_statistics else ()
        points = list(walk(one, other, along, self._measure, statistics=statistics))
        return {name: np.stack([point[name] for point in points]) for name in points[0]}

    def _measure(self, classifier: Classifier) -> Arrays:
        """Return by picture: losses and rights of each trial; of val, right on the kept and on the removed picture; and
        the evidence."""
        batch, explainer = self.val, Learned(self._line_masker)
        images, targets = batch.images.to(classifier.device), batch.targets.to(classifier.device)
        masks = explainer(classifier, images, targets).masks
        clean = whole_logits(classifier, images)
        outcome = play_at_rest(classifier, images, masks, targets, infill=MeanColour.of(classifier), clean=clean)
        found = {
            **trial_losses(classifier, self._trials),
            "kept": outcome.kept_right,
            "removed": outcome.removed_logits.argmax(1) == targets,
        }
        if self.conflict is not None:
            seen = explainer(classifier, self.conflict.images)
            found |= cue_scores(classifier, self.conflict, seen.masks, seen.targets)
            found |= {f"says:{cue}": value for cue, value in self.conflict.says(classifier).items()}
        return {name: value.double().cpu().numpy() for name, value in found.items()}

    # Maps

    def maps(self, name: str, network: str) -> Arrays:
        """Return an explainer's maps of a checkpoint's own decisions, and what they say of the cues.

        val: (pictures, H, W) of val pictures; conflict: of pictures in conflict; the scores of `cue_scores` of these.
        """
        path = self.out / "parts" / "maps" / f"{file_name(f'{network} {name}')}.npz"
        if not path.is_file():
            explainer, classifier = Bounded(self.explainer(name, network)), self.networks[network].classifier
            found = {"val": explainer(classifier, self.val.images[: self.extent.mapped]).masks}
            if self.conflict is not None:
                seen = explainer(classifier, self.conflict.images)
                found |= {"conflict": seen.masks, **cue_scores(classifier, self.conflict, seen.masks, seen.targets)}
            _save(path, {key: value.detach().cpu().numpy().astype(np.float32) for key, value in found.items()})
        return _load(path)

    def similarities(self, name: str) -> dict[str, Arrays]:
        """Return how alike the maps of each two checkpoints are: measure -> {"pairs": (pictures, pairs), "other"}.

        Pairs are in the order of `paths`. other: (pictures, networks), the yardstick: a checkpoint's maps against its
        own of the next picture.
        """
        path = self.out / "parts" / "maps" / f"similarity-{file_name(name)}.npz"
        if not path.is_file():
            maps = [torch.from_numpy(self.maps(name, network)["val"]) for network in self.networks]
            measures = {key: similarities_for(maps[0].shape[-1])[key] for key in MEASURES}
            found = {}
            for key, similarity in measures.items():
                pairs = [similarity(one, other) for one, other in combinations(maps, 2)]
                found[f"{key}:pairs"] = torch.stack(pairs, dim=1).numpy()
                found[f"{key}:other"] = torch.stack([similarity(one, one.roll(-1, 0)) for one in maps], dim=1).numpy()
            _save(path, found)
        arrays = _load(path)
        return {key: {kind: arrays[f"{key}:{kind}"] for kind in ("pairs", "other")} for key in MEASURES}

    # What is shared

    @cached_property
    def _line_masker(self) -> Masker:
        return self._in_turn()

    @cached_property
    def _trials(self) -> list[Trial]:
        return trials_of(self.val, self.conflict, self.pictures.alone)

    @cached_property
    def val(self) -> Batch:
        """The val pictures of paths, of which the first ones are explained; labelled."""
        chosen = spread(self.pictures.val, max(self.extent.measured, self.extent.mapped))
        return collate([chosen[index] for index in range(len(chosen))])

    @cached_property
    def _statistics(self) -> tuple[Images, ...]:
        """Batches of two training pictures or more, spread over the data, as a classifier sees them.

        Errors: ValueError for data of one picture, which has no variance.
        """
        size = max(2, self.extent.batch_size)
        chosen = spread(self.pictures.train, self.extent.statistics * size)
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(self.extent.seed)).tolist()
        transform = next(iter(self.networks.values())).view.transform()
        images = collate([transform(chosen[index]) for index in order]).images
        if len(images) < 2:
            raise ValueError(
                "batch statistics are taken of two training pictures at least, got 1: add pictures, or interpolate the "
                "networks' own (--no-fresh-statistics)"
            )
        return tuple(part for part in images.split(size) if len(part) > 1)

    def _agree(self) -> None:
        """Write down what the folder is for. Errors: ValueError where it holds something else."""
        path = self.out / "parts" / "settings.json"
        asked = json.loads(json.dumps(self.settings()))
        if path.is_file():
            earlier = read_json(path, {str: ANYTHING}, remedy="delete the folder")
            wrong = [key for key in asked if earlier.get(key) != asked[key] and key not in _FREE]
            if wrong:
                raise ValueError(
                    f"{self.out} holds another study: {wrong[0]} was {str(earlier.get(wrong[0]))[:200]}, now it is "
                    f"{str(asked[wrong[0]])[:200]}; choose another --out or delete that folder"
                )
        write_json(path, asked)

    def settings(self) -> JSON:
        """Return what must not change within a folder, and beside it what may: clusters and explainers."""
        pictures = {"train": self.pictures.train.ids, "val": self.pictures.val.ids}
        if self.pictures.conflict is not None:
            pictures["conflict"] = self.pictures.conflict.ids
        pictures |= {f"{cue} alone": some.ids for cue, some in self.pictures.alone.items()}
        digests = {
            key: hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16] for key, ids in pictures.items()
        }
        networks = [
            (name, loaded.classifier.fingerprint()) for name, loaded in self.networks.items()
        ]  # pairs go by order
        one = next(iter(self.networks.values()))
        normalised = {"mean": one.classifier.mean.flatten().tolist(), "std": one.classifier.std.flatten().tolist()}
        seen = {**normalised, "view": str(one.view)}
        return {**asdict(self.extent), "pictures": digests, "seen": seen, "checkpoints": networks}


def _save(path: Path, arrays: Arrays) -> None:
    def write(at: Path) -> None:
        with at.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    replace_file(path, write)


def _load(path: Path) -> Arrays:
    """Return the arrays of a file. Errors: ValueError naming one that cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error}): delete it, and the same command makes it again") from error
