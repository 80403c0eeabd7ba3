"""Arguments of another kind in Python: one clear ValueError, no error of torch's or numpy's own, and no wrong value.

The table is tried in a process of its own, without the check of annotations that tests run under, as users call.
"""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import salmask
from salmask import (
    Bank,
    Blur,
    Classifier,
    Learned,
    Masker,
    MeanColour,
    Noise,
    RandomColour,
    Recipe,
    Settings,
    keep,
    play,
    remove,
)
from salmask.explain import EXPLAINERS
from salmask.explain.knobs import Constructor, knobs_of
from salmask.training.classifier import FitSettings

X, M = torch.rand(2, 3, 16, 16), torch.rand(2, 1, 16, 16)
NAN, HUGE = float("nan"), 10**12


def network() -> nn.Module:
    torch.manual_seed(0)
    first, second = (nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 6)))
    return nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()


def classifier(**changed: object) -> Classifier:
    usual = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "layers": ["1", "2"], "image_size": 16}
    return Classifier(network(), **(usual | changed))


def masker(**changed: object) -> Masker:
    return Masker(**({"channels": [4, 6], "strides": [2, 4], "width": 4} | changed))


def recipe(**changed: object) -> Recipe:
    return Recipe(**({"objective": salmask.RECIPES["fix"].objective} | changed))


def explained(images: object = X, targets: object = None) -> object:
    return salmask.explain(classifier(), images, explainer="gradcam", targets=targets)


def played(masks: object = M, targets: object = None, infill: object = None) -> object:
    targets, infill = torch.tensor([0, 1]) if targets is None else targets, MeanColour() if infill is None else infill
    return play(classifier(), X, masks, targets, infill=infill)


