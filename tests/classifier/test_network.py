"""Any network: logits, maps as (B, C, h, w), published sizes, the network left as found, checkpoints."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from conftest import SmallNet
from salmask.classifier.hold import at_once
from salmask.classifier.network import Classifier
from salmask.classifier.weights import load_weights

SMALL = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
LAYERS = ("stem", "middle", "deep")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pictures(size: int | tuple[int, int], batch: int = 2) -> Tensor:
    size = (size, size) if isinstance(size, int) else size
    return torch.rand(batch, 3, *size, generator=seeded(1))


def small(net: nn.Module, layers=LAYERS, **options) -> Classifier:
    return Classifier(net, **{**SMALL, "layers": layers, "image_size": 32, **options})


# Networks of timm: name, sizes to try, channels, strides


TIMM = {
    "resnet18": ((64, 97), (64, 64, 128, 256, 512), (4, 4, 8, 16, 32)),
    "resnet50": ((64, 224), (64, 256, 512, 1024, 2048), (4, 4, 8, 16, 32)),
    "convnext_atto": ((64, 96), (40, 40, 80, 160, 320), (4, 4, 8, 16, 32)),
    "efficientnet_b0": ((64, 96), (16, 24, 40, 112, 320), (2, 4, 8, 16, 32)),
    "mobilenetv3_small_100": ((64, 96), (16, 16, 24, 48, 576), (2, 4, 8, 16, 32)),
    "vit_tiny_patch16_224": ((96, 224), (192,) * 5, (16,) * 5),
    "swin_tiny_patch4_window7_224": ((224, 112), (96, 96, 192, 384, 768), (4, 4, 8, 16, 32)),
}


@pytest.fixture(scope="module")
def timm_classifier() -> Callable[[str], Classifier]:
    built: dict[str, Classifier] = {}

    def build(name: str) -> Classifier:
        if name not in built:
            torch.manual_seed(0)
            built[name] = Classifier.from_timm(name, pretrained=False, num_classes=7, image_size=TIMM[name][0][0])
        return built[name]

    return build


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_publish_channels_and_strides(timm_classifier, name) -> None:
    classifier = timm_classifier(name)
    assert classifier.channels == TIMM[name][1]
    assert classifier.strides == TIMM[name][2]
    assert classifier.num_classes == 7
    assert len(classifier.layers) == 5


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in TIMM for size in TIMM[name][0]])
def test_timm_networks_give_maps_and_the_logits_of_the_bare_network_at_several_sizes(
    timm_classifier, name, size
) -> None:
    classifier = timm_classifier(name)
    x = pictures(size, batch=1)
    logits, maps = classifier.features(x)
    for m, channels, stride in zip(maps, classifier.channels, classifier.strides, strict=True):
        assert m.shape == (1, channels, -(-size // stride), -(-size // stride))
        assert m.requires_grad
    config = timm.data.resolve_model_data_config(classifier.network)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        bare = classifier.network((x - mean) / std)
    torch.testing.assert_close(logits.detach(), bare)
    torch.testing.assert_close(classifier.logits(x).detach(), bare)


def intermediates(classifier: Classifier, x: Tensor, indices: list[int]) -> list[Tensor]:
    x = (x - classifier.mean) / classifier.std
    with torch.no_grad():
        return classifier.network.forward_intermediates(x, indices=indices, output_fmt="NCHW", intermediates_only=True)


@pytest.mark.parametrize("size", [96, 64])
def test_tokens_of_a_vision_transformer_become_the_grid_that_timm_makes(timm_classifier, size) -> None:
    classifier = timm_classifier("vit_tiny_patch16_224")
    blocks = [int(name.removeprefix("blocks.")) for name in classifier.layers]
    assert blocks == sorted(blocks) and blocks[-1] == 11
    x = pictures(size, batch=1)
    for ours, theirs in zip(classifier.features(x).maps, intermediates(classifier, x, blocks), strict=True):
        torch.testing.assert_close(ours.detach(), theirs)


def test_a_wide_picture_keeps_its_tokens_in_place(timm_classifier) -> None:
    classifier = timm_classifier("vit_tiny_patch16_224")
    x = pictures((64, 96), batch=1)
    maps = classifier.features(x).maps
    assert maps[-1].shape == (1, 192, 4, 6)
    torch.testing.assert_close(maps[-1].detach(), intermediates(classifier, x, [11])[0])


def test_channels_last_maps_become_the_grid_that_timm_makes(timm_classifier) -> None:
    classifier = timm_classifier("swin_tiny_patch4_window7_224")
    x = pictures(112, batch=1)
    ours = classifier.features(x).maps[1:]
    for own, theirs in zip(ours, intermediates(classifier, x, [0, 1, 2, 3]), strict=True):
        torch.testing.assert_close(own.detach(), theirs)


class Transposed(nn.Module):
    """Channels-last inside, with as many channels as the map has rows: the shape alone does not tell."""

    output_fmt = "NHWC"

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.patch(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_a_network_that_says_that_it_is_channels_last_is_believed_where_the_shape_does_not_tell() -> None:
    classifier = small(Transposed(), ["norm"])
    assert classifier.channels == (8,)
    x = pictures((16, 32))
    assert classifier.features(x).maps[0].shape == (2, 8, 4, 8)
    normed = classifier.network.norm(classifier.network.patch((x - classifier.mean) / classifier.std).movedim(1, 3))
    torch.testing.assert_close(classifier.features(x).maps[0], normed.movedim(3, 1))


class Tokens(nn.Module):
    """Patches as tokens; a class token is added behind the block that is read, or the patches go one by one."""

    num_prefix_tokens = 1

    def __init__(self, *, apart: bool = False) -> None:
        super().__init__()
        self.patch, self.block, self.head, self.apart = nn.Conv2d(3, 8, 4, 4), nn.Identity(), nn.Linear(8, 3), apart

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        if self.apart:
            return self.head(self.block(tokens.reshape(-1, 4, 8)).reshape(len(x), -1, 8).mean(1))
        tokens = self.block(tokens)
        return self.head(torch.cat([tokens[:, :1], tokens], 1).mean(1))


def test_a_class_token_that_comes_later_is_not_cut_off() -> None:
    classifier = small(Tokens(), ["block"])
    x = pictures(32)
    wanted = classifier.network.patch((x - classifier.mean) / classifier.std)
    torch.testing.assert_close(classifier.features(x).maps[0], wanted)


def test_tokens_that_are_no_square_lie_as_the_corners_of_the_picture_show() -> None:
    network = Tokens()
    network.num_prefix_tokens = 3  # neither 64 - 3 nor, after one more column of patches, 72 tokens are a square
    network.patch = nn.Conv2d(3, 8, 4, 4, padding=(0, 2))
    classifier = small(network, ["block"])
    x = pictures(32)
    wanted = network.patch((x - classifier.mean) / classifier.std)
    assert wanted.shape[2:] == (8, 9)
    torch.testing.assert_close(classifier.features(x).maps[0], wanted)


def test_a_layer_that_mixes_pictures_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"layer 'block' mixes pictures: expected 2 maps for 2 pictures, got \(32, 4, 8\)"
    ):
        small(Tokens(apart=True), ["block"])


@pytest.mark.parametrize("described", [["nothing"], ["fc"], ["global_pool"]])
def test_layers_are_found_where_timm_names_some_that_cannot_be_read(described, monkeypatch) -> None:
    wanted = ("act1", "layer1", "layer2", "layer3", "layer4")
    monkeypatch.setattr("salmask.classifier.network.described_layers", lambda network: described)
    assert Classifier.from_timm("resnet18", pretrained=False, image_size=64).layers == wanted
    with pytest.raises(ValueError, match="no layer 'nothing'"):
        Classifier.from_timm("resnet18", pretrained=False, image_size=64, layers=["nothing"])


def test_a_resnet_is_read_after_its_pooling_as_in_the_paper(timm_classifier) -> None:
    assert timm_classifier("resnet18").layers == ("maxpool", "layer1", "layer2", "layer3", "layer4")


# Networks of torchvision and own ones, layers chosen by us


TORCHVISION = {
    "resnet18": (64, (64, 64, 128, 256, 512), (4, 4, 8, 16, 32)),
    "vgg11_bn": (64, (128, 256, 512, 512, 512), (2, 4, 8, 16, 32)),
    "swin_t": (64, None, (4, 8, 16, 32)),
    "vit_b_32": (224, (768,) * 5, (32,) * 5),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_layers_of_torchvision_networks_are_found_shallow_to_deep(name) -> None:
    size, channels, strides = TORCHVISION[name]
    torch.manual_seed(0)
    options = {"hidden_dim": 96, "mlp_dim": 96, "num_heads": 4} if name.startswith("vit") else {}
    if name == "vgg11_bn":  # its three dense layers hold 120 million weights
        net = torchvision.models.vgg11_bn(init_weights=False)
        net.classifier = nn.Linear(512 * 49, 6)
    elif options:
        net = torchvision.models.VisionTransformer(
            image_size=224, patch_size=32, num_layers=12, num_classes=6, **options
        )
        channels = (96,) * 5
    else:
        net = torchvision.models.get_model(name, num_classes=6)
    classifier = Classifier(net, **SMALL, layers=None, image_size=size)
    assert classifier.strides[-len(strides) :] == strides
    if channels is not None:
        assert classifier.channels == channels
    x = pictures(size, batch=1)
    logits, maps = classifier.features(x)
    assert logits.shape == (1, 6)
    assert [m.shape[1] for m in maps] == list(classifier.channels)
    assert [size // m.shape[-1] for m in maps] == list(classifier.strides)


def test_layers_of_a_hand_written_network_are_found(small_net) -> None:
    classifier = small(small_net, None)
    assert classifier.strides == (2, 4, 8)
    assert classifier.channels == (8, 12, 16)


def test_a_hand_written_network_with_named_layers(small_net) -> None:
    classifier = small(small_net)
    assert (classifier.channels, classifier.strides, classifier.num_classes) == ((8, 12, 16), (2, 4, 8), 4)
    for size in (32, (24, 40)):
        x = pictures(size)
        logits, maps = classifier.eval().features(x)
        with torch.no_grad():
            z = (x - classifier.mean) / classifier.std
            stem = small_net.stem(z)
            middle = small_net.middle(stem)
            deep = small_net.deep(middle.relu())
            bare = small_net(z)
        torch.testing.assert_close(logits.detach(), bare)
        for ours, theirs in zip(maps, (stem, middle, deep), strict=True):  # before the in-place activation
            torch.testing.assert_close(ours.detach(), theirs)


class Wrapping(SmallNet):
    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(super().forward(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: SimpleNamespace(logits=z),
        lambda z: {"loss": 0, "logits": z},
        lambda z: (z, "more"),
        lambda z: [z.mean(), z],
        lambda z: {"out": z, "map": z[..., None, None]},
    ],
)
def test_logits_are_found_in_what_the_network_returns(wrap) -> None:
    torch.manual_seed(0)
    net = Wrapping(wrap).eval()
    classifier = small(net)
    plain = SmallNet().eval()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(classifier.logits(pictures(32)), small(plain).logits(pictures(32)))


class Pairs(nn.Module):
    """A layer that returns a map and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.conv(x), 7


class AfterPairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs = Pairs()

    def forward(self, x: Tensor) -> Tensor:
        x, seven = self.pairs(x)
        return x.mul_(seven).mean((2, 3))


def test_a_layer_that_returns_a_tuple_is_read_by_its_first_entry_and_goes_on_whole() -> None:
    classifier = small(AfterPairs(), ["pairs"])
    x = pictures(32)
    logits, maps = classifier.features(x)
    torch.testing.assert_close(logits, 7 * maps[0].mean((2, 3)))
    torch.testing.assert_close(logits, classifier.logits(x))


def test_a_network_of_bfloat16_weights_takes_the_same_pictures(small_net) -> None:
    x = pictures(32)
    exact = small(copy.deepcopy(small_net).eval()).logits(x)
    rough = small(small_net.eval().bfloat16())
    logits, maps = rough.features(x)
    assert logits.dtype == torch.float32 and maps[0].dtype == torch.bfloat16
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=0.05)
    assert len(rough.fingerprint()) == 16


# Refusals


def test_layers_that_the_network_lacks_are_named_with_near_ones(small_net) -> None:
    with pytest.raises(ValueError, match=r"no layer 'midle'; near: middle"):
        small(small_net, ["stem", "midle"])
    with pytest.raises(ValueError, match=r"no layer 'qqq'; near: .*stem"):
        small(small_net, ["qqq"])


