"""`salmask score`: maps that any other tool has made."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import tyro

from salmask import __version__
from salmask.cli.console import Command, print_table, progress_bar, say, typed_command
from salmask.cli.options import Normalize, SightOptions, refuse_unused
from salmask.files import Facts

__all__ = ["ScoreCommand"]


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(Command, SightOptions):
    """Score maps that any other tool made."""

    maps: tyro.conf.Positional[Path]
    """.npz with ids (N,) and maps (N, H, W), or maps.npy with ids.txt or ids.npy beside it."""
    boxes: Path | None = None
    """CSV with image,class,x0,y0,x1,y1, in pixels of the maps unless width,height are given; or a folder of XML files
    such as ILSVRC's."""
    masks: Path | None = None
    """Folder of pixel truth, one PNG an id: 0, 255 (object), 128 (ignored), or trimaps as of Oxford-IIIT Pet."""
    out: Path
    """Folder for rows.jsonl, summary.json and index.html."""
    labels: Path | None = None
    """CSV with image,label[,predicted] for scores that need the class, or whether the model was right."""
    gaze: Path | None = None
    """Folder of gaze maps, one .npy or .png an id, for scores of human attention."""
    target: Literal["label", "predicted"] = "label"
    """The class that the maps explain, a column of --labels."""
    metric: tuple[str, ...] | None = None
    """Names as in docs/metrics.md; all that the given truth allows where not given."""
    normalize: Normalize = "none"
    """How maps outside [0, 1] come into it."""
    classifier: str | None = None
    """SPEC, for scores that need one."""
    data: Path | None = None
    """Folder of the pictures, for scores that need them: an id is the path of a picture below it."""
    baselines: bool = True
    """Score trivial maps on the same pictures, too: full, empty, center, random."""
    only_scored: bool = False
    """Leave out boxes and labels of pictures that have no map, instead of stopping."""
    processes: int = 1
    """How many work side by side."""
    seed: int = 0
    """Of scores and baselines that draw."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.evaluation.evaluate import Work, score
        from salmask.evaluation.saved import scoring_from
        from salmask.explain.controls import BASELINES
        from salmask.rows.read import ROWS
        from salmask.training.run import load_classifier

        if (self.classifier is None) != (self.data is None):
            raise ValueError("scores that show pictures to a classifier need both: --classifier and --data")
        if self.classifier is not None and self.labels is None:
            raise ValueError("which class is to be scored? Give --labels, a CSV with image,label")
        if self.classifier is None:
            seen = (field.name for field in fields(SightOptions))
            refuse_unused(self, seen, "for a classifier that scores, and --classifier is not given")
        if self.labels is None:
            refuse_unused(self, ("target",), "a column of --labels, which is not given")
        scoring = None
        if self.classifier is not None and self.data is not None:
            loaded = load_classifier(self.classifier, **self.pictures())
            scoring = scoring_from(loaded, self.data, target=self.target)
        about = {"command": typed_command(), "version": __version__}
        about |= {"classifier": self.classifier} if self.classifier else {}
        summary = score(
            self.maps,
            self.boxes,
            out=self.out,
            masks_dir=self.masks,
            labels=self.labels,
            gaze=self.gaze,
            metrics=self.metric,
            normalize=self.normalize,
            scoring=scoring,
            baselines=tuple(BASELINES) if self.baselines else (),
            seed=self.seed,
            work=Work(self.processes, progress_bar("scoring"), self.only_scored, about),
        )
        say(f"report: {self.out / 'index.html'}")
        print_table(summary, tuple(dict.fromkeys(name for row in summary.values() for name in row))[:8])
        return {"report": self.out / "index.html", "rows": self.out / ROWS, "summary": summary}
