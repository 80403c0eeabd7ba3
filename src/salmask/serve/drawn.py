"""A session as HTML: the picture with the classifier's decision, and a line of three pictures for each explainer.

Numbers and pictures go in, text comes out; every name is escaped. Nothing is fetched from anywhere: pictures are part
of the text, so that a page that is saved stays whole.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from numpy import ndarray
from PIL import Image

from salmask.audio.hearing import SHOWN
from salmask.data.sight import Part
from salmask.evaluation.panels import Panels
from salmask.report.pictures import overlay, to_uint8
from salmask.serve.looks import Looks, Mapped, Visit

__all__ = ["STYLE", "draw", "draw_trouble", "overlay_of"]

STYLE = """
.sal { font-family: system-ui, sans-serif; line-height: 1.35; }
.sal h3 { margin: 1.1rem 0 .35rem; font-size: 1.05rem; }
.sal h3 small { font-weight: normal; opacity: .75; margin-left: .5rem; font-size: .85rem; }
.sal .line { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 1rem; }
.sal figure { margin: 0; min-width: 0; }
.sal figure img { width: 100%; max-width: 360px; display: block; border-radius: 6px; }
.sal .whole img { max-height: 340px; width: auto; max-width: 100%; }
.sal audio { width: 100%; max-width: 360px; display: block; margin-top: 6px; }
.sal figcaption { font-size: .9rem; margin: 0 0 .25rem; opacity: .85; }
.sal .bar { position: relative; margin-top: 3px; border-radius: 3px; overflow: hidden; max-width: 360px;
  background: color-mix(in srgb, currentColor 8%, transparent); display: flex; justify-content: space-between;
  padding: 1px 6px; font-size: .85rem; }
