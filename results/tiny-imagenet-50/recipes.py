"""The recipes at equal area weights, rates, data and steps; the default without labels; and their rivals."""

from salmask.study import Claim, Row, Study, Variant

AREAS = (("area_if_kept_right", 0.57), ("area_if_removed_wrong", 8.5))
"""The default recipe's weights for 50 classes: (1, 15), those for 1,000, times log 50 / log 1000."""


def study(scale):
    """Return the recipes, each with as many trainings, beside the class activation map and the controls."""
    trained = {
        "reader": Variant.of(recipe="reader"),
        "reader, no labels": Variant.of(recipe="reader", target="predicted"),
        "CA": Variant.of(recipe="ca", weights=AREAS),
        "FIX": Variant.of(recipe="fix", weights=AREAS),
    }
    rows = [Row(name=name, variant=variant, seeds=scale.seeds) for name, variant in trained.items()]
    rows += [Row(name=name, explainer=name) for name in ("full", "center", "gradcam", "layercam")]
    claims = (
        Claim(text="CA beats FIX", row="CA", against="FIX"),
        Claim(text="The reader beats FIX", row="reader", against="FIX"),
        Claim(text="The reader beats CA", row="reader", against="CA"),
        Claim(text="The reader beats Grad-CAM", row="reader", against="gradcam"),
        Claim(text="Labels help", row="reader", against="reader, no labels"),
    )
    return Study(name="recipes", title="Recipes side by side on 64-pixel photographs", rows=rows, claims=claims)
