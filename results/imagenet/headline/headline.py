"""The headline on ImageNet photographs: reader, CA and FIX at the published weights, and labels against none."""

from salmask.study import Claim, Row, Study, Variant


def study(scale):
    """Return the recipes at equal rates, data and steps, beside their rivals."""
    published = {
        "reader (1, 15)": Variant.of(recipe="reader"),
        "CA (1, 15)": Variant.of(recipe="ca", weights=(("area_if_kept_right", 1), ("area_if_removed_wrong", 15))),
        "FIX (1, 10)": Variant.of(recipe="fix", weights=(("area_if_kept_right", 1), ("area_if_removed_wrong", 10))),
        "reader, no labels": Variant.of(recipe="reader", target="predicted"),
    }
    rows = [Row(name=name, variant=variant, seeds=scale.seeds) for name, variant in published.items()]
    rows += [Row(name=name, explainer=name) for name in ("full", "center", "gradcam", "layercam")]
    claims = (
        Claim(text="CA beats FIX", row="CA (1, 15)", against="FIX (1, 10)"),
        Claim(text="The reader beats FIX", row="reader (1, 15)", against="FIX (1, 10)"),
        Claim(text="The reader beats CA", row="reader (1, 15)", against="CA (1, 15)"),
        Claim(text="The reader beats Layer-CAM", row="reader (1, 15)", against="layercam"),
        Claim(text="Labels help", row="reader (1, 15)", against="reader, no labels"),
    )
    return Study(name="headline", title="Maskers on ImageNet photographs", rows=rows, claims=claims)
