"""Networks that are called as others are, and are not built as others are."""

import warnings
from collections import OrderedDict

import pytest
import timm
import torch
from test_matrix import MEAN, SIZE, STD, Squares, scene
from torch import nn

from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS
from salmask.explain.batching import check_batch


def around(network: nn.Module, layers: list[str] | None) -> Classifier:
    return Classifier(network, mean=MEAN, std=STD, layers=layers, image_size=SIZE)


def test_an_exported_network_serves_explainers_of_logits() -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    shown = torch.rand(2, 3, SIZE, SIZE)
    exported = torch.export.export(Squares().eval(), (shown,), dynamic_shapes=({0: batch},)).module()
    modes = [module.training for module in exported.modules()]
    masks = [
        EXPLAINERS["occlusion"](window=112, stride=112)(around(network, []), scene()).masks
        for network in (exported, Squares())
    ]
    torch.testing.assert_close(*masks)
    assert [module.training for module in exported.modules()] == modes


@pytest.mark.parametrize("name", ["gradcam", "gradient", "occlusion", "rise"])
def test_pictures_outside_0_and_1_are_refused_on_any_device(name) -> None:
    classifier = around(Squares(), ["stage2"])
    classifier.logits = classifier.unbounded  # type: ignore[method-assign]  # as elsewhere than on a CPU
    with pytest.raises(ValueError, match="divide by 255"):
        EXPLAINERS[name]()(classifier, 255 * scene())


class Constant(Squares):
    """The logit of class 1 is a constant; with `all_of_them`, every one is."""

    all_of_them = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        if self.all_of_them:
            return logits * 0 + torch.tensor([1.0, 2, 3])
        return torch.stack([logits[:, 0], 0 * logits[:, 1] + 0.3, logits[:, 2]], 1)


NEEDS_GRADIENTS = {
    "gradcam": {}, "layercam": {}, "gradient": {}, "smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 2},
    "guided_backprop": {}, "gradient_x_input": {}, "attribution_mask": {}, "meaningful": {"iterations": 2},
    "extremal": {"iterations": 2, "areas": [0.2]}, "opticam": {"iterations": 2}, "fido": {"iterations": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", NEEDS_GRADIENTS)
@pytest.mark.parametrize("every", [False, True])
def test_a_constant_logit_has_no_map(name, every) -> None:
    network = Constant()
    network.all_of_them = every
    classifier = Classifier(network, mean=MEAN, std=STD, layers=None, image_size=SIZE, outputs="logits")
    with pytest.raises(ValueError, match="the logit of class 1 does not depend on the picture"):
        EXPLAINERS[name](**NEEDS_GRADIENTS[name])(classifier, scene(), torch.tensor([1]))


class Rounded(Squares):
    """Logits are rounded, through which no gradient comes, and yet hang on the picture for autograd."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).round()


class Dark(Squares):
    """Black pictures leave all ReLUs off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage2(self.stage1((x * 10 + 10).relu())).mean((2, 3)))


@pytest.mark.parametrize("name", ["gradcam", "layercam", "gradient"])
def test_gradients_that_are_lost_are_told_from_pictures_that_have_none(name) -> None:
    with pytest.raises(ValueError, match="class 0 changes with the picture, and no gradient of it arrives"):
        EXPLAINERS[name]()(around(Rounded(), None), scene(), torch.tensor([0]))
    explanation = EXPLAINERS[name]()(around(Dark(), None), torch.zeros(1, 3, SIZE, SIZE), torch.tensor([0]))
    assert not explanation.masks.any()  # an empty map, and that is the truth about this picture


def test_labels_that_are_constant_are_refused_too() -> None:
    classifier = Classifier(Constant(), mean=MEAN, std=STD, layers=None, image_size=SIZE, outputs="multilabel")
    for name in ("gradcam", "meaningful"):
        with pytest.raises(ValueError, match="the logit of class 1 does not depend"):
            EXPLAINERS[name]()(classifier, scene(), torch.tensor([1]))


class Twice(nn.Module):
    """Calls its network for the picture, and for another one that is made of it."""

    def __init__(self, made=torch.neg) -> None:
        super().__init__()
        self.network, self.made = Squares(), made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) + self.network(self.made(x))


def test_a_network_that_calls_every_layer_twice_says_so() -> None:
    with pytest.raises(ValueError, match=r"called several times in a pass, such as 'network.stage2' 2 times"):
        around(Twice(), None)
    assert around(Twice(), ["network.stage2"]).layers == ("network.stage2",)
    with pytest.raises(ValueError, match="mirrored"):  # the last call is of the mirror image
        around(Twice(lambda x: x.flip(3)), ["network.stage2"])