Wrong = tuple[Callable[..., object], str, list[object]]
WRONG: list[Wrong] = [
    (classifier, "layers", ["1", 1, [1], [None], [["1"]], {"1"}, [nn.ReLU()], True]),
    (classifier, "image_size", [0, -1, 16.5, 16.0, "16", (16, 16), None, NAN, 10**9, True]),
    (classifier, "output", [1.0, [0], True]),
    (classifier, "prefix", [-1, 1.5, "1", HUGE, True]),
    (classifier, "grid", [4, "44", (4,), (1, 2, 3), (-2, -2), (2.5, 2), (0, 4)]),
    (classifier, "inputs", [["rgb"], 3, {}, {"rgb": 3.0}, {"rgb": "3"}, {1: 3}, [("rgb", 3)], {"a": True, "b": 2}]),
    (explained, "images", [X.numpy(), X.tolist(), "a", None, X[0], X.byte()]),
    (explained, "targets", ["ab", ["a", "b"], [None, 1], {0, 1}, [0.5, 1.0], [[0], [1]], 1, [0, 99]]),
    (played, "targets", [[0, 1], 1, "ab", torch.tensor([0.0, 1.0]), torch.tensor([0]), torch.tensor([[0], [1]])]),
    (played, "masks", [M.numpy(), 0.5, M[0, 0], M[:1], X, (255 * M).byte(), 255 * M, M * NAN]),
    (played, "infill", ["mean", (0.5,) * 3, 0.5, MeanColour, torch.ones(3, 1, 1), lambda x, h: None, lambda x, h: 0.5]),
    (played, "infill", [lambda x, h: x[:, :, :3], lambda x, h: x.numpy(), MeanColour((124, 116, 104))]),
    (lambda mask: keep(X, mask, MeanColour()), "mask", [M.numpy(), M.tolist(), 0.5, M[..., :8], (M > 0.5).int()]),
    (lambda mask: remove(X, mask, MeanColour()), "mask", [M.numpy(), M[0], (M > 0.5).long()]),
    (lambda colour: keep(X, M, MeanColour(colour)), "colour", ["red", ["a"] * 3, None, (), (0.5,) * 4, [[0.5] * 3]]),
    (Blur, "sigma", [0, -3.0, NAN, float("inf"), "5", (3, 3), None]),
    (Blur, "at", [0, -1, NAN, "5", None]),
    (Noise, "generator", [None, 0, np.random.default_rng(0)]),
    (RandomColour, "generator", [None, 0]),
    (lambda bank: Bank(bank, torch.Generator()), "bank", [X.numpy(), [X[0]], (255 * X).byte(), 255 * X, X[0], X * NAN]),
    (lambda generator: Bank(X, generator), "generator", [None, 0]),
    (masker, "channels", [0, -1, 1.5, "46", None, [-4, 6], ["a", "b"], [4.0, 6.0], [4, 6, 8]]),
    (masker, "strides", [0, "24", None, ["a", "b"], [2.5, 4], [2, 4, 8]]),
    (masker, "width", [0, -1, 1.5, "4", None, (4, 4), True, HUGE]),
    (masker, "stride", [0, -1, 1.5, "4", None, NAN, True, HUGE]),
    (masker, "masks", [0, -1, 1.5, "2", None, True]),
    (masker, "classes", [-1, 1.5, "2", True, [2]]),
    (masker, "layers", [1, "1", [0.5], [None], [5]]),
    (masker, "area_condition", ["yes", 1, None]),
    (masker, "head", ["sigmoid", 1]),
    (lambda top: Learned(masker(), top=top), "top", [-1, 1.5, "0.5", NAN, True, (0.1, 0.2)]),
    (lambda limit: Learned(masker(), max_batch=limit), "limit", [0, -1, 1.5, "2", None, True]),
    (lambda given: Learned(given), "given", [None, "run", Masker, 3]),
    (Settings, "batch_size", [0, -1, 1.5, "8", None, (8,), True, NAN]),
    (Settings, "epochs", [0, "1", None, NAN, True, [1]]),
    (Settings, "decay_at", [0.5, "0.5", [2], ["a"], None]),
    (Settings, "areas", [0.5, (0.5,), (0.7, 0.2), "ab", None]),
    (Settings, "sizes", [64, (1.5,), ("a",), (0,)]),
    (Settings, "seed", [-1, 0.5, "0", None]),
    (Settings, "precision", [16, "half", None]),
    (recipe, "fixed", ["no", 1, None]),
    (recipe, "objective", [None, "fix", {"area": 1.0}]),
    (recipe, "pool_size", [0, 1.5, "3", None]),
    (recipe, "historic", ["x", 2, None]),
    (FitSettings, "batch_size", [0, 1.5, "8", None]),
    (FitSettings, "momentum", ["a", None]),
]


def trained(**changed: object) -> object:
    return salmask.train(classifier(), **({"pictures": X, "steps": 1, "precision": "32-true"} | changed))


def measured(**changed: object) -> object:
    usual = {"pictures": X, "explainers": ["center"], "metrics": ["mask_mean"]}
    return salmask.evaluate(classifier(), **(usual | changed))


def weighed(terms: object) -> object:
    return salmask.Objective(terms)(played())