.sal .bar i { position: absolute; inset: 0 auto 0 0; opacity: .38; }
.sal .bar span, .sal .bar b { position: relative; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.sal .bar b { font-variant-numeric: tabular-nums; margin-left: .6rem; font-weight: 600; flex: none; }
.sal .explained span { font-weight: 600; }
.sal section figcaption { min-height: 2.7em; }
.sal .whole-side i { background: #5b6770; }
.sal .kept i { background: #2a7f62; }
.sal .removed i { background: #b3462f; }
.sal .trouble { border-left: 4px solid #b3462f; padding: .5rem .8rem; margin: .5rem 0; }
.sal .scale { height: 8px; border-radius: 4px; max-width: 360px; margin-top: 6px;
  background: linear-gradient(90deg, #000004, #3b0f70, #8c2981, #de4968, #fe9f6d, #fcfdbf); }
.sal .ends { display: flex; justify-content: space-between; max-width: 360px; font-size: .8rem; opacity: .8; }
"""
"""The style sheet of what is drawn; the colours of the scale are those of the overlay (magma)."""

_SIDE = 320  # pixels of a panel


def draw(looks: Looks, session: Visit, titles: Sequence[str], *, opacity: float, threshold: float) -> str:
    """Return the whole answer: what the network sees and decides, then every explainer that has finished.

    opacity: of the map where it is 1. threshold: above 0, what is kept is {map > threshold}.
    """
    done = [session.maps[title] for title in titles if title in session.maps]
    lines = [_line(looks, session, one, opacity=opacity, threshold=threshold) for one in done]
    return f'<div class="sal">{_decision(looks, session, done)}{"".join(lines)}</div>'


def draw_trouble(text: str) -> str:
    """Return a message in place of an answer."""
    return f'<div class="sal"><p class="trouble" role="alert">{escape(text)}</p></div>'


def overlay_of(panels: Panels, mapped: ndarray, *, opacity: float, threshold: float) -> ndarray:
    """Return the map over what the network sees, and the outline of what is kept at the threshold."""
    outline = threshold if threshold > 0 else None
    return overlay(panels.whole, mapped, threshold=outline, side=_SIDE, opacity=(0.3125 * opacity, opacity))


def _decision(looks: Looks, session: Visit, done: Sequence[Mapped]) -> str:
    look = session.look
    picture, note = _seen_of(looks, session)
    bars = ""
    first = next((one for one in done if one.explanation is not None), None)
    if first is not None:
        panels = looks.panels(session, first.title)
        bars = _bars(panels.probabilities["whole"], "whole-side", _explained_name(looks, first))
    heard = "picture" if look.wave is None else "sound"
    return (
        f'<div class="line"><figure class="whole">'
        f"<figcaption>{escape(look.name)}, {note}</figcaption>"
        f"{_image(picture, 'the whole picture')}{_player(looks.recording(session), 'the recording')}</figure>"
        f"<figure><figcaption>probabilities of the whole {heard}</figcaption>{bars}</figure></div>"
    )


def _seen_of(looks: Looks, session: Visit) -> tuple[ndarray, str]:
    """Return the whole picture and its caption: what of it the network sees is framed; a sound is its spectrogram."""
    look = session.look
    height, width = look.size
    if look.wave is not None and looks.hearing is not None:
        return to_uint8(look.whole), f"{len(look.wave) / looks.hearing.sample_rate:.2f} seconds are heard; {SHOWN}"
    part, cut = looks.base.sight.part(height, width), looks.base.sight.cut(height, width)
    note = f"; the network does not see {cut:.0%} of it, outside the frame" if cut >= 0.005 else ""
    return _framed(to_uint8(look.whole), part, look.size), f"{width}&times;{height} pixels{note}"


def _player(sound: bytes | None, words: str) -> str:
    if sound is None:
        return ""
    data = base64.b64encode(sound).decode()
    return f'<audio controls aria-label="{escape(words)}" src="data:audio/wav;base64,{data}"></audio>'


def _line(looks: Looks, session: Visit, mapped: Mapped, *, opacity: float, threshold: float) -> str:
    title = escape(mapped.title)
    if mapped.explanation is None:
        return f'<h3>{title}</h3><p class="trouble" role="alert">no map: {escape(mapped.failure)}</p>'
    panels = looks.panels(session, mapped.title, threshold)
    values = mapped.explanation.bounded().masks[0, 0].float().cpu().numpy()
    name = _explained_name(looks, mapped)
    drawn = overlay_of(panels, values, opacity=opacity, threshold=threshold)
    sounds = looks.sounds(session, mapped.title, threshold)
    shown = "picture" if session.look.wave is None else "spectrogram"
    kept = f"kept where the map is above {threshold:.2f}" if threshold > 0 else f"kept: {shown} &times; map"
    figures = [
        f"<figure><figcaption>map, mean {values.mean():.2f}{_range_note(mapped)}</figcaption>"
        f'{_image(drawn, f"map of {mapped.title}")}<div class="scale"></div>'
        '<div class="ends"><span>0 hidden</span><span>1 evidence</span></div></figure>',
        f"<figure><figcaption>{kept}, {panels.mask.mean():.0%} of the {shown}</figcaption>"
        f"{_image(to_uint8(panels.kept), f'kept by {mapped.title}')}"
        f"{_player(sounds.get('kept'), f'kept by {mapped.title}')}{_bars(panels.probabilities['kept'], 'kept', name)}"
        "</figure>",
        f"<figure><figcaption>removed: what is left</figcaption>"
        f"{_image(to_uint8(panels.removed), f'removed by {mapped.title}')}"
        f"{_player(sounds.get('removed'), f'removed by {mapped.title}')}"
        f"{_bars(panels.probabilities['removed'], 'removed', name)}</figure>",
    ]
    return (
        f'<section data-explainer="{title}"><h3>{title}<small>{escape(_facts(mapped, name))}</small></h3>'
        f'<div class="line">{"".join(figures)}</div></section>'
    )


def _explained_name(looks: Looks, mapped: Mapped) -> str:
    assert mapped.explanation is not None
    return looks.names[int(mapped.explanation.targets[0])]


def _facts(mapped: Mapped, name: str) -> str:
    assert mapped.explanation is not None
    agnostic = mapped.explanation.class_agnostic
    passes = mapped.explanation.passes.total
    what = "the same for every class" if agnostic else f"of {name}"
    return f"{what}; {passes:g} pass{'' if passes == 1 else 'es'}, {mapped.seconds:.2f} s"


def _range_note(mapped: Mapped) -> str:
    assert mapped.explanation is not None
    return "" if mapped.explanation.bounded() is mapped.explanation else ", brought to [0, 1] by its extremes"


def _bars(pairs: Sequence[tuple[str, float]], side: str, explained: str) -> str:
    return "".join(
        f'<div class="bar {side}{" explained" if name == explained else ""}" title="{escape(name)}">'
        f'<i style="width:{min(max(share, 0.0), 1.0):.1%}"></i><span>{escape(name)}</span><b>{share:.2f}</b></div>'
        for name, share in pairs
    )


def _framed(picture: ndarray, part: Part, size: tuple[int, int]) -> ndarray:
    """Return the whole picture, what the network does not see of it paled and the rest framed."""
    rows, columns = picture.shape[0] / size[0], picture.shape[1] / size[1]
    x0, y0, x1, y1 = (round(at * by) for at, by in zip(part, (columns, rows, columns, rows), strict=True))
    x0, y0 = max(x0, 0), max(y0, 0)
    pale = (picture.astype(np.float32) * 0.35 + 255 * 0.65).astype(np.uint8)
    pale[y0:y1, x0:x1] = picture[y0:y1, x0:x1]
    if (x0, y0) != (0, 0) or (y1 - y0, x1 - x0) < picture.shape[:2]:
        cv2.rectangle(pale, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), max(1, max(picture.shape) // 300))
    return pale


def _image(picture: ndarray, words: str) -> str:
    image = Image.fromarray(picture)
    if max(image.size) < _SIDE:  # of a network that sees few pixels, which stay what they are
        factor = -(-_SIDE // max(image.size))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(words)}">'