def test_layers_without_spatial_extent_or_never_called_are_named(small_net) -> None:
    with pytest.raises(ValueError, match=r"layer 'head' has no spatial extent: .* got \(2, 4\)"):
        small(small_net, ["stem", "head"])
    small_net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="never calls layer 'spare'"):
        small(small_net, ["spare"])


def test_one_logit_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"K >= 2 classes.* \(2, 1\).*outputs='binary'"):
        small(SmallNet(classes=1))


def test_outputs_that_are_no_logits_are_refused(small_net) -> None:
    with pytest.raises(ValueError, match=r"expected logits \(B, K\) from the network, got str"):
        small(Wrapping(lambda z: "logits"))
    with pytest.raises(ValueError, match="no layer of the network has a spatial extent"):
        small(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), None)


@pytest.mark.parametrize(
    "images",
    [torch.rand(3, 32, 32), torch.rand(2, 1, 32, 32), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)],
)
def test_what_is_no_batch_of_pictures_is_refused(small_net, images) -> None:
    classifier = small(small_net)
    with pytest.raises(ValueError, match=r"expected (float )?images"):
        classifier.logits(images)


def test_unknown_names_of_timm_are_refused_with_near_ones() -> None:
    with pytest.raises(ValueError, match=r"timm has no network 'resnet81'; near: .*resnet"):
        Classifier.from_timm("resnet81", pretrained=False)


