"""Saliency maps by masking: which pixels a classifier's decision rests on, in one forward pass.

    masker = salmask.train(classifier, pictures)
    explanation = salmask.explain(classifier, images, explainer=masker)

Every name below is loaded when it is first used, so that `import salmask` costs next to nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {
    "salmask.api": ("Scores", "evaluate", "train"),
    "salmask.classifier": ("Classifier",),
    "salmask.data": ("ImageFolder", "Sample", "open_data", "read_image"),
    "salmask.data.synthetic": ("Synthetic",),
    "salmask.explain": ("EXPLAINERS", "Explainer", "Explanation"),
    "salmask.explain.learned": ("Learned",),
    "salmask.masker": ("Masker",),
    "salmask.masking": ("Bank", "Blur", "MeanColour", "Noise", "RandomColour", "Remasked", "keep", "remove"),
    "salmask.metrics": ("METRICS", "Metric"),
    "salmask.objective": ("Objective",),
    "salmask.pooling": ("Pooled", "QueryStream"),
    "salmask.outcome": ("Outcome", "play"),
    "salmask.terms": (
        "area",
        "area_if_kept_right",
        "area_if_removed_wrong",
        "area_to",
        "max_class_kept",
        "max_entropy_removed",
        "min_class_removed",
        "min_entropy_kept",
        "total_variation",
    ),
    "salmask.training.recipes": ("RECIPES", "Recipe"),
    "salmask.training.settings": ("Settings",),
    "salmask.training.variant": ("Variant",),
    "salmask.types": ("Infill",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "__version__",
    "explain",
    *_HOME_OF,
]


def __getattr__(name: str) -> Any:  # Any: functions, classes and modules
    if name == "__version__":
        return _version()
    if name == "explain":
        return import_module("salmask.explain")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'salmask' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("salmask")
    except PackageNotFoundError:
        return "unreleased"


class _Verb(ModuleType):
    """The package `salmask.explain`, made callable: the verb `salmask.explain(...)` beside `salmask.explain.cam`."""

    def __call__(self, *args: object, **options: object) -> object:
        """Explain images: see `salmask.api.explain`."""
        return import_module("salmask.api").explain(*args, **options)


class _FrontDoor(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # The import of any module of salmask.explain binds that package here, in place of a function of its name.
        if name == "explain" and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontDoor
