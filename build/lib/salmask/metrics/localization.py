"""Does the mask lie on the object? Boxes of masks against boxes (or pixels) of people: LE, OM, F1, SM and two games.

Formulas: spec 4.2 to 4.4 (Phang et al. 2020; SM: Dabkowski & Gal 2017). The plain name uses the box of the mask as it
is; `name:as_released` uses the published one, whose right and bottom edge are one pixel short.
An image without ground truth has the value NaN. What several scores share (the masks' boxes, the logits of
the crops) is computed once per case.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from salmask.boxes import (
    BoxRule,
    BoxSets,
    above_mean,
    area_matched,
    areas,
    clip,
    iou,
    mask_boxes,
    paint,
    stack,
    sums_inside,
)
from salmask.classifier import Classifier
from salmask.classifier.hold import at_rest
from salmask.metrics.case import Case, Metric
from salmask.types import IGNORED, Boxes, Images, Masks, Targets, Values

__all__ = [
    "LOCALIZATION",
    "SaliencyTerms",
    "best_iou",
    "crop",
    "energy_inside",
    "f1_of_boxes",
    "pointing_game",
    "saliency_terms",
]

EPS = 1e-6
SMALLEST = 0.05
"""Area, as a fraction of the image, below which the saliency metric pays no more for a smaller box."""


# --- LE, OM, F1 ----------------------------------------------------------------------------------------------------


def best_iou(predicted: Boxes, truth: BoxSets) -> Values:
    """Return max over an image's boxes of IoU(predicted box, box), (B,); NaN without boxes.

    The areas of the truth are not clipped: what lies outside the image cannot be found and counts against the map.
    """
    boxes, owner = stack(truth)
    overlap = iou(predicted.cpu()[owner], boxes)
    return _reduce(overlap, owner, len(truth), "amax").to(predicted.device)


def f1_of_boxes(
    masks: Masks, truth: BoxSets, *, mass: Float[Tensor, " batch"] | None = None
) -> tuple[Float[Tensor, " all"], Tensor]:
    """Return F1 of the *soft* mask for every box of every image, and the index of the image each belongs to.

    mass: the sum of every mask, where it is known already.

    inside = sum of m over the part of the box within the image; P = inside / (sum m + 1e-6);
    R = inside / area of the whole box; F1 = 2PR / (P + R + 1e-6). A box of zero area has F1 = 0.
    """
    boxes, owner = stack(truth)
    sums = masks.double().sum((1, 2, 3)) if mass is None else mass
    inside = sums_inside(masks, boxes, owner)
    precision = inside / (sums.cpu() + EPS)[owner]
    recall = inside / areas(boxes.double()).clamp_min(torch.finfo(torch.float64).tiny)
    return 2 * precision * recall / (precision + recall + EPS), owner


def _reduce(values: Tensor, owner: Tensor, count: int, how: str) -> Values:
    """Reduce the values of each image's boxes; NaN where there is none."""
    empty = values.new_full((count,), torch.nan)
    return empty.scatter_reduce(0, owner, values, how, include_self=False)


# --- SM ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaliencyTerms:
    """The saliency metric of each image is area - logprob, lower is better.

    area: log(clamp(box area / image area, .05, 1)), (B,).
    logprob: log softmax of the class on the crop, (B,). right: is it the top-1 of the crop, (B,) 0 or 1.
    """

    area: Values
    logprob: Values
    right: Values


def crop(images: Images, boxes: Boxes, background: Float[Tensor, "1 channels 1 1"]) -> Images:
    """Return each image's box, stretched to the whole picture by bicubic interpolation (OpenCV's, a = -.75).

    Bicubic overshoot is not clamped: the published crop is taken of the normalised image, and interpolation
    commutes with normalisation, clamping does not. A box of zero area gives the background colour.
    """
    height, width = images.shape[-2:]
    crops = background.to(images).expand(len(images), -1, height, width).clone()
    pixels = images.detach().cpu().permute(0, 2, 3, 1)
    for i, (x0, y0, x1, y1) in enumerate(clip(boxes, (height, width)).long().tolist()):
        if x1 > x0 and y1 > y0:
            part = np.ascontiguousarray(pixels[i, y0:y1, x0:x1].numpy())
            grown = cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
            grown = grown.reshape(height, width, -1)  # of one channel OpenCV takes the axis away
            crops[i] = torch.from_numpy(grown).permute(2, 0, 1).to(crops)
    return crops


