"""`salmask study connectivity`: do two trainings of one network rest on the same evidence?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING

from salmask import __version__
from salmask.cli.console import say, typed_command
from salmask.files import JSON, writable_folder

if TYPE_CHECKING:
    from salmask.study.connect import Extent, Pictures
    from salmask.training.run import Loaded

__all__ = ["CONNECTIVITY", "ConnectivityOptions", "connect_checkpoints"]

CONNECTIVITY = "connectivity"
_BUILTIN_LAYERS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class ConnectivityOptions:
    """Options of the study connectivity alone."""

    points: int = 11
    """connectivity: evenly spaced points of the line between two checkpoints, ends included."""
    fresh_statistics: bool = True
    """connectivity: take the batch statistics anew at each point; else they are interpolated as weights are."""
    clusters: int | None = None
    """connectivity: how many clusters of networks; by their silhouette where not given."""
    explainer: tuple[str, ...] = ()
    """connectivity: names such as gradcam or rise:masks=200, recipes (fix, reader: a masker a checkpoint), in_turn (one
    masker trained against all of them); gradcam, gradient, rise:masks=200, fix, reader and in_turn where not given."""
    cue: str = "mark"
    """connectivity: of built-in pictures, the cue beside the outline: mark or texture."""
    networks: int = 3
    """connectivity: on built-in pictures, trainings of each of three ways."""
    seed: int = 0
    """connectivity: of the maskers, of the pictures, and of networks that are trained."""


def connect_checkpoints(
    options: ConnectivityOptions, specs: tuple[str, ...], *, data: str | None, out: Path, sight: JSON, extent: JSON
) -> Path:
    """Run the study on checkpoints of one's own, or on built-in data; return its page.

    specs: of the checkpoints. sight: keyword arguments of `load_classifier`. extent: fields of `Extent`, where given.
    """
    from salmask.study.connect import EXPLAINED_BY, Connection, Extent
    from salmask.study.connected import run_connectivity

    settings = Extent(
        points=options.points,
        fresh_statistics=options.fresh_statistics,
        clusters=options.clusters,
        explainers=options.explainer or EXPLAINED_BY,
        seed=options.seed,
        **extent,
    )
    if data is None:
        if specs:
            raise ValueError("--classifier goes with --data: built-in pictures have networks of their own")
        settings, networks, pictures = _builtin(options, settings, out)
        named = {"data": f"built-in pictures, shape and {options.cue}", "classifier": "trained on built-in pictures"}
    else:
        networks, pictures = _own(specs, data, sight)
        named = {"data": Path(data).name, "classifier": ", ".join(specs)}
    connection = Connection(networks, pictures, settings, out, say)
    page = run_connectivity(connection, about={**named, "command": typed_command(), "version": __version__})
    say(f"report: {page}; tables: {out / 'study.md'}")
    return page


def _builtin(
    options: ConnectivityOptions, settings: "Extent", out: Path
) -> "tuple[Extent, Mapping[str, Loaded], Pictures]":
    from salmask.study.connect import Pictures
    from salmask.study.two_cues import TwoCues

    source = TwoCues(second=options.cue, each=options.networks, seed=settings.seed)
    count = len(source.fine_tunings)
    if settings.clusters is not None and settings.clusters > count:  # before anything is trained
        raise ValueError(f"expected 1 to {count} clusters of {count} networks, got {settings.clusters}")
    networks = source.networks(writable_folder(out / "parts" / "networks"), say)
    pictures = Pictures(
        source.train_set(),
        source.val_set(settings.measured),
        source.conflict_set(settings.mapped),
        source.alone_sets(settings.measured),
        methodcaller("transform"),  # a mark that is cropped or mirrored is none: a network that follows it is wrong
    )
    return replace(settings, layers=_BUILTIN_LAYERS), networks, pictures


def _own(specs: tuple[str, ...], data: str, sight: JSON) -> "tuple[Mapping[str, Loaded], Pictures]":
    from salmask.data import absolute, open_data
    from salmask.specs import titled
    from salmask.study.connect import Pictures
    from salmask.study.connectivity import check_line
    from salmask.training.run import check_classes, load_classifier

    networks: dict[str, Loaded] = {}
    for text in specs:
        title, spec = titled(text)
        name = title or Path(spec.rpartition("@")[2]).stem  # the file's, or that of a run's folder
        if name in networks:
            raise ValueError(f"two checkpoints are named {name}: give one another title, TITLE={spec}")
        networks[name] = load_classifier(spec, **sight)
    check_line(networks)
    loaded, folder = next(iter(networks.values())), absolute(data)
    train = open_data(folder, "train", read=loaded.reader(), classes=loaded.folders(folder, "train"))
    check_classes(train, loaded)
    val = open_data(folder, "val", read=loaded.reader(), transform=loaded.view.transform(), classes=train.classes)
    return networks, Pictures(train, val)
