"""What is saved as settings and weights, on the disk and on the hub: config.json, model.safetensors, README.md."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn

from salmask.classifier.weights import CONFIG, WEIGHTS, save_module, saved_in
from salmask.files import JSON, replace_file

__all__ = ["OnHub", "saved_at"]

_CARD = """---
{{ card_data }}
---

# A masker of salmask

Reads the maps of a classifier and returns, in one pass, a mask of the pixels that the classifier's decision rests on.

```python
import salmask

masker = salmask.Masker.from_pretrained("{{ place }}")
explanation = salmask.explain(classifier, images, explainer=masker)
```

| | |
|---|---|
| classifier | not in this folder; fingerprint of its weights: {{ classifier }} |
| maps that it reads | {{ layers }} of those with channels {{ channels }} and strides {{ strides }} |
| licence | {{ licence }} |

`salmask share RUN` shares a run: masker, classifier and what is known of the training.
"""
_TOLD = ("classifier", "layers", "channels", "strides")


class OnHub(  # type: ignore[call-arg]
    ModelHubMixin, library_name="salmask", tags=["saliency"], model_card_template=_CARD
):
    """A module that can be saved and pushed to the hub: huggingface-hub's mixin over files of our own."""

    @abstractmethod
    def settings(self) -> JSON:
        """Return the JSON-able settings that `config.json` holds."""

    def save_pretrained(  # type: ignore[override]
        self, folder: str | Path, *, config: None = None, model_card_kwargs: Mapping[str, str] | None = None
    ) -> None:
        """Write config.json and model.safetensors; each file appears whole or not at all.

        config: as the mixin calls it; the settings are written in any case. model_card_kwargs: what a model card is to
        say (licence, place), which is written as README.md where it is given.
        """
        save_module(cast(nn.Module, self), self.settings(), folder)
        if model_card_kwargs is not None:
            card = str(self.generate_model_card(**model_card_kwargs))
            replace_file(Path(folder) / "README.md", lambda at: at.write_text(card, encoding="utf-8"))

    def generate_model_card(  # type: ignore[override]
        self, *, licence: str = "unspecified", place: str = "OWNER/NAME"
    ) -> ModelCard:
        """Return what README.md says of a masker without its run; place: where it lies on the hub."""
        about = {name: str(value) for name, value in self.settings().items() if name in _TOLD}
        return super().generate_model_card(**about, licence=licence, place=place)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, model_card_kwargs: Mapping[str, str] | None = None, **options: object
    ) -> str:
        """Push config.json, model.safetensors and a model card to the hub; return the address of the commit.

        repo_id: "OWNER/NAME". model_card_kwargs: {"licence": ...}. options: of the mixin: private, token, branch,
        create_pr, commit_message. `salmask share RUN --push OWNER/NAME` pushes a whole run.
        """
        card = {"place": repo_id, **(model_card_kwargs or {})}
        return super().push_to_hub(repo_id, model_card_kwargs=card, **options)  # type: ignore[arg-type]


def saved_at(source: str | Path, what: str, *, revision: str | None, **download: object) -> tuple[Path, Path]:
    """Return config.json and model.safetensors of a folder, or of a hub id ("owner/name"), which are downloaded.

    what: is expected there, in words. download: of `huggingface_hub.hf_hub_download`.
    Errors: FileNotFoundError naming what is not there.
    """
    if Path(source).is_dir() or not _is_hub_id(str(source)):
        return saved_in(source, what)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        config, weights = (
            Path(hf_hub_download(str(source), name, revision=revision, **download))  # type: ignore[call-overload]
            for name in (CONFIG, WEIGHTS)
        )
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"no {what} can be had from {source} ({type(error).__name__}: {reason}): expected a folder, or OWNER/NAME "
            "on the hub"
        ) from error
    return config, weights


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))
