"""Attention pooling: the formulas against a slow oracle, the network untouched, both heads, saving and refusing."""

import copy
import json
import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salmask.classifier import Classifier
from salmask.classifier.neck import Neck, find_neck, head_logits
from salmask.explain import EXPLAINERS
from salmask.explain.attention import RawAttention
from salmask.pooling import Pooled, QueryStream, read_stream

WHITE = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def _classifier(network: nn.Module, **options) -> Classifier:
    return Classifier(network, **{**WHITE, "layers": None, "image_size": 32, **options})


def _stream(classifier: Classifier, seed: int = 0, **options) -> QueryStream:
    return QueryStream.for_classifier(classifier, generator=torch.Generator().manual_seed(seed), **options)


@pytest.fixture
def classifier(small_net) -> Classifier:
    return _classifier(small_net.eval())


@pytest.fixture
def pooled(classifier) -> Pooled:
    return Pooled(classifier, _stream(classifier))


def _slow(stream: QueryStream, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Attend picture by picture, position by position, in float64 and by plain loops."""
    queries, seen = [], []
    for picture in range(len(maps[0])):
        query = stream.start.tolist()
        for own, projection in zip(maps, stream.projections, strict=True):
            depth, rows, columns = own.shape[1:]
            keys = [[float(own[picture, k, i, j]) for k in range(depth)] for i in range(rows) for j in range(columns)]
            scores = [sum(a * b for a, b in zip(key, query, strict=True)) / math.sqrt(depth) for key in keys]
            highest = max(scores)
            shares = [math.exp(score - highest) for score in scores]
            shares = [share / sum(shares) for share in shares]
            value = [sum(share * key[k] for share, key in zip(shares, keys, strict=True)) for k in range(depth)]
            query = [
                bias + sum(w * v for w, v in zip(row, value, strict=True))
                for row, bias in zip(projection.weight.tolist(), projection.bias.tolist(), strict=True)
            ]
            seen.append(torch.tensor(shares, dtype=torch.float64).view(rows, columns))
        queries.append(torch.tensor(query, dtype=torch.float64))
    return torch.stack(queries), seen


def test_attention_and_projections_equal_plain_loops_in_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    stream = QueryStream((3, 5, 4), 6, generator=generator).double()
    for projection in stream.projections:
        nn.init.normal_(projection.bias, generator=generator)
    maps = [torch.randn(2, d, h, w, generator=generator).double() for d, h, w in ((3, 4, 5), (5, 2, 3), (4, 2, 2))]
    made = stream.attend(maps)
    query, shares = _slow(stream, maps)
    assert torch.allclose(made.query, query, atol=1e-6, rtol=0)
    by_picture = [made.attentions[stage][picture, 0] for picture in range(2) for stage in range(3)]
    assert all(torch.allclose(one, two, atol=1e-6, rtol=0) for one, two in zip(by_picture, shares, strict=True))
    assert torch.equal(stream([one.clone() for one in maps]), made.query)


def test_a_query_of_zeros_is_average_pooling(classifier) -> None:
    """Uniform attention and a projection that is the identity give the network as it was."""
    stream = _stream(classifier, layers=[])
    with torch.no_grad():
        stream.start.zero_()
        stream.projections[0].weight.copy_(torch.eye(16))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(Pooled(classifier, stream).logits(images), classifier.logits(images), atol=1e-5)


@pytest.mark.parametrize("layers", [[], None])
def test_a_stream_that_begins_as_the_average_learns_in_all_its_weights(classifier, layers) -> None:
    stream = _stream(classifier, layers=layers, begin="average")
    assert len(stream.projections) == (1 if layers == [] else 2)
    images = torch.rand(3, 3, 32, 32)
    pooled = Pooled(classifier, stream)
    with torch.no_grad():
        assert torch.allclose(pooled.logits(images), classifier.logits(images), atol=1e-5)
    optimiser = torch.optim.SGD(stream.parameters(), lr=1.0)
    for _ in range(4):  # one step after another, from the last stage to the first
        optimiser.zero_grad()
        F.cross_entropy(pooled.logits(images), torch.tensor([0, 1, 0])).backward()
        optimiser.step()
    assert all(one.grad.abs().sum() > 0 for one in stream.parameters())


def test_a_beginning_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="as long as the last map has channels, got 6 and 4"):
        QueryStream((3, 4), 6, begin="average")
    with pytest.raises(ValueError, match="begins as one of source, average, got 'zero'"):
        QueryStream((3, 4), 4, begin="zero")


def test_the_head_reads_the_query_made_of_the_maps(pooled, classifier) -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), pooled.frozen():
        made = pooled.attend(images)
        maps = [module_map.detach() for module_map in _maps(classifier, pooled.stream, images)]
        query = pooled.stream(maps)
        expected = F.linear(query, classifier.network.head.weight, classifier.network.head.bias)
        assert torch.allclose(made.logits, expected, atol=1e-6)
        assert torch.allclose(made.query, query, atol=1e-6)
        assert torch.allclose(pooled.logits(images), expected, atol=1e-6)
    sums = [one.sum((1, 2, 3)) for one in made.attentions]
    assert all(torch.allclose(total, torch.ones(2), atol=1e-6) for total in sums)
    for attention, scores in zip(made.attentions, made.scores, strict=True):
        assert torch.allclose(attention.flatten(1), scores.flatten(1).softmax(1))


def _maps(classifier: Classifier, stream: QueryStream, images: Tensor) -> list[Tensor]:
    return list(_classifier(classifier.network, layers=list(stream.layers)).features(images).maps)


def test_both_heads_share_the_network_and_neither_changes_the_other(pooled, classifier) -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = classifier.logits(images)
        other = pooled.logits(images)
        assert torch.equal(classifier.logits(images), before)
    assert not torch.allclose(before, other)
    assert pooled.average is classifier
    assert next(pooled.network.backbone.parameters()) is next(classifier.network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pooled.network.modules())


def test_hooks_are_gone_also_after_a_failure(pooled) -> None:
    with pytest.raises(ValueError, match="channels"):
        pooled.stream([torch.rand(1, 3, 4, 4)])
    pooled.stream.channels = (1, 2)
    with pytest.raises(ValueError, match="reads maps with channels"):
        pooled.logits(torch.rand(1, 3, 32, 32))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pooled.network.modules())


class Excite(nn.Module):
    """Squeeze and excitation: takes a vector a picture, and is no neck."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]


def _excited() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), Excite(8), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 4),
    )  # fmt: skip