@pytest.mark.parametrize("sharp", [1.0, 200.0])
@pytest.mark.parametrize("first", [False, True])
def test_two_probabilities_of_one_sigmoid_are_taken_back_where_it_is_sure(sharp, first) -> None:
    class Pair(Squares):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = sharp * super().forward(x)[:, 0]
            s = z.sigmoid()
            return torch.stack([s, 1 - s] if first else [1 - s, s], 1)

    with pytest.warns(UserWarning, match="ends in a softmax, its rows sum to 1"):
        classifier = around(Pair(), None)
    z = sharp * Squares()((scene() - classifier.mean) / classifier.std)[:, 0]
    wanted = torch.stack([z, -z] if first else [-z, z], 1) / 2
    torch.testing.assert_close(classifier.logits(scene()), wanted)
    own = 0 if first else 1
    masks = EXPLAINERS["gradcam"]()(classifier, scene(), torch.tensor([own])).masks
    assert masks[0, 0, :30, :30].sum() > 0.9 * masks.sum() > 0


@pytest.mark.parametrize("name", ["gradcam", "gradient", "occlusion", "meaningful", "smoothgrad"])
def test_targets_may_be_a_list_and_what_is_none_is_refused(name) -> None:
    explainer = EXPLAINERS[name](**{"meaningful": {"iterations": 1}, "smoothgrad": {"samples": 1}}.get(name, {}))
    classifier = around(Squares(), None)
    torch.testing.assert_close(
        explainer(classifier, scene(), [0]).masks, explainer(classifier, scene(), torch.tensor([0])).masks
    )
    for wrong in (["red"], [None], [[0]], [0, 1]):
        with pytest.raises(ValueError, match="expected targets"):
            explainer(classifier, scene(), wrong)


class Squeezed(Squares):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).squeeze()


def test_a_network_that_squeezes_a_batch_of_one_gives_the_same_maps() -> None:
    torch.testing.assert_close(*gradcam_of(Squeezed(), Squares()))


def gradcam_of(*networks: nn.Module) -> list[torch.Tensor]:
    return [EXPLAINERS["gradcam"]()(around(network, None), scene(), torch.tensor([0])).masks for network in networks]


def test_a_quantised_head_is_read_and_refused_by_what_needs_gradients() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what becomes of quantisation
        network = torch.ao.quantization.quantize_dynamic(Squares().eval(), {nn.Linear}, dtype=torch.qint8)
        classifier = around(network, None)
    assert classifier.layers == ("stem", "stage1", "stage2") and not classifier.differentiable
    with pytest.raises(ValueError, match="needs gradients, and none come back"):
        EXPLAINERS["gradcam"]()(classifier, scene(), torch.tensor([0]))
    masks = EXPLAINERS["occlusion"](window=28, stride=28)(classifier, scene(), torch.tensor([0])).masks[0, 0]
    assert masks[:30, :30].sum() > 0.9 * masks.clamp_min(0).sum() > 0


class Views(Squares):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        views = torch.stack([x[..., :48, :48], x[..., -48:, -48:]], 1)
        return super().forward(views.flatten(0, 1)).unflatten(0, (len(x), 2)).mean(1)


def test_networks_that_cannot_be_read_say_why() -> None:
    with pytest.raises(ValueError, match="other batches than the pictures"):
        around(Views(), None)
    with torch.inference_mode():
        network = Squares()
    with pytest.raises(ValueError, match=r"built under torch\.inference_mode"):
        around(network, None)
    with pytest.raises(ValueError, match="got complex numbers"):
        around(nn.Sequential(Squares(), Imaginary()), None)


class Imaginary(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0j


class Drawing(Squares):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x) + 1, 0.5, training=True)


def test_a_network_that_draws_in_eval_mode_is_told_of() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="different logits each time"):
        Classifier(Drawing(), mean=MEAN, std=STD, layers=[], image_size=SIZE, outputs="logits")


def test_a_function_of_arrays_and_pictures_that_are_none() -> None:
    own = Squares().eval()
    classifier = around(lambda x: own(x).detach().numpy(), [])  # type: ignore[arg-type]
    torch.testing.assert_close(classifier.logits(scene()), around(own, None).logits(scene()))
    for wrong in (scene().numpy(), [scene()[0]]):
        with pytest.raises(ValueError, match="expected images as a tensor"):
            check_batch(wrong)  # which every explainer asks first