# The network is left as it was found


def state_of(net: nn.Module) -> dict[str, object]:
    return {
        "modes": [m.training for m in net.modules()],
        "wants": [p.requires_grad for p in net.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()],
        "state": {k: v.clone() for k, v in net.state_dict().items()},
        "devices": [p.device for p in net.parameters()],
    }


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


@pytest.fixture
def peculiar(small_net) -> SmallNet:
    """A network in a state that no call makes: mixed modes, a frozen weight, a gradient, a hook."""
    small_net.train()
    small_net.middle.eval()
    small_net.deep.weight.requires_grad_(False)
    small_net.head.weight.grad = torch.ones_like(small_net.head.weight)
    small_net.stem.register_forward_hook(lambda *_: None)
    return small_net


class StopError(RuntimeError):
    pass


def test_success_and_failure_leave_the_network_as_it_was(peculiar) -> None:
    before = state_of(peculiar)
    classifier = small(peculiar)
    assert same(state_of(peculiar), before)  # also the statistics of layers in train mode
    with classifier.frozen():
        assert not any(m.training for m in peculiar.modules())
        assert not any(p.requires_grad for p in peculiar.parameters())
        classifier.features(pictures(32))
    assert same(state_of(peculiar), before)

    def burst() -> None:
        with classifier.frozen():
            classifier.logits(pictures(32))
            raise StopError

    with pytest.raises(StopError):
        burst()
    assert same(state_of(peculiar), before)


@pytest.mark.parametrize("call", ["features", "logits"])
def test_a_network_that_fails_inside_is_left_as_it_was(peculiar, call, monkeypatch) -> None:
    classifier = small(peculiar)

    def dies(x: Tensor) -> Tensor:
        raise StopError

    monkeypatch.setattr(peculiar.head, "forward", dies)
    before = state_of(peculiar)
    with pytest.raises(StopError), classifier.frozen():
        getattr(classifier, call)(pictures(32))
    assert same(state_of(peculiar), before)


def test_a_refused_network_is_left_as_it_was(peculiar) -> None:
    before = state_of(peculiar)
    for layers in (["head"], ["nothing"], ["stem", "head"]):
        with pytest.raises(ValueError, match="layer"):
            small(peculiar, layers)
    with pytest.raises(ValueError, match="no layer"):
        Classifier(peculiar, **SMALL, layers=["absent"], image_size=32)
    assert same(state_of(peculiar), before)


def test_frozen_nests(peculiar) -> None:
    classifier = small(peculiar)
    before = state_of(peculiar)
    with classifier.frozen():
        with classifier.frozen():
            pass
        assert not any(m.training for m in peculiar.modules())
    assert same(state_of(peculiar), before)


# Taps and gradients


