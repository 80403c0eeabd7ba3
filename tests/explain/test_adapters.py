"""The calls of Captum and pytorch-grad-cam, and the examples of docs/migrating.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS
from salmask.explain.adapters import Attributions, CamLike, unnormalised

SIZE = 32
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 5),
    ).eval()
    return Classifier(network, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), layers=("0", "1"), image_size=SIZE)


@pytest.fixture
def inputs(classifier):
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return (images - classifier.mean) / classifier.std


def test_unnormalising_gives_the_images_back(classifier, inputs):
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(unnormalised(classifier, inputs), images)


def test_captum_and_the_adapter_agree(classifier, inputs):
    attr = pytest.importorskip("captum.attr")
    ours = Attributions(EXPLAINERS["gradient_x_input"](), classifier)
    for target in (2, [0, 4, 1], torch.tensor([3, 3, 0])):
        theirs = attr.InputXGradient(classifier.network).attribute(inputs.clone().requires_grad_(), target=target)
        found = ours.attribute(inputs, target=target)
        assert found.shape == (3, 1, SIZE, SIZE)
        torch.testing.assert_close(found, theirs.detach().sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_captum_grad_cam_and_the_adapter_agree(classifier, inputs):
    attr = pytest.importorskip("captum.attr")
    layer = attr.LayerGradCam(classifier.network, classifier.network[1])
    theirs = layer.attribute(inputs, target=[0, 4, 1], relu_attributions=True)
    theirs = attr.LayerAttribution.interpolate(theirs, (SIZE, SIZE), "bilinear").detach()
    found = Attributions(EXPLAINERS["gradcam"](), classifier).attribute(inputs, target=[0, 4, 1])
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-6)


def test_none_is_the_predicted_class(classifier, inputs):
    predicted = classifier.network(inputs).argmax(1)
    ours = Attributions(EXPLAINERS["gradcam"](), classifier)
    assert torch.equal(ours.attribute(inputs), ours.attribute(inputs, target=predicted))
    cam = CamLike(EXPLAINERS["gradcam"](), classifier)
    np.testing.assert_array_equal(cam(inputs), cam(inputs, predicted.tolist()))


def test_pytorch_grad_cam_and_the_adapter_agree(classifier, inputs):
    peer = pytest.importorskip("pytorch_grad_cam")
    target_of = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    targets = [target_of(k) for k in (1, 0, 4)]
    with peer.GradCAMPlusPlus(classifier.network, [classifier.network[1]]) as cam:
        theirs = cam(input_tensor=inputs, targets=targets)
    with CamLike(EXPLAINERS["gradcam_pp"](layer="1"), classifier) as cam:
        ours = cam(input_tensor=inputs, targets=targets)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    np.testing.assert_array_equal(ours, cam(inputs, [1, 0, 4]))


def test_targets_that_are_computed_are_refused(classifier, inputs):
    cam = CamLike(EXPLAINERS["gradcam"](), classifier)
    with pytest.raises(ValueError, match="class indices or targets"):
        cam(inputs, [lambda output: output[0]] * 3)
    with pytest.raises(ValueError, match="expected targets"):
        cam(inputs, [1, 2])


def test_the_context_swallows_no_error(classifier, inputs):
    with pytest.raises(IndexError), CamLike(EXPLAINERS["gradcam"](), classifier):
        raise IndexError("mine")


@pytest.mark.parametrize("name", sorted(EXPLAINERS))
def test_every_explainer_has_its_line_in_the_table(name):
    assert f"| `{name}` |" in (DOCS / "explainers.md").read_text()