def test_hieras_blocks_and_stages_are_put_in_rows_by_the_network_itself() -> None:
    torch.manual_seed(0)
    small = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 2, 1), "mask_unit_size": (8, 8)}
    network = timm.create_model("hiera_tiny_224", num_classes=3, img_size=SIZE, **small).eval()
    shown = torch.rand(2, 3, SIZE, SIZE)
    for read in (network, nn.Sequential(network)):
        classifier = around(read, None)
        wanted = network.forward_intermediates((shown - classifier.mean) / classifier.std, intermediates_only=True)
        for got, intermediate in zip(classifier.features(shown).maps, wanted[-len(classifier.layers) :], strict=True):
            torch.testing.assert_close(got, intermediate)
    transformers = pytest.importorskip("transformers")
    sizes = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}
    config = transformers.HieraConfig(
        num_labels=3, image_size=[SIZE] * 2, patch_size=[7, 7], patch_stride=[4, 4], **sizes
    )
    other = transformers.HieraForImageClassification(config).eval()
    classifier = around(other, None)
    assert [name.rpartition("encoder.")[2] for name in classifier.layers[-4:]] == [f"stages.{k}" for k in range(4)]
    states = other((shown - classifier.mean) / classifier.std, output_hidden_states=True).reshaped_hidden_states
    torch.testing.assert_close(classifier.features(shown).maps[-1], states[-1].permute(0, 3, 1, 2))


class TwoOfOne(nn.Module):
    """Returns its map twice, and only the second goes on, as EfficientViM's last stage does."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.own(x)
        return pooled, pooled


class TakesTheSecond(Squares):
    def __init__(self) -> None:
        super().__init__()
        self.stage2 = TwoOfOne()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x).relu()))[1].mean((2, 3)))


def test_a_map_that_stands_twice_in_an_output_is_read_where_it_goes_on() -> None:
    torch.testing.assert_close(*gradcam_of(TakesTheSecond(), Squares()))


class Opaque(nn.Module):
    """Four blocks of tokens whose grid nobody tells: registers first, class token last, all mixed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.more = nn.Parameter(torch.randn(1, 3, 8))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        more = self.more.expand(len(x), -1, -1)
        tokens = torch.cat([more[:, :2], tokens, more[:, 2:]], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, -1])


def test_tokens_that_cannot_be_read_after_the_deepest_layer_are_told_of() -> None:
    torch.manual_seed(0)
    with pytest.warns(
        UserWarning, match=r"'embed' is the deepest that is read, and 'blocks\.3' comes after.* 67 tokens"
    ):
        assert around(Opaque(), None).layers == ("embed",)
    given = Classifier(Opaque(), mean=MEAN, std=STD, layers=None, image_size=SIZE, prefix=2, grid=(8, 8))
    assert given.layers[-1] == "blocks.3" and given.strides[-1] == 8


class Part(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, 8, 8) -> (B, windows, cells, C), the values doubled."""
        return 2 * x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


class Join(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Undo it, but for the doubling."""
        return x.unflatten(2, (4, 4)).unflatten(1, (2, 2)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def test_values_in_windows_are_no_map() -> None:
    torch.manual_seed(0)
    stem, late = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 8, 2, 2)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    shown = torch.rand(2, 16, 8, 8)
    assert torch.equal(Join()(Part()(shown)), 2 * shown) and Part()(shown).shape == (2, 4, 16, 16)
    network = nn.Sequential(OrderedDict(stem=stem, part=Part(), join=Join(), late=late, head=head))
    classifier = Classifier(network, mean=MEAN, std=STD, layers=None, image_size=32)
    assert classifier.layers == ("stem", "join", "late")  # `part` has the shape of 4 channels of 16 x 16: 4 windows


def test_a_network_that_normalises_over_the_batch_is_told_of() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(1))
    with pytest.warns(UserWarning, match="other logits beside others than alone"):
        around(network, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        around(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.InstanceNorm2d(4), nn.Flatten(1)), [])


def test_networks_without_numbers_yet_are_named() -> None:
    with pytest.raises(ValueError, match="lazy layers without weights"):
        around(nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(1)), [])
    with torch.device("meta"):
        network = Squares()
    with pytest.raises(ValueError, match="device 'meta'"):
        around(network, None)


def test_a_size_that_a_network_does_not_take_is_named_with_the_one_it_does() -> None:
    network = nn.Sequential(nn.Flatten(1), nn.Linear(3 * SIZE * SIZE, 4))
    classifier = around(network, [])
    with pytest.raises(ValueError, match=rf"fails on pictures of 8x9 .*takes those of {SIZE}x{SIZE}"):
        classifier.logits(torch.rand(1, 3, 8, 9))