def saliency_terms(images: Images, boxes: Boxes, targets: Targets, classifier: Classifier) -> SaliencyTerms:
    """Return the terms of SM for one box per image, scored by `classifier` (which normalises its input itself)."""
    height, width = images.shape[-2:]
    with at_rest(classifier, gradients=False):
        logits = classifier.unbounded(crop(images, boxes, classifier.mean))
    share = areas(boxes).to(logits) / (height * width)
    logits, targets = classifier.question(logits, targets.to(logits.device))
    return SaliencyTerms(
        area=share.clamp(SMALLEST, 1).log(),
        logprob=logits.log_softmax(1).gather(1, targets[:, None])[:, 0],
        right=(logits.argmax(1) == targets).to(logits.dtype),
    )


# --- two games with mass and maxima --------------------------------------------------------------------------------


def energy_inside(masks: Masks, counts: Tensor) -> Values:
    """Return the share of the mask's mass on object pixels, ignored pixels left out; 0 for an empty mask.

    counts: (B, 1, H, W), 1 object, 0 background, 255 ignored.
    """
    mass = (masks * (counts != IGNORED)).sum((1, 2, 3))
    inside = (masks * (counts == 1)).sum((1, 2, 3))
    return torch.where(mass > 0, inside / mass, torch.zeros_like(mass))


def pointing_game(masks: Masks, counts: Tensor, *, tolerance: float | int = 15, ties: str = "mean") -> Values:
    """Return 1 if the maximum of the mask lies within `tolerance` pixels (Euclidean) of an object pixel, else 0.

    ties: what counts when several pixels are the maximum: "mean" over them (a constant map then scores what a
    random guess does), "first" in raster order, or "any" of them. Counts as in `energy_inside`.
    """
    rules: dict[str, Callable] = {"mean": np.mean, "first": lambda hits: hits[0], "any": np.max}
    reduce = rules.get(ties)
    if reduce is None:
        raise ValueError(f'pointing_game: ties must be "mean", "first" or "any"; got {ties!r}')
    values = []
    for mask, truth in zip(masks[:, 0].cpu().numpy(), counts[:, 0].cpu().numpy(), strict=True):
        near = _near(truth == 1, tolerance)
        values.append(float(reduce(near[mask == mask.max()])))
    return masks.new_tensor(values)


def _near(inside: np.ndarray, tolerance: float) -> np.ndarray:
    """Return which pixels lie within the tolerance of a pixel inside."""
    if tolerance <= 0 or not inside.any():
        return inside
    return cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= tolerance


# --- what a case shares --------------------------------------------------------------------------------------------


def _boxes_of_maps(case: Case, rule: BoxRule, legacy: bool) -> Boxes:
    box_rule: BoxRule = partial(above_mean, mass=case.looked.mass) if rule is above_mean else rule
    return case.once(("mask_boxes", rule, legacy), lambda: mask_boxes(case.masks, rule=box_rule, legacy_box=legacy))


def _overlap(case: Case, rule: BoxRule, legacy: bool) -> Values:
    return case.once(("best_iou", rule, legacy), lambda: best_iou(_boxes_of_maps(case, rule, legacy), case.boxes or ()))


def _correct(case: Case) -> Tensor:
    assert case.correct is not None  # by Metric.needs
    return case.correct.to(case.masks)


def _f1(how: str) -> Callable[[Case], Values]:
    def function(case: Case) -> Values:
        values, owner = case.once("f1", lambda: f1_of_boxes(case.masks, case.boxes or (), mass=case.looked.mass))
        return _reduce(values, owner, len(case.ids), how).to(case.masks)

    return function


def _f1_of_union(case: Case) -> Values:
    counts = _union(case)
    inside = (case.masks * counts).sum((1, 2, 3))
    precision = inside / (case.masks.sum((1, 2, 3)) + EPS)
    recall = inside / counts.sum((1, 2, 3)).clamp_min(1)
    return _where_known(2 * precision * recall / (precision + recall + EPS), case)


def _f1_of_pixels(case: Case) -> Values:
    counts = _pixels(case)
    inside = (case.masks * (counts == 1)).sum((1, 2, 3))
    precision = inside / ((case.masks * (counts != IGNORED)).sum((1, 2, 3)) + EPS)
    recall = inside / (counts == 1).sum((1, 2, 3)).clamp_min(1)
    return _where_known(2 * precision * recall / (precision + recall + EPS), case, "pixels")


def _hit(case: Case, rule: BoxRule, legacy: bool) -> Values:
    def hit() -> Values:
        overlap = _overlap(case, rule, legacy).to(case.masks)
        return torch.where(overlap.isnan(), overlap, (overlap > 0.5).to(overlap))

    return case.once(("hit", rule, legacy), hit)


def _le(rule: BoxRule = above_mean, legacy: bool = False) -> Callable[[Case], Values]:
    return lambda case: 1 - _hit(case, rule, legacy)


def _om(rule: BoxRule = above_mean, legacy: bool = False) -> Callable[[Case], Values]:
    return lambda case: 1 - _hit(case, rule, legacy) * _correct(case)


def _sm(read: Callable[[SaliencyTerms], Values], legacy: bool = False) -> Callable[[Case], Values]:
    def terms(case: Case) -> SaliencyTerms:
        classifier, images, targets = case.played()
        boxes = _boxes_of_maps(case, above_mean, legacy)
        return saliency_terms(images, boxes, targets, classifier)

    return lambda case: read(case.once(("sm", legacy), lambda: terms(case)))


def _union(case: Case) -> Tensor:
    def counts() -> Tensor:
        return torch.stack([paint(boxes, case.size) for boxes in case.boxes or ()])[:, None].to(case.masks.device)

    return case.once("union", counts)


def _pixels(case: Case) -> Tensor:
    none = torch.full(case.size, IGNORED, dtype=torch.uint8)
    pixels = [none if p is None else p.cpu() for p in case.pixels or ()]
    return case.once("pixels", lambda: torch.stack(pixels)[:, None].to(case.masks.device))


def _where_known(values: Values, case: Case, truth: str = "boxes") -> Values:
    """Put NaN where the image has no ground truth: no box, no pixel mask, or one without an object."""
    if truth == "boxes":
        has_object = [len(boxes) > 0 for boxes in case.boxes or ()]
    else:
        has_object = [pixels is not None and bool((pixels == 1).any()) for pixels in case.pixels or ()]
    return torch.where(torch.tensor(has_object, device=values.device), values, torch.nan)


# --- the table -----------------------------------------------------------------------------------------------------

_PHANG = "Phang et al. 2020"
_OPTI = "Zhang et al. 2024 (Opti-CAM), appendix B"
_BOX = {"box_rule": "above_mean", "component": "largest, 4-connected", "box": "half-open"}
_SHORT = _BOX | {"box": "one pixel short (as released)"}
_HIT = {"hit": "IoU > 0.5 with any box"}
_RIGHT = {"times": "1 where the explained model's top-1 is the label"}
_SOFT = {"mask": "soft", "eps": EPS}
_SM = {"crop": "bicubic, unclamped", "smallest_area": SMALLEST, "class": "targets", "score": "log softmax"}


def _localization(
    name: str,
    function: Callable[[Case], Tensor],
    protocol: Mapping[str, object],
    reading: tuple[str, float, float],
    needs: str,
    source: str = _PHANG,
) -> Metric:
    direction, low, high = reading
    return Metric(name, function, protocol, direction, (low, high), source, frozenset(needs.split()))  # type: ignore[arg-type]


def _saliency_metrics() -> list[Metric]:
    infinity, floor = float("inf"), float(np.log(SMALLEST))
    parts: dict[str, tuple[Callable[[SaliencyTerms], Values], tuple[str, float, float]]] = {
        "sm": (lambda terms: terms.area - terms.logprob, ("down", floor, infinity)),
        "sm_area": (lambda terms: terms.area, ("down", floor, 0.0)),
        "sm_logprob": (lambda terms: terms.logprob, ("up", -infinity, 0.0)),
        "sm_accuracy": (lambda terms: terms.right, ("up", 0.0, 1.0)),
    }
    source = "Dabkowski & Gal 2017"
    return [
        _localization(name + suffix, _sm(read, legacy), box | _SM, reading, "images classifier", source)
        for name, (read, reading) in parts.items()
        for suffix, legacy, box in (("", False, _BOX), (":as_released", True, _SHORT))
    ]


def _box_metrics() -> list[Metric]:
    down, up = ("down", 0.0, 1.0), ("up", 0.0, 1.0)
    matched = _BOX | {"box_rule": "area_matched"}
    soft_iou = {"value": "1 - max IoU"}
    return [
        _localization("le", _le(), _BOX | _HIT, down, "boxes"),
        _localization("le:as_released", _le(legacy=True), _SHORT | _HIT, down, "boxes"),
        _localization("le:casm", _le(area_matched), matched | _HIT, down, "boxes", "Zolna et al. 2018"),
        _localization(
            "le:opti_cam",
            lambda c: 1 - _overlap(c, above_mean, False).to(c.masks),
            _BOX | soft_iou,
            down,
            "boxes",
            _OPTI,
        ),
        _localization("om", _om(), _BOX | _HIT | _RIGHT, down, "boxes correct"),
        _localization("om:as_released", _om(legacy=True), _SHORT | _HIT | _RIGHT, down, "boxes correct"),
        _localization(
            "om:casm", _om(area_matched), matched | _HIT | _RIGHT, down, "boxes correct", "Zolna et al. 2018"
        ),
        _localization(
            "om:opti_cam",
            lambda c: 1 - _overlap(c, above_mean, False).to(c.masks) * _correct(c),
            _BOX | soft_iou | _RIGHT,
            down,
            "boxes correct",
            _OPTI,
        ),
        _localization("f1", _f1("amax"), _SOFT | {"boxes": "best"}, up, "boxes"),
        _localization("f1_mean", _f1("mean"), _SOFT | {"boxes": "mean"}, up, "boxes"),
        _localization("f1:opti_cam", _f1_of_union, _SOFT | {"boxes": "union"}, up, "boxes", _OPTI),
        _localization("f1:pixels", _f1_of_pixels, _SOFT | {"truth": "pixels"}, up, "pixels"),
    ]


def _game_metrics() -> list[Metric]:
    up = ("up", 0.0, 1.0)

    def point(truth: str, tolerance: float | int, ties: str) -> Callable[[Case], Values]:
        read = {"boxes": _union, "pixels": _pixels}[truth]
        return lambda c: _where_known(pointing_game(c.masks, read(c), tolerance=tolerance, ties=ties), c, truth)

    zhang, wang = "Zhang et al. 2016 (pointing game)", "Wang et al. 2020 (Score-CAM)"
    game = {"tolerance": 15, "ties": "mean", "truth": "union of boxes"}
    return [
        _localization("pointing_game", point("boxes", 15, "mean"), game, up, "boxes", zhang),
        _localization("pointing_game:first", point("boxes", 15, "first"), game | {"ties": "first"}, up, "boxes", zhang),
        _localization(
            "pointing_game:pixels", point("pixels", 15, "mean"), game | {"truth": "pixels"}, up, "pixels", zhang
        ),
        _localization(
            "pointing_game:quantus",
            point("pixels", 0, "any"),
            {"tolerance": 0, "ties": "any", "truth": "pixels"},
            up,
            "pixels",
            "Quantus 0.6, PointingGame",
        ),
        _localization(
            "energy_inside",
            lambda c: _where_known(energy_inside(c.masks, _union(c)), c),
            {"truth": "union of boxes", "mask": "soft"},
            up,
            "boxes",
            wang,
        ),
        _localization(
            "energy_inside:pixels",
            lambda c: _where_known(energy_inside(c.masks, _pixels(c)), c, "pixels"),
            {"truth": "pixels", "mask": "soft"},
            up,
            "pixels",
            wang,
        ),
    ]


LOCALIZATION: dict[str, Metric] = {m.name: m for m in (*_box_metrics(), *_saliency_metrics(), *_game_metrics())}