BOOKS = [None, X.numpy(), list(X), 3, (x for x in X), network(), X.byte(), 255 * X, X[0], X[:0]]
WRONG += [
    (trained, "pictures", BOOKS),
    (measured, "pictures", BOOKS),
    (trained, "recipe", [5, None, {}, Recipe, "zzz", []]),
    (trained, "infill", [0, None, {}, 0.5, "zzz", (0.5,) * 3]),
    (trained, "steps", [0, -1, 1.5, "1", True]),
    (trained, "image_size", [0, -1, 16.5, "16", 10**9]),
    (trained, "resume", [None, "no", 1]),
    (trained, "targets", [0, 1.5, "01", [0.5, 1.0], [0], [0, 99], [None, 1], [[0, 1], [1]], torch.tensor(1)]),
    (measured, "targets", [0, "01", [0.5, 1.0], [0], [-1, 0], {0, 1}]),
    (measured, "explainers", ["gradcam", [], None, {"a": None}, {"a": 3}, {"a": Learned}, [3], {3: "center"}, ["zzz"]]),
    (measured, "explainers", [{"a": lambda c, x, t=None: x}, {"a": network()}]),
    (measured, "metrics", ["mask_mean", None, ["zzz"], [3], [lambda case: case.masks]]),
    (measured, "batch_size", [0, 1.5, "2", None]),
    (measured, "seed", [-1, 0.5, "0", None]),
    (weighed, "terms", [{}, None, [1], {"a": 1.0}, {"a": (salmask.area, 1.0)}, {"a": ("1", salmask.area)}]),
    (weighed, "terms", [{"a": (NAN, salmask.area)}, {"a": (1.0, lambda o: o.masks)}, {"a": (1.0, lambda o: 0.5)}]),
    (weighed, "terms", [{"a": (1.0, lambda o: o.masks.mean())}]),
    (salmask.area_to, "target", [2, -0.5, NAN, "0.5", None, (0.1, 0.2)]),
    (lambda size: salmask.Synthetic(2, seed=0, size=size), "size", [0, 15, 16.5, "16", None]),
    (lambda n: salmask.Synthetic(n, seed=0), "n", [0, 1.5, "2", None]),
    (lambda seed: salmask.Synthetic(2, seed=seed), "seed", [-1, 0.5, "0", None]),
    (lambda channels: salmask.QueryStream(channels, 4), "channels", [4, "46", [], [0], [4.0], None]),
    (lambda width: salmask.QueryStream([4, 6], width), "width", [0, -1, 1.5, "4", None]),
]

for build in EXPLAINERS.values():
    for knob in knobs_of(build).values():
        least = [knob.between.low - 1] if knob.between else []
        WRONG.append((build, knob.name, [object(), NAN, {"a": 1}, "no such word", Blur, *least]))


def right() -> None:
    """Try what is right in another form than usual: the same values, or the same map."""
    usual = classifier()
    other = classifier(mean=np.full(3, 0.5), image_size=np.int64(16), layers=("1", "2"), inputs={"rgb": np.int64(3)})
    torch.testing.assert_close(usual.logits(X), other.logits(X))
    assert classifier(image_size=torch.tensor(16)).strides == usual.strides == (2, 4)
    for targets in ([0, 1], (0, 1), np.array([0, 1]), torch.tensor([0, 1]).byte()):
        torch.testing.assert_close(explained(targets=targets).masks, explained(targets=torch.tensor([0, 1])).masks)
    half, grey = M.round(), MeanColour((0.5,) * 3)
    for colour in (0.5, (0.5,), [0.5] * 3, np.full(3, 0.5), torch.full((3, 1, 1), 0.5), np.float32(0.5)):
        torch.testing.assert_close(keep(X, M, MeanColour(colour)), keep(X, M, grey))
    for masks in (half.bool(), half.double(), half.half()):
        torch.testing.assert_close(keep(X, masks, grey), keep(X, half, grey))
        torch.testing.assert_close(remove(X, masks, grey), remove(X, half, grey))
    maps = usual.features(X).maps
    assert masker(channels=np.array([4, 6]), width=np.int64(4), layers=range(2))(maps, (16, 16)).shape == M.shape
    assert EXPLAINERS["gradcam"]()(usual, X.double()).masks.shape == M.shape


def tried() -> list[str]:
    """Return what is not refused as it must be."""
    faults = []
    for function, name, values in WRONG:
        kinds = knobs_of(function)[name].kinds if isinstance(function, Constructor) else ()
        for value in values:
            try:
                got = function(**{name: value})
                if not (isinstance(value, str) and str in kinds):
                    faults.append(f"{function} took {name}={value!r}: {got}"[:300])
            except ValueError as error:
                if len(str(error)) < 15 or "\n" in str(error):
                    faults.append(f"{function} {name}={value!r}: {error}")
            except BaseException as error:
                faults.append(f"{function} {name}={value!r}: {type(error).__name__} {error}"[:300])
    return faults


def test_arguments_of_other_kinds_are_refused_in_words() -> None:
    result = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    right()
    print("\n".join(found := tried()))
    sys.exit(bool(found))
