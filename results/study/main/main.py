"""The main job: maskers with and without boxes, beside the class activation map and the controls."""

from salmask.study import Claim, Row, Study, Variant
from salmask.study.studies import fix


def study(scale):
    """Return three trainings at tuned weights, one fewer without boxes, and their rivals."""
    rows = [Row(name=name, explainer=name) for name in ("full", "center", "ground_truth", "gradcam")]
    rows += [Row(name="FIX, tuned", variant=fix(), seeds=scale.seeds)]
    rows += [Row(name="auto, no boxes", variant=Variant.of(recipe="auto"), seeds=max(1, scale.seeds - 1))]
    names = {"FIX, tuned": "Tuned maskers", "auto, no boxes": "Maskers without boxes"}
    claims = [
        Claim(text=f"{names[row]} beat {other}", row=row, against=other)
        for row in names
        for other in ("gradcam", "center")
    ]
    return Study(name="main", title="The main job", rows=rows, claims=claims)
