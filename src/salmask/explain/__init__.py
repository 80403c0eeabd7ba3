"""Explainers by name: each entry is a constructor that takes hyper-parameters and returns an explainer."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from salmask.explain import cam, controls, gradient, perturb, recursive
from salmask.explain.base import Explainer, Explanation, Passes, check_targets, normalise
from salmask.explain.knobs import Constructor
from salmask.explain.optimise.methods import OPTIMISED

__all__ = ["EXPLAINERS", "Explainer", "Explanation", "Passes", "check_targets", "normalise"]

_CONSTRUCTORS: Mapping[str, Callable[..., Explainer]] = {
    "full": partial(controls.Fixed, controls.full),
    "empty": partial(controls.Fixed, controls.empty),
    "center": partial(controls.Fixed, controls.center_box),
    "gaussian": partial(controls.Fixed, controls.gaussian),
    "random": controls.Random,
    "random_blocks": partial(controls.Random, 56),
    "ground_truth": controls.GroundTruth,
    "fake_cam": partial(controls.Fixed, controls.fake_cam),
    "gradcam": partial(cam.GradientCAM, cam.grad_cam),
    "gradcam_pp": partial(cam.GradientCAM, cam.grad_cam_pp),
    "xgradcam": partial(cam.GradientCAM, cam.xgrad_cam),
    "layercam": partial(cam.GradientCAM, cam.layer_cam),
    "hirescam": partial(cam.GradientCAM, cam.hires_cam),
    "scorecam": cam.ScoreCAM,
    "ablationcam": cam.AblationCAM,
    "cam": cam.LinearCAM,
    "eigencam": cam.EigenCAM,
    "gradient": gradient.Gradient,
    "smoothgrad": gradient.SmoothGrad,
    "integrated_gradients": gradient.IntegratedGradients,
    "guided_backprop": gradient.GuidedBackprop,
    "gradient_x_input": gradient.GradientXInput,
    "rise": perturb.Rise,
    "occlusion": perturb.Occlusion,
    "attribution_mask": recursive.AttributionMask,
    # `refined` is built upon another explainer, so that it has no place in a table of hyper-parameters
    **{name: build for name, build in OPTIMISED.items() if name != "refined"},
}

EXPLAINERS: Mapping[str, Callable[..., Explainer]] = MappingProxyType(
    {name: Constructor(build) for name, build in _CONSTRUCTORS.items()}
)
"""Explainers by name. `Learned(masker)` (explain/learned.py) is not here: it is built upon a trained masker."""
