"""Class activation maps against pytorch-grad-cam and torch-cam on the same network and layer, and on toys."""

import warnings
from functools import partial

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS, normalise
from salmask.explain.cam import AblationCAM, ScoreCAM
from salmask.masking import MeanColour

SIZE = 48
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def plain_network():
    """Three convolutions with ReLUs of their own, so that other libraries' hooks work."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
        nn.Sequential(nn.Conv2d(12, 10, 3, 1, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 5),
    ).eval()


def wrapped(network, layers=("0", "1", "2")):
    return Classifier(network, mean=MEAN, std=STD, layers=layers, image_size=SIZE)


@pytest.fixture
def images():
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets():
    return torch.tensor([4, 0, 2])


def entered(classifier, images):
    return (images - classifier.mean) / classifier.std


def upsampled(maps, size=SIZE):
    return F.interpolate(maps[:, None], (size, size), mode="bilinear", align_corners=False)


THEIRS = {
    "gradcam": "GradCAM",
    "gradcam_pp": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "ablationcam": "AblationCAM",
    "eigencam": "EigenCAM",
    "scorecam": "ScoreCAM",
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("layer", [1, 2])
def test_equals_pytorch_grad_cam_before_normalisation(name, layer, images, targets, monkeypatch):
    peer = pytest.importorskip("pytorch_grad_cam")
    target_of = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    network = plain_network()
    classifier = wrapped(network)
    if name == "ablationcam":  # where all the logits that are divided by are positive
        network[5].bias.data.add_(5)
    if name == "scorecam":  # theirs blows its masks up with the corners aligned, and the map without
        enlarge = partial(nn.Upsample, mode="bilinear", align_corners=False)
        monkeypatch.setattr(nn, "UpsamplingBilinear2d", enlarge)
    with getattr(peer, THEIRS[name])(network, [network[layer]]) as cam:
        raw = []
        inner = cam.get_cam_image
        cam.get_cam_image = lambda *args, **more: raw.append(inner(*args, **more)) or raw[-1]
        cam(entered(classifier, images), [target_of(int(k)) for k in targets])
    theirs = torch.from_numpy(np.asarray(raw[0], dtype=np.float32))
    if name == "eigencam":  # the sign of a principal component is arbitrary: the larger extreme is positive here
        turned = theirs.amin((1, 2)).abs() > theirs.amax((1, 2)).abs()
        theirs = torch.where(turned[:, None, None], -theirs, theirs)
    ours = EXPLAINERS[name](layer=layer)(classifier, images, targets).masks
    torch.testing.assert_close(ours, upsampled(theirs.relu()), rtol=2e-4, atol=2e-5 * float(theirs.abs().max()))
    assert float(ours.max()) > 0


def test_equals_pytorch_grad_cam_after_normalisation(images, targets):
    peer = pytest.importorskip("pytorch_grad_cam")
    target_of = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    classifier = wrapped(plain_network())
    with peer.LayerCAM(classifier.network, [classifier.network[2]]) as cam:
        theirs = cam(entered(classifier, images), [target_of(int(k)) for k in targets])
    ours = EXPLAINERS["layercam"]()(classifier, images, targets).masks
    np.testing.assert_allclose(normalise(ours, "minmax")[:, 0].numpy(), theirs, atol=2e-5)


# Its GradCAMpp divides a copy, so that its weights are the sum of relu(g) g^2: pytorch-grad-cam's is compared above.
TORCH_CAM = {"gradcam": "GradCAM", "xgradcam": "XGradCAM", "layercam": "LayerCAM", "scorecam": "ScoreCAM", "cam": "CAM"}


@pytest.mark.parametrize("name", TORCH_CAM)
def test_equals_torch_cam_before_normalisation(name, images, targets):
    methods = pytest.importorskip("torchcam.methods")
    network = plain_network()
    classifier = wrapped(network)
    extra = {"fc_layer": "5"} if name == "cam" else {}
    with getattr(methods, TORCH_CAM[name])(network, "2", input_shape=(3, SIZE, SIZE), **extra) as cam:
        scores = network(entered(classifier, images))
        theirs = cam(class_idx=targets.tolist(), scores=scores, normalized=False)[0].detach()
    ours = EXPLAINERS[name]()(classifier, images, targets).masks
    # Score-CAM adds 1e-8 to a mask's range there and not here
    torch.testing.assert_close(ours, upsampled(theirs.relu()), rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    assert float(ours.max()) > 0


def test_gradcam_equals_cam_times_the_area_where_cam_is_defined(images, targets):
    classifier = wrapped(plain_network())
    area = (SIZE // 4) ** 2
    cam = EXPLAINERS["cam"]()(classifier, images, targets).masks
    gradcam = EXPLAINERS["gradcam"]()(classifier, images, targets).masks
    torch.testing.assert_close(area * gradcam, cam, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(EXPLAINERS["hirescam"]()(classifier, images, targets).masks, gradcam)


class TwoPatches(nn.Module):
    """Feature k is the red (green) channel, averaged over quarters; logits are 3 * mean red and 2 * mean green."""

    def __init__(self):
        super().__init__()
        self.tap = nn.AvgPool2d(2)
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])

    def forward(self, x):
        return self.head(self.tap(x).mean((2, 3)))


@pytest.fixture
def patches():
    picture = torch.zeros(1, 3, 4, 4)
    picture[0, 0, :2, :2] = 1.0  # red: upper left
    picture[0, 1, 2:, 2:] = 0.5  # green: lower right
    network = TwoPatches()
    return Classifier(network, mean=(0.0,) * 3, std=(1.0,) * 3, layers=("tap",), image_size=4), picture


@pytest.mark.parametrize(("name", "high"), [("gradcam", 0.75), ("hirescam", 0.75), ("layercam", 0.75), ("cam", 3.0)])
def test_maps_by_hand(name, high, patches):
    classifier, picture = patches
    red = EXPLAINERS[name]()(classifier, picture, torch.tensor([0])).masks[0, 0]
    assert float(red.max()) == pytest.approx(high)  # weight 3 / 4 positions * 1; of CAM, weight 3 * 1
    assert float(red[0, 0]) == pytest.approx(high)
    assert float(red[3, 3]) == 0
    green = EXPLAINERS[name]()(classifier, picture, torch.tensor([1])).masks[0, 0]
    assert float(green[3, 3]) == pytest.approx(high * 2 / 3 / 2)
    assert float(green[0, 0]) == 0


def test_ablation_by_hand(patches):
    classifier, picture = patches
    red = EXPLAINERS["ablationcam"]()(classifier, picture, torch.tensor([0]))
    assert float(red.masks.max()) == pytest.approx(1.0)  # without red the whole score is lost
    assert red.passes.forward == 3  # the blue channel is zero already


def test_score_cam_weights_by_hand(patches):
    classifier, picture = patches
    found = ScoreCAM(infill=MeanColour((0.0, 0.0, 0.0)))(classifier, picture, torch.tensor([0])).masks[0, 0]
    red = F.interpolate(torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]), (4, 4), mode="bilinear", align_corners=False)[0, 0]
    kept = [3 * float((mask * picture[0, 0]).mean()) for mask in (red, red.flip(0, 1), torch.zeros(4, 4))]
    weights = torch.tensor(kept).softmax(0)
    assert float(found[0, 0]) == pytest.approx(float(weights[0]), rel=1e-5)
    assert float(found[3, 3]) == pytest.approx(float(weights[1]) * 0.5, rel=1e-5)


def test_a_negative_logit_does_not_turn_the_ablation_map_round(patches):
    classifier, picture = patches
    classifier.network.head.bias = nn.Parameter(torch.tensor([-100.0, 0.0]))
    found = AblationCAM()(classifier, picture, torch.tensor([0])).masks[0, 0]
    assert float(found[0, 0]) > 0 == float(found[3, 3])


class Reader(nn.Module):
    """Reads the number of pictures at its entrance, so that the layers before the tap cannot run once."""

    def __init__(self):
        super().__init__()
        self.inner = plain_network()

    def forward(self, x):
        y = self.inner[:3](x)
        return self.inner[5](y.mean((2, 3)).view(len(x), 10))


class Adder(nn.Module):
    """A skip connection over the tap."""

    def __init__(self):
        super().__init__()
        self.inner = plain_network()

    def forward(self, x):
        y = self.inner[:2](x)
        return self.inner[5]((self.inner[2](y) + y[:, :10]).mean((2, 3)))


class Joiner(Adder):
    """A concatenation over the tap."""

    def forward(self, x):
        y = self.inner[:2](x)
        both = torch.cat([self.inner[2](y), y], 1)
        return self.inner[5]((both[:, :10] + both[:, 10:20]).mean((2, 3)))


@pytest.mark.parametrize("make", [Reader, Adder, Joiner])
def test_ablation_equals_a_slow_loop_over_channels(make, images):
    network = make().eval()
    classifier = wrapped(network, layers=("inner.1", "inner.2"))
    z = entered(classifier, images[:1])

    def scores(channel):
        def zeroed(module, inputs, output):
            output = output.clone()
            if channel is not None:
                output[:, channel] = 0
            return output

        handle = network.inner[2].register_forward_hook(zeroed)
        with torch.no_grad():
            value = network(z)[0, 3]
        handle.remove()
        return value

    own = scores(None)
    weights = torch.stack([(own - scores(k)) / own.abs() for k in range(10)])
    with torch.no_grad():
        maps = network.inner[:3](z)
    wanted = upsampled((weights[:, None, None] * maps[0]).sum(0, keepdim=True).relu())
    found = AblationCAM(max_batch=4)(classifier, images[:1], torch.tensor([3])).masks
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


# --- what users of other libraries trip over ---


class Functional(SmallNet):
    """The same network without a word in place."""

    def forward(self, x):
        x = torch.relu(self.middle(torch.relu(self.stem[1](self.stem[0](x)))))
        x = torch.relu(self.deep(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["gradcam", "gradcam_pp", "xgradcam", "layercam", "hirescam", "ablationcam"])
def test_in_place_and_reused_relus_change_nothing(name, small_net, images):
    plain = Functional()
    plain.load_state_dict(small_net.state_dict())
    layers = ("middle", "deep")
    there, here = (wrapped(network.eval(), layers=layers) for network in (plain, small_net))
    for layer in layers:
        wanted = EXPLAINERS[name](layer=layer)(there, images, torch.tensor([0, 1, 2])).masks
        found = EXPLAINERS[name](layer=layer)(here, images, torch.tensor([0, 1, 2])).masks
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_a_transformer_that_reads_its_class_token_is_explained_one_block_earlier(images):
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=16, embed_dim=12, depth=3, num_heads=3, num_classes=4
    )
    classifier = wrapped(network, layers=("blocks.0", "blocks.1", "blocks.2"))
    found = EXPLAINERS["gradcam"]()(classifier, images)
    assert found.layers == ("blocks.1",)
    assert found.passes.backward == 2
    named = EXPLAINERS["gradcam"](layer="blocks.1")(classifier, images)
    torch.testing.assert_close(found.masks, named.masks)
    with pytest.raises(ValueError, match=r"no gradient arrives at layer 'blocks.2'.*name an earlier layer"):
        EXPLAINERS["gradcam"](layer="blocks.2")(classifier, images)


def test_a_transformers_map_is_that_of_a_reshape_by_hand(images):
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=16, embed_dim=12, depth=2, num_heads=3, num_classes=4
    ).eval()
    classifier = wrapped(network, layers=("blocks.0",))
    tokens = network.blocks[0](network.norm_pre(network._pos_embed(network.patch_embed(entered(classifier, images)))))
    tokens = tokens.detach().requires_grad_()
    network.forward_head(network.norm(network.blocks[1](tokens)))[:, 2].sum().backward()
    maps, slopes = (value[:, 1:].transpose(1, 2).reshape(3, 12, 3, 3) for value in (tokens.detach(), tokens.grad))
    wanted = upsampled((slopes.mean((2, 3), keepdim=True) * maps).sum(1).relu())
    found = EXPLAINERS["gradcam"]()(classifier, images, torch.tensor([2, 2, 2])).masks
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


class Constant(nn.Module):
    """Feature maps without any contrast."""

    def __init__(self):
        super().__init__()
        self.tap, self.head = nn.Identity(), nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.tap(x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3)).mean((2, 3)))


@pytest.mark.parametrize("name", [*THEIRS, "cam"])
def test_constant_feature_maps_give_zeros_and_say_so(name, images):
    torch.manual_seed(0)
    found = EXPLAINERS[name]()(wrapped(Constant(), layers=("tap",)), images)
    assert torch.equal(found.masks, torch.zeros(3, 1, SIZE, SIZE))
    assert found.degenerate.all()


def test_layers_by_name_and_by_index(images):
    classifier = wrapped(plain_network())
    by_name = EXPLAINERS["gradcam"](layer="1")(classifier, images)
    assert torch.equal(by_name.masks, EXPLAINERS["gradcam"](layer=-2)(classifier, images).masks)
    assert by_name.layers == ("1",)
    with pytest.raises(ValueError, match="does not read layer '7'"):
        EXPLAINERS["gradcam"](layer="7")(classifier, images)
    with pytest.raises(ValueError, match="outside the 3 layers"):
        EXPLAINERS["scorecam"](layer=3)(classifier, images)


class Aside(nn.Module):
    """A layer beside the way to the logits."""

    def __init__(self):
        super().__init__()
        self.aside, self.way, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x):
        self.aside(x)
        return self.head(self.way(x).mean((2, 3)))


def test_a_layer_that_leads_nowhere_is_named(images):
    for layers in (("aside",), ("way", "aside")):  # never a layer back in silence
        with pytest.raises(ValueError, match=r"no gradient arrives at layer .aside.: the logits do not depend on it"):
            EXPLAINERS["gradcam"]()(wrapped(Aside(), layers=layers), images)


def test_dead_channels_share_one_pass(images):
    network = plain_network()
    network[2][0].weight.data[:6] = 0
    network[2][0].bias.data[:6] = -1  # six of ten channels are zero behind their ReLU
    classifier, calls = wrapped(network), []
    network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found = ScoreCAM()(classifier, images[:1], torch.tensor([1]))
    assert sum(calls) == found.passes.forward <= 1 + 4 + 1


def test_nothing_is_warned_of(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (*THEIRS, "cam"):
            EXPLAINERS[name]()(wrapped(plain_network()), images)
