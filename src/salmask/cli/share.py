"""`salmask share`: a run as one folder for others, with a model card; pushed to the hub only when told."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from salmask.cli.console import Command, say
from salmask.cli.options import refuse_unused
from salmask.files import JSON, Facts, replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ShareCommand"]

_CARD, _PICTURE = "README.md", "pictures.png"


@dataclass(frozen=True, kw_only=True)
class ShareCommand(Command):
    """Write a run into one folder for others, with a model card; --push sends it to the hub (docs/sharing.md)."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or `imagenet`, the masker for photographs that comes with the package."""
    out: Path
    """Folder to write: look at it before you share it."""
    scores: Path | None = None
    """Folder of an evaluation of the run (`salmask evaluate --out`), whose table the card shows."""
    pictures: int = 0
    """Show so many of the evaluation's pictures on the card; they are pictures of your data, so none unless asked."""
    licence: str = "unspecified"
    """Under which others may use it, such as cc-by-4.0."""
    data_name: str | None = None
    """What the card calls the training data; the name of its folder where not given."""
    include_classifier: bool = True
    """Put the classifier into the folder; else the network is only named, with the SHA-256 of its weights."""
    push: str | None = None
    """OWNER/NAME on the hub to send the folder to, with the account of `hf auth login`."""
    private: bool = False
    """Make that place private where it is new."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.report.card import told_rows
        from salmask.specs import SHIPPED
        from salmask.training.provenance import place_on_hub
        from salmask.training.run import SHIPPED as MASKER
        from salmask.training.run import load_run, load_shipped
        from salmask.training.sharing import push_folder, reference_to, run_facts, share_run

        if self.pictures < 0:
            raise ValueError(f"expected no picture or more on the card (--pictures), got {self.pictures}")
        if not self.licence.strip() or len(self.licence.splitlines()) > 1:
            raise ValueError(f"a licence is named in one line, such as cc-by-4.0, got {self.licence!r}")
        if self.push is None:
            refuse_unused(self, ("private",), "of a place on the hub, and --push is not given")
        else:
            place_on_hub(f"hf-hub:{self.push}")  # for its clear error, before anything is written
        shipped = self.run == SHIPPED and not Path(self.run).is_dir()
        run = load_shipped() if shipped else load_run(self.run)
        facts = {} if shipped else run_facts(Path(self.run))
        own = self._own(run.masker.fingerprint())
        reference = None if self.include_classifier else reference_to(run.loaded)
        content = share_run(run, self.out, facts, reference=reference)
        told = told_rows(MASKER / _CARD) if shipped else {}
        beside = self._write_card(content, own, told)
        say(f"run: {self.out} ({', '.join(sorted(path.name for path in self.out.iterdir() if path.is_file()))})")
        if self.licence == "unspecified" and not shipped:
            say("licence: unspecified, and so says the card; name one with --licence")
        address = None
        if self.push is not None:
            address = push_folder(self.out, self.push, beside=beside, private=self.private or None)
            say(f"pushed: {address}")
        return {"run": self.out, "card": self.out / _CARD, "pushed": address, "sha256": content["sha256"]}

    def _own(self, weights: str) -> "Sequence[str]":
        """Return the explainers of the evaluation that are this masker. Errors: ValueError for none."""
        from salmask.report.card import own_rows, run_pictures, scores_of

        if self.scores is None:
            if self.pictures:
                raise ValueError("the pictures of the card are those of an evaluation: name it (--scores)")
            return ()
        scores, own = scores_of(self.scores), own_rows(self.scores, weights)
        if missing := [name for name in own if name not in scores]:
            raise ValueError(f"{self.scores} has no scores of {missing[0]}: go on with the same `salmask evaluate`")
        if self.pictures:
            run_pictures(self.scores, own[0], self.pictures)  # for its clear error, before anything is written
        return own

    def _write_card(self, content: JSON, own: "Sequence[str]", told: "Mapping[str, str]") -> "Sequence[str]":
        """Write README.md and its picture, and return the names of what is written."""
        from salmask.report.card import card_text, run_pictures, scores_of
        from salmask.rows.read import read_meta

        picture = _PICTURE if self.pictures and self.scores is not None else None
        if picture is not None and self.scores is not None:
            sheet = run_pictures(self.scores, own[0], self.pictures)
            replace_file(self.out / picture, lambda at: sheet.save(at, "PNG"))
        else:
            (self.out / _PICTURE).unlink(missing_ok=True)  # of what was shared into this folder before
        text = card_text(
            content,
            place=self.push or "OWNER/NAME",
            licence=self.licence,
            data=self.data_name,
            scores=None if self.scores is None else scores_of(self.scores),
            measured="" if self.scores is None else str(read_meta(self.scores).get("data", "unnamed data")),
            own=own,
            picture=picture,
            told=told,
        )
        replace_file(self.out / _CARD, lambda at: at.write_text(text, encoding="utf-8"))
        return [_CARD] if picture is None else [_CARD, picture]