class OutOfPlace(SmallNet):
    """SmallNet without in-place activations, taking its stages' outputs from outside."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [self.stem[1](self.stem[0](x)).relu()]
        self.kept.append(self.middle(self.kept[0]))
        self.kept.append(self.deep(self.kept[1].relu()))
        for tap in self.kept:
            tap.retain_grad()
        return self.head(self.kept[2].relu().mean((2, 3)))


def test_gradients_to_taps_are_right_where_the_network_goes_on_in_place(small_net) -> None:
    classifier = small(small_net.eval())
    plain = OutOfPlace().eval()
    plain.load_state_dict(small_net.state_dict())
    x = pictures(32)
    weights = torch.randn(4, generator=seeded(5))
    logits, maps = classifier.features(x)
    grads = torch.autograd.grad((logits * weights).sum(), maps)
    bare = plain((x - classifier.mean) / classifier.std)
    (bare * weights).sum().backward()
    for tap, grad, expected in zip(maps, grads, plain.kept, strict=True):
        torch.testing.assert_close(tap, expected)
        torch.testing.assert_close(grad, expected.grad)
    assert any(bool((m < 0).any()) for m in maps)  # else the activations would change nothing


def test_maps_stay_what_they_were_when_no_gradient_is_recorded(small_net) -> None:
    classifier = small(small_net.eval())
    x = pictures(32)
    with torch.no_grad():
        silent = classifier.features(x).maps
    with torch.inference_mode():
        fast = classifier.features(x).maps
    for a, b, c in zip(classifier.features(x).maps, silent, fast, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_gradients_reach_the_pictures_through_normalisation(small_net) -> None:
    classifier = small(small_net.eval())
    x = pictures(32).requires_grad_()
    (grad,) = torch.autograd.grad(classifier.logits(x).sum(), x)
    z = ((x - classifier.mean) / classifier.std).detach().requires_grad_()
    (raw,) = torch.autograd.grad(small_net(z).sum(), z)
    torch.testing.assert_close(grad, raw / classifier.std)


def test_copies_read_their_own_layers(small_net) -> None:
    classifier = small(small_net.eval())
    twin = copy.deepcopy(classifier)
    with torch.no_grad():
        twin.network.stem[0].weight.zero_()
    x = pictures(32)
    assert not torch.equal(twin.features(x).maps[0], classifier.features(x).maps[0])


# Weights and fingerprints


def test_the_fingerprint_follows_every_weight_and_statistic(small_net) -> None:
    classifier = small(small_net)
    seen = {classifier.fingerprint()}
    assert classifier.fingerprint() in seen
    for value in small_net.state_dict().values():
        value.view(-1)[0] += 1
        seen.add(classifier.fingerprint())
    assert len(seen) == 1 + len(small_net.state_dict())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    weights = timm.create_model("test_resnet", num_classes=6).state_dict()
    save_file(weights, folder / "plain.safetensors")
    torch.save(weights, folder / "plain.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, folder / "nested.pth")
    torch.save({"model": weights}, folder / "model.pth")
    torch.save([1, 2, 3], folder / "list.pth")
    torch.save({"epoch": 3}, folder / "numbers.pth")
    save_file(timm.create_model("test_efficientnet", num_classes=6).state_dict(), folder / "other.safetensors")
    for name in ("plain.safetensors", "plain.pth"):
        (folder / f"cut.{name}").write_bytes((folder / name).read_bytes()[:2000])
    return folder, weights


@pytest.mark.parametrize("file", ["plain.safetensors", "plain.pth", "nested.pth", "model.pth"])
def test_checkpoints_of_every_kind_are_read_with_their_number_of_classes(checkpoints, file) -> None:
    folder, weights = checkpoints
    classifier = Classifier.from_timm("test_resnet", pretrained=True, checkpoint=folder / file, image_size=64)
    assert classifier.num_classes == 6
    assert all(torch.equal(value, weights[key]) for key, value in classifier.network.state_dict().items())


def test_a_missing_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent\.pth"):
        Classifier.from_timm("test_resnet", pretrained=False, checkpoint=tmp_path / "absent.pth")


@pytest.mark.parametrize("file", ["cut.plain.safetensors", "cut.plain.pth"])
def test_a_truncated_checkpoint_is_named(checkpoints, file) -> None:
    with pytest.raises(ValueError, match=f"{file} cannot be read as weights"):
        load_weights(checkpoints[0] / file)


@pytest.mark.parametrize("file", ["list.pth", "numbers.pth"])
def test_a_file_without_a_state_dict_is_named(checkpoints, file) -> None:
    with pytest.raises(ValueError, match=f"{file} holds no state dict"):
        load_weights(checkpoints[0] / file)


def test_a_checkpoint_of_another_network_is_refused(checkpoints) -> None:
    folder = checkpoints[0]
    with pytest.raises(ValueError, match="is it another network"):
        Classifier.from_timm("test_resnet", pretrained=False, checkpoint=folder / "other.safetensors")
    with pytest.raises(ValueError, match=r"do not fit test_resnet from .*: .* is \(6.*needed \(5"):
        Classifier.from_timm("test_resnet", pretrained=False, checkpoint=folder / "plain.safetensors", num_classes=5)


@pytest.mark.parametrize(
    ("size", "device", "wanted"),
    [(224, "cpu", 10), (32, "cpu", 32), (448, "cpu", 2), (2000, "cpu", 1), (224, "meta", 32)],
)
def test_a_pass_on_a_cpu_takes_what_its_caches_bear(size, device, wanted) -> None:
    assert at_once(torch.empty(64, 3, size, size, device=device), 32) == wanted
    assert at_once(torch.empty(64, 3, size, size, device=device), 2) == min(2, wanted)
