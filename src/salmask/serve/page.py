"""The page itself, built with Gradio: what a visitor sees and can move, and which call follows.

picture, class, explainers  ->  Looks.explained  ->  Visit       a visitor's own, kept by Gradio for an hour
Visit, opacity, threshold ->  drawn.draw       ->  HTML
"""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from salmask.report.pictures import to_uint8
from salmask.serve.bundle import write_bundle
from salmask.serve.drawn import STYLE, draw, draw_trouble
from salmask.serve.looks import Example, Looks, Visit

if TYPE_CHECKING:
    from gradio import Blocks

__all__ = ["Limits", "build_page", "serve"]

_DECISION = "the network's decision"
_KEPT_FOR = 3600  # seconds that a visitor's picture stays
_COPIED_WITHIN = 60  # seconds after which Gradio has surely taken its copy of an archive
_WELCOME = (
    '<div class="sal"><p>Drop a picture on the left, or click on an example. Here appears what the network decides, '
    "which part of the picture an explainer holds for the evidence, and what the network says of that part alone and "
    "of the rest.</p></div>"
)
_HEADING = "# salmask\nWhich part of a {what} does the decision of {network} rest on?"


_PORTS = 65_535


@dataclass(frozen=True)
class Limits:
    """What a page takes: megabytes of an upload, and visitors who wait in line."""

    megabytes: float = 20.0
    waiting: int = 64

    def __post_init__(self) -> None:
        if not self.megabytes > 0 or self.waiting < 1:
            raise ValueError(
                f"expected more than 0 megabytes and a line of at least one, got {self.megabytes} and {self.waiting}"
            )


Source = tuple[str, str | int]
"""Where a picture comes from: ("file", path) or ("example", number)."""


@dataclass(frozen=True)
class _Answers:
    """The calls behind the page: each gets a visitor's own state and wishes, and gives the next state and HTML."""

    looks: Looks
    examples: Sequence[Example]
    parcels: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="salmask-", ignore_cleanup_errors=True)
    )
    """Where archives are packed; goes with the page."""

    def explain(
        self,
        source: Source | None,
        before: tuple[Source, Visit] | None,
        titles: list[str],
        wanted: str,
        opacity: float,
        threshold: float,
    ) -> Iterator[tuple[tuple[Source, Visit] | None, str]]:
        """Open the picture if it is another than before, and yield after each explainer."""
        if source is None:
            yield None, _WELCOME
            return
        try:
            session = before[1] if before is not None and before[0] == source else self._opened(source)
        except ValueError as error:
            yield None, draw_trouble(str(error))
            return
        target = None if wanted == _DECISION else self.looks.names.index(wanted)
        for step in self.looks.explained(session, titles, target):
            yield (source, step), draw(self.looks, step, titles, opacity=opacity, threshold=threshold)

    def show(
        self, state: tuple[Source, Visit] | None, titles: list[str], opacity: float, threshold: float
    ) -> str | None:
        """Draw what is there; None leaves the page as it is."""
        return None if state is None else draw(self.looks, state[1], titles, opacity=opacity, threshold=threshold)

    def bundle(
        self, state: tuple[Source, Visit] | None, titles: list[str], opacity: float, threshold: float
    ) -> str | None:
        """Write the archive that is taken away, and return where it lies."""
        if state is None:
            return None
        stem = "".join(letter if letter.isalnum() else "-" for letter in Path(state[1].look.name).stem)[:60]
        for earlier in Path(self.parcels.name).iterdir():  # Gradio has a copy, which goes after `_KEPT_FOR`
            if time.time() - earlier.stat().st_mtime > _COPIED_WITHIN:
                shutil.rmtree(earlier, ignore_errors=True)
        path = Path(tempfile.mkdtemp(dir=self.parcels.name)) / f"{stem or 'picture'}.zip"
        write_bundle(path, self.looks, state[1], titles, opacity=opacity, threshold=threshold)
        return str(path)

    def _opened(self, source: Source) -> Visit:
        kind, which = source
        if kind == "example":
            return self.looks.open_image(self.examples[int(which)])
        return self.looks.open_file(Path(str(which)))