def test_the_neck_is_the_first_vector_through_which_alone_the_logits_see_the_picture() -> None:
    assert find_neck(_classifier(_excited())) == Neck("5", 12, "3")  # not the gate, nor the last layer


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("resnet10t", {}, 5),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16)}, 5),
        ("tf_efficientnet_lite0", {}, 5),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 12, "num_heads": 2}, 3),
    ],
    ids=["resnet", "convnext", "efficientnet", "vit"],
)
def test_streams_fit_networks_of_all_families_and_their_heads_alone_give_the_same_logits(name, options, layers) -> None:
    torch.manual_seed(0)
    size = 32 if "vit" in name else 64
    classifier = _classifier(timm.create_model(name, num_classes=4, **options), image_size=size)
    stream = _stream(classifier)
    assert len(stream.channels) == layers
    pooled = Pooled(classifier, stream)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad(), pooled.frozen():
        made = pooled.attend(images)
        alone = head_logits(classifier, Neck(stream.neck, stream.width, stream.layers[-1]), made.query)
    assert torch.allclose(made.logits, alone, atol=1e-5)
    explanation = EXPLAINERS["gradcam"]()(pooled, images)
    assert bool(explanation.masks.isfinite().all())


class Flat(nn.Module):
    """A head that reads the flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 6, 3, 8, 1), nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class PerPixel(nn.Module):
    """Logits are means of a map of classes: no vector enters a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


@pytest.mark.parametrize(("network", "says"), [(Flat, "takes 96 numbers"), (PerPixel, "not made from one vector")])
def test_a_network_without_a_pooled_head_is_refused(network, says) -> None:
    with pytest.raises(ValueError, match=says) as error:
        _stream(_classifier(network()))
    assert "no pooled head" in str(error.value)


def test_another_backbone_is_refused(classifier, small_net) -> None:
    stream = _stream(classifier)
    other = copy.deepcopy(small_net)
    with torch.no_grad():
        other.deep.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(ValueError, match="was trained beside the network"):
        Pooled(_classifier(other), stream)
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        _stream(classifier, layers=[9])


def test_a_stream_comes_back_from_its_folder_to_the_bit(tmp_path, classifier) -> None:
    stream = _stream(classifier, seed=5)
    stream.save_pretrained(tmp_path)
    again = read_stream(tmp_path)
    assert again.settings() == stream.settings()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(Pooled(classifier, again).logits(images), Pooled(classifier, stream).logits(images))


def test_files_of_something_else_are_refused(tmp_path, classifier) -> None:
    with pytest.raises(FileNotFoundError, match="no stream in"):
        read_stream(tmp_path)
    _stream(classifier).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "width": 17}))
    with pytest.raises(ValueError, match="does not hold the weights"):
        read_stream(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "format": "salmask masker 1"}))
    with pytest.raises(ValueError, match="format"):
        read_stream(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "more": 1}))
    with pytest.raises(ValueError, match="got the entry 'more'"):
        read_stream(tmp_path)


def test_raw_attention_is_the_last_attention_enlarged_and_knows_no_class(pooled) -> None:
    images = torch.rand(3, 3, 32, 32)
    targets = torch.tensor([0, 1, 2])
    explanation = RawAttention()(pooled, images, targets)
    with torch.no_grad(), pooled.frozen():
        made = pooled.attend(images)
    expected = F.interpolate(made.attentions[-1], (32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(explanation.masks, expected, atol=1e-6)
    assert explanation.class_agnostic and torch.equal(explanation.targets, targets)
    assert torch.allclose(explanation.logits, made.logits, atol=1e-5)
    scores = RawAttention(stage=0, of="scores")(pooled, images)
    assert torch.allclose(
        scores.masks, F.interpolate(made.scores[0], (32, 32), mode="bilinear", align_corners=False), atol=1e-5
    )
    one_by_one = torch.cat([RawAttention()(pooled, image[None]).masks for image in images])
    assert torch.allclose(one_by_one, explanation.masks, atol=1e-6)


def test_raw_attention_refuses_other_classifiers_and_stages(pooled, classifier) -> None:
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="salmask pooling"):
        RawAttention()(classifier, images)
    with pytest.raises(ValueError, match="stage 7 does not exist"):
        RawAttention(stage=7)(pooled, images)
    with pytest.raises(ValueError, match="weights or scores"):
        RawAttention(of="keys")


CAMS = ("gradcam", "gradcam_pp", "xgradcam", "layercam", "hirescam", "scorecam", "ablationcam", "eigencam")


@pytest.mark.parametrize("name", CAMS)
def test_every_cam_goes_through_either_head(name, pooled, classifier) -> None:
    images, targets = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    through = [EXPLAINERS[name]()(one, images, targets) for one in (classifier, pooled)]
    with torch.no_grad():
        expected = [one.eval().logits(images) for one in (classifier, pooled)]
    for explanation, logits in zip(through, expected, strict=True):
        assert explanation.masks.shape == (2, 1, 32, 32) and bool(explanation.masks.isfinite().all())
        assert torch.allclose(explanation.logits, logits, atol=1e-5)
    if name != "eigencam":  # which reads the maps alone, the same through both
        assert not torch.allclose(through[0].masks, through[1].masks)


def test_grad_cam_through_the_stream_has_the_gradient_of_the_explicit_formula(pooled, classifier) -> None:
    """The gradient at the pooled map passes the softmax of its attention, too: differentiate the formula itself."""
    images, target = torch.rand(1, 3, 32, 32), 2
    with pooled.frozen():
        maps = [one.detach() for one in _maps(classifier, pooled.stream, images)]
        maps[-1].requires_grad_()
        logits = F.linear(pooled.stream(maps), classifier.network.head.weight, classifier.network.head.bias)
        (slope,) = torch.autograd.grad(logits[0, target], maps[-1])
        weights = slope.mean((2, 3), keepdim=True)
        values = (weights * maps[-1].detach()).sum(1, keepdim=True).relu()
    expected = F.interpolate(values, (32, 32), mode="bilinear", align_corners=False)
    last = _classifier(pooled.network, layers=[f"backbone.{pooled.stream.layers[-1]}"])
    explanation = EXPLAINERS["gradcam"](layer=0)(last, images, torch.tensor([target]))
    assert torch.allclose(explanation.masks, expected, atol=1e-5 * float(expected.max().clamp_min(1)))
