"""The tuned masker with three times the pictures of the main study, beside Grad-CAM and the centre."""

from salmask.study import Claim, Row, Study
from salmask.study.studies import fix


def study(scale):
    """Return the study at a scale."""
    rows = [Row(name=name, explainer=name) for name in ("full", "center", "ground_truth", "gradcam")]
    rows += [Row(name="FIX, tuned", variant=fix(), seeds=scale.seeds)]
    others = ("gradcam", "center")
    claims = [Claim(text=f"Tuned maskers beat {other}", row="FIX, tuned", against=other) for other in others]
    return Study(name="long", title="Three times the pictures", rows=rows, claims=claims)