def build_page(looks: Looks, examples: Sequence[Example] = (), *, limits: Limits | None = None) -> "Blocks":
    """Return the page, which `serve` puts on the web.

    Errors: ImportError that names the extra where Gradio is missing.
    """
    gradio, limits, answers = _gradio(), limits or Limits(), _Answers(looks, examples)
    with gradio.Blocks(title="salmask", analytics_enabled=False, delete_cache=(_KEPT_FOR, _KEPT_FOR)) as page:
        source, state = gradio.State(None, time_to_live=_KEPT_FOR), gradio.State(None, time_to_live=_KEPT_FOR)
        gradio.Markdown(_HEADING.format(network=looks.base.network, what="sound" if looks.hearing else "picture"))
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                _sources(gradio, examples, limits, source, "sound" if looks.hearing else "picture")
                chosen, wanted, opacity, threshold = _wishes(gradio, looks)
                take = gradio.Button("Pack map and pictures", elem_id="take")
                parcel = gradio.File(label="Map and pictures", interactive=False, visible=False, elem_id="parcel")
            with gradio.Column(scale=3):
                answer = gradio.HTML(_WELCOME, elem_id="answer", apply_default_css=False)
        private, redraw = {"api_visibility": "private"}, _redrawn(gradio, answers)
        # One event for all that changes a map, one at a time: a slow explainer never overwrites a later wish.
        gradio.on(
            [source.change, chosen.input, wanted.input],
            answers.explain,
            [source, state, chosen, wanted, opacity, threshold],
            [state, answer],
            trigger_mode="always_last",
            concurrency_limit=4,
            **private,
        ).then(
            _redrawn(gradio, answers), [state, chosen, opacity, threshold], answer, show_progress="hidden", **private
        )
        gradio.on(
            [opacity.change, threshold.change],
            redraw,
            [state, chosen, opacity, threshold],
            answer,
            trigger_mode="always_last",
            show_progress="hidden",
            concurrency_limit=4,
            **private,
        )
        take.click(
            lambda *given: gradio.File(answers.bundle(*given), visible=True),
            [state, chosen, opacity, threshold],
            parcel,
            **private,
        )
    return page


def _sources(gradio: ModuleType, examples: Sequence[Example], limits: Limits, source: object, what: str) -> None:
    """Put the places on the page where a picture comes from."""
    file = gradio.File(label=f"Drop a {what}, at most {limits.megabytes:g} MB", height=160, elem_id="file")
    file.change(lambda path: None if path is None else ("file", path), file, source, api_visibility="private")
    if not examples:
        return

    def chosen(event: gradio.SelectData) -> Source:  # type: ignore[name-defined]
        return "example", event.index

    gradio.Gallery(
        [(to_uint8(example.image), example.name) for example in examples],
        label="Examples",
        columns=2,
        height=300,
        allow_preview=False,
        interactive=False,
        object_fit="cover",
        buttons=[],
        elem_id="examples",
    ).select(chosen, None, source, api_visibility="private")


@runtime_checkable
class _Control(Protocol):
    """A component of Gradio, as far as it is used here: what happens when it changes, and when a visitor moves it."""

    change: object
    input: object


def _wishes(gradio: ModuleType, looks: Looks) -> tuple[_Control, ...]:
    """Put what a visitor can choose and move on the page."""
    titles = list(looks.explainers)
    chosen = gradio.CheckboxGroup(titles, value=titles[:2], label="Explainers, side by side", elem_id="explainers")
    wanted = gradio.Dropdown(
        [_DECISION, *looks.names], value=_DECISION, label="Class that is explained", elem_id="class"
    )
    opacity = gradio.Slider(0, 1, value=0.8, step=0.01, label="Opacity of the map", elem_id="opacity")
    threshold = gradio.Slider(0, 1, value=0, step=0.01, label="Threshold (0: the map as it is)", elem_id="threshold")
    return chosen, wanted, opacity, threshold


def _redrawn(gradio: ModuleType, answers: _Answers) -> Callable[..., object]:
    def redrawn(*given: object) -> object:
        shown = answers.show(*given)  # type: ignore[arg-type]
        return gradio.skip() if shown is None else shown

    return redrawn


def serve(
    page: "Blocks", *, host: str = "127.0.0.1", port: int = 7860, limits: Limits | None = None, block: bool = True
) -> str:
    """Put the page on the web and return its address; `block` waits until it is interrupted.

    host: 127.0.0.1 is this machine alone; 0.0.0.0 every machine that reaches it. port: 0 takes a free one.
    Errors: ValueError for a port that is taken.
    """
    if not 0 <= port <= _PORTS:
        raise ValueError(f"a port is 0 to {_PORTS}, got {port}")
    gradio, limits = _gradio(), limits or Limits()
    page.queue(max_size=limits.waiting)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            max_file_size=int(limits.megabytes * 2**20),
            share=False,
            quiet=True,
            show_error=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            footer_links=[],
            css=STYLE,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        raise ValueError(f"port {port} of {host} cannot be had: name another one, or 0 for any ({error})") from error
    if block:
        page.block_thread()
    return address


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _gradio() -> ModuleType:
    """Return Gradio, told to keep to this machine: no counting of visitors, no look for newer versions."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs Gradio: pip install 'salmask[serve]'") from error
    return gradio
