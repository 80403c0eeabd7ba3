"""Classifiers of several inputs: stacking, fusion, masks an input, what each input is worth, through one `play`."""

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import salmask
from salmask.classifier import Classifier
from salmask.classifier.branches import alone, deepest_of_branches
from salmask.classifier.fusion import LateFusion, fused_network, read_inputs
from salmask.classifier.inputs import Inputs
from salmask.data.scenes import Scenes
from salmask.explain import EXPLAINERS
from salmask.explain.inputs import InputShares, PerInput
from salmask.masker import Masker
from salmask.masking import MeanColour
from salmask.metrics import METRICS, Case
from salmask.outcome import KEPT, REMOVED, play, play_at_rest
from salmask.pooling import Pooled, QueryStream
from salmask.specs import load_explainer
from salmask.terms import input_effects, shares_of, total_variation
from salmask.training.run import Loaded, Sight, load_classifier, save_classifier

RGBD = {"rgb": 3, "depth": 1}
BLACK = MeanColour((0.0,))


class Sums(nn.Module):
    """Logit 0 is a constant, logit 1 a weighted sum over the pixels of each channel: every answer is known by hand."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(len(weights), 1, 1, bias=False)
        self.layer.weight.data = torch.tensor(weights, dtype=torch.float32).view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        total = self.layer(x).mean((1, 2, 3))
        return torch.stack([torch.zeros_like(total), total], 1)


def _sums(*weights: float) -> Classifier:
    """A classifier of rgb and depth in [0, 1] as they are."""
    options = {"mean": (0.0,) * 4, "std": (1.0,) * 4, "layers": ["layer"], "image_size": 16}
    return Classifier(Sums(weights), **options, outputs="logits", inputs=RGBD)


def _late(seed: int = 0, **options) -> Classifier:
    torch.manual_seed(seed)
    network, inputs = fused_network("late", "rgb+depth:resnet10t", file=None, num_classes=3)
    given = {"mean": (0.5,) * 4, "std": (0.25,) * 4, "layers": None, "image_size": 64, "inputs": inputs.settings()}
    return Classifier(network, **{**given, **options})


def _images(count: int = 2, side: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(count, n, side, side, generator=generator) for name, n in RGBD.items()}


class Backwards(frozenset[str]):
    """Both sides in the order that a set of words has in every other process."""

    def __iter__(self):
        return iter((REMOVED, KEPT))


def test_answers_stand_in_one_order_in_every_process() -> None:
    classifier, images = _sums(1.0, 1.0, 1.0, 1.0), torch.rand(1, 4, 16, 16)
    masks, targets = torch.ones(1, 1, 16, 16), torch.tensor([1])
    outcome = play_at_rest(classifier, images, masks, targets, infill=BLACK, sides=Backwards((KEPT, REMOVED)))
    assert list(outcome.answers) == [KEPT, REMOVED]
    assert float(outcome.answers[KEPT][0, 1]) > float(outcome.answers[REMOVED][0, 1])


def test_a_dictionary_is_its_images_stacked_in_order() -> None:
    classifier, images = _sums(1, 2, 3, 4), _images()
    stacked = torch.cat([images["rgb"], images["depth"]], 1)
    by_hand = sum(w * stacked[:, k].mean((1, 2)) for k, w in enumerate((1, 2, 3, 4)))
    given = {"depth": images["depth"], "rgb": images["rgb"]}  # whatever the order of the dictionary
    assert torch.allclose(classifier.logits(given)[:, 1], by_hand, atol=1e-5)
    assert torch.equal(classifier.logits(given), classifier.logits(stacked))
    assert torch.equal(classifier.features(given).maps[0], classifier.features(stacked).maps[0])
    inputs = Inputs.of(RGBD)
    assert all(torch.equal(inputs.split(stacked)[name], images[name]) for name in RGBD)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": torch.rand(2, 1, 8, 16)}, "'depth' is \\(2, 1, 8, 16\\)"),
        ({"depth": torch.rand(1, 1, 16, 16)}, "one scene at one size"),
        ({"depth": torch.rand(2, 3, 16, 16)}, "expected images of 'depth' of shape \\(B, 1, H, W\\)"),
        ({"thermal": torch.rand(2, 1, 16, 16)}, "expected images of the inputs rgb, depth, got"),
    ],
    ids=["size", "batch", "channels", "name"],
)
def test_images_that_do_not_fit_together_are_refused_by_name(change, says) -> None:
    with pytest.raises(ValueError, match=says):
        _sums(1, 1, 1, 1).logits({**_images(), **change})


def test_a_dictionary_for_a_classifier_of_one_image_is_refused(small_net) -> None:
    one = Classifier(small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=None, image_size=32)
    with pytest.raises(ValueError, match="inputs="):
        one.logits({"rgb": torch.rand(1, 3, 32, 32)})
    with pytest.raises(ValueError, match="have 4 channels, mean and std are of 3"):
        Classifier(small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=None, image_size=32, inputs=RGBD)


def test_keep_and_remove_play_a_mask_for_each_input() -> None:
    classifier, images = _sums(1, 1, 1, 5), _images(3)
    masks = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(2))
    outcome = play(classifier, images, masks, torch.ones(3, dtype=torch.int64), infill=BLACK)
    rgb = (images["rgb"] * masks[:, :1]).mean((2, 3)).sum(1)
    depth = 5 * (images["depth"] * masks[:, 1:]).mean((1, 2, 3))
    whole = classifier.logits(images)[:, 1]
    assert torch.allclose(outcome.kept_logits[:, 1], rgb + depth, atol=1e-5)
    assert torch.allclose(outcome.removed_logits[:, 1], whole - rgb - depth, atol=1e-5)
    assert outcome.masks.shape == (3, 2, 16, 16)


def test_one_mask_for_all_is_that_mask_for_each() -> None:
    classifier, images = _sums(1, 2, 3, 4), _images()
    shared, targets = torch.rand(2, 1, 16, 16), torch.tensor([1, 1])
    one = play(classifier, images, shared, targets, infill=BLACK)
    each = play(classifier, images, shared.expand(-1, 2, -1, -1), targets, infill=BLACK)
    assert torch.allclose(one.kept_logits, each.kept_logits, atol=1e-6)
    assert torch.allclose(total_variation(one) * 2, total_variation(each), rtol=1e-5)
    with pytest.raises(ValueError, match="one for each of rgb, depth, got 3"):
        play(classifier, images, shared.expand(-1, 3, -1, -1), targets, infill=BLACK)


def test_effects_are_shapley_values_by_hand() -> None:
    classifier, images = _sums(1, 1, 1, 4), _images()
    stacked, targets = classifier.stacked(images), torch.tensor([1, 1])
    rgb, depth = images["rgb"].mean((2, 3)).sum(1), 4 * images["depth"].mean((1, 2, 3))
    s = torch.sigmoid
    by_hand = torch.stack(
        [
            (s(rgb) - 0.5 + s(rgb + depth) - s(depth)) / 2,
            (s(depth) - 0.5 + s(rgb + depth) - s(rgb)) / 2,
        ],
        1,
    )
    effects = input_effects(classifier, stacked, targets, infill=BLACK)
    assert torch.allclose(effects, by_hand, atol=1e-5)
    assert torch.allclose(effects.sum(1), s(rgb + depth) - 0.5, atol=1e-5)  # they share out the whole
    shares = shares_of(torch.tensor([[3.0, 1.0], [-1.0, 2.0], [-1.0, -1.0]]))
    assert torch.allclose(shares, torch.tensor([[0.75, 0.25], [0, 1], [0.5, 0.5]]))


def test_the_input_without_a_say_has_no_share() -> None:
    for weights, wanted in (((1.0, 1, 1, 0), [1.0, 0.0]), ((0.0, 0, 0, 2), [0.0, 1.0])):
        classifier = _sums(*weights)
        explanation = InputShares(infill=BLACK)(classifier, classifier.stacked(_images()), torch.tensor([1, 1]))
        assert torch.allclose(explanation.masks.mean((2, 3)), torch.tensor([wanted, wanted]))
        assert explanation.masks.shape == (2, 2, 16, 16)


def test_the_map_of_one_input_does_not_see_the_others() -> None:
    classifier = _sums(0, 0, 0, 3)
    explanation = PerInput(EXPLAINERS["occlusion"](window=4, stride=4))(
        classifier, classifier.stacked(_images()), torch.tensor([1, 1])
    )
    assert explanation.masks.shape == (2, 2, 16, 16)
    spans = explanation.masks.amax((2, 3)) - explanation.masks.amin((2, 3))
    assert bool((spans[:, 0] < 1e-5).all())
    assert bool((explanation.masks[:, 1].abs().amax((1, 2)) > 1e-3).all())


def test_one_input_alone_is_the_classifier_with_the_others_held() -> None:
    classifier, images = _late(), _images(1, 64)
    whole = classifier.stacked(images)
    for name in RGBD:
        one = alone(classifier, whole, name)
        with torch.no_grad(), classifier.frozen():
            assert torch.allclose(one.logits(images[name]), classifier.logits(whole), atol=1e-5)
            other = {**images, name: 1 - images[name]}
            assert torch.allclose(one.logits(1 - images[name]), classifier.logits(other), atol=1e-5)


def test_late_fusion_weighs_the_logits_of_each_network() -> None:
    classifier, images = _late(), _images(2, 64)
    fused = classifier.network
    assert isinstance(fused, LateFusion)
    assert [name.split(".")[1] for name in classifier.layers] == ["rgb"] * 5 + ["depth"] * 5
    assert deepest_of_branches(classifier) == [4, 9] and deepest_of_branches(classifier, 2) == [3, 4, 8, 9]
    fused.mixing.data = torch.tensor([2.0, -1.0])
    w = torch.softmax(torch.tensor([2.0, -1.0]), 0)
    with torch.no_grad(), classifier.frozen():
        each = [fused.networks[name]((images[name] - 0.5) / 0.25) for name in RGBD]
        assert torch.allclose(classifier.logits(images), w[0] * each[0] + w[1] * each[1], atol=1e-5)
        loss = classifier.logits(images).sum()
    assert loss.isfinite()
    classifier.logits(images)[:, 0].sum().backward()
    assert fused.mixing.grad is not None and bool(fused.mixing.grad.abs().sum() > 0)


def test_cams_read_the_network_of_each_input_and_refuse_a_mixed_one() -> None:
    classifier, images = _late(), _images(2, 64)
    stacked = classifier.stacked(images)
    explanation = PerInput(EXPLAINERS["gradcam"]())(classifier, stacked)
    each = [EXPLAINERS["gradcam"](layer=k)(classifier, stacked).masks for k in (4, 9)]
    assert torch.equal(explanation.masks, torch.cat(each, 1))
    with pytest.raises(ValueError, match="mixed already"):
        PerInput(EXPLAINERS["gradcam"]())(_sums(1, 1, 1, 1), _sums(1, 1, 1, 1).stacked(_images()))
    with pytest.raises(ValueError, match="mixed already"):
        PerInput(EXPLAINERS["opticam"](iterations=2))(_sums(1, 1, 1, 1), _sums(1, 1, 1, 1).stacked(_images()))


def test_one_map_of_parallel_networks_is_made_of_each_or_refused() -> None:
    classifier, images = _late(), _images(2, 64)
    stacked, asked = classifier.stacked(images), torch.tensor([0, 2])
    both = EXPLAINERS["gradcam"]()(classifier, stacked, asked)
    each = PerInput(EXPLAINERS["gradcam"]())(classifier, stacked, asked)
    assert torch.allclose(both.masks, each.masks.sum(1, keepdim=True)) and len(both.layers) == 2
    assert both.passes == each.passes
    for name, settings in {
        "scorecam": {},
        "eigencam": {},
        "gradcam": {"layer": -1},
        "opticam": {"iterations": 2},
    }.items():
        with pytest.raises(ValueError, match="per_input:of="):
            EXPLAINERS[name](**settings)(classifier, stacked)
    named = EXPLAINERS["eigencam"](layer=classifier.layers[4])(classifier, stacked)
    assert named.layers == (classifier.layers[4],)
    weights = PerInput(EXPLAINERS["opticam"](iterations=2))(classifier, stacked, asked).masks
    one = EXPLAINERS["opticam"](iterations=2, layer=4)(classifier, stacked, asked).masks
    assert torch.allclose(weights[:, :1], one, atol=1e-5) and not torch.allclose(weights[:, :1], weights[:, 1:])


@pytest.mark.filterwarnings("ignore:the deepest")
def test_layers_of_each_parallel_network_are_chosen_where_the_described_ones_are_too_small() -> None:
    classifier = _late(image_size=32)
    assert {name.split(".")[1] for name in classifier.layers} == set(RGBD)
    assert [name.split(".")[1] for name in classifier.layers] == sorted(
        (name.split(".")[1] for name in classifier.layers), key=list(RGBD).index
    )
    flat = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 3))
    fused = LateFusion({"rgb": _tiny(3), "depth": flat}, (3, 1))
    options = {"mean": (0.5,) * 4, "std": (0.25,) * 4, "image_size": 32, "inputs": RGBD}
    with pytest.raises(ValueError, match="network of 'depth' has a spatial extent"):
        Classifier(fused, layers=None, **options)
    assert Classifier(fused, layers=[], **options).layers == ()


def test_a_masker_makes_a_mask_for_each_input_and_is_kept_whole(tmp_path) -> None:
    classifier, images = _late(), _images(2, 64)
    masker = Masker.for_classifier(classifier, masks=2, generator=torch.Generator().manual_seed(0)).eval()
    assert masker.layers == (3, 4, 8, 9)
    with torch.no_grad():
        masks = masker(classifier.features(images).maps, (64, 64))
    assert masks.shape == (2, 2, 64, 64) and not torch.allclose(masks[:, 0], masks[:, 1])
    masker.save_pretrained(tmp_path)
    again = Masker.from_pretrained(tmp_path)
    assert again.masks == 2
    explanation = salmask.explain(classifier, classifier.stacked(images), explainer=again)
    assert torch.allclose(explanation.masks, masks, atol=1e-5)
    three = Classifier(
        classifier.network, mean=(0.5,) * 4, std=(0.2,) * 4, layers=None, image_size=64,
        inputs={"a": 1, "b": 2, "c": 1},
    )  # fmt: skip
    with pytest.raises(ValueError, match="makes 2 masks a picture, the classifier has 3 inputs"):
        again.fits(three)


def test_maps_of_several_inputs_come_on_one_scale() -> None:
    maps = torch.tensor([1.0, 2, 3, 5]).view(1, 2, 1, 2)
    from salmask.types import normalise

    assert torch.allclose(normalise(maps, "minmax").flatten(), torch.tensor([0, 0.25, 0.5, 1]))
    assert torch.allclose(normalise(maps, "max").flatten(), torch.tensor([0.2, 0.4, 0.6, 1]))


def test_scores_tell_whether_the_map_lies_on_the_input_that_decides() -> None:
    classifier = _sums(0, 0, 0, 4)
    images = classifier.stacked(_images(3))
    masks = torch.zeros(3, 2, 16, 16)
    masks[0, 1] = 1  # on depth, which decides
    masks[1, 0] = 1  # on colour
    masks[2] = 0.5  # on both
    targets = torch.ones(3, dtype=torch.int64)
    case = Case(masks=masks, targets=targets, ids=["a", "b", "c"], images=images, classifier=classifier)
    assert torch.allclose(METRICS["input_agreement"](case), torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64))
    assert torch.allclose(METRICS["input_top"](case), torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64))
    assert case.masks.shape == (3, 1, 16, 16) and bool((case.masks[:2] == 1).all())
    outcome = case.outcome()
    assert torch.allclose(outcome.kept_logits[0], outcome.clean[0], atol=1e-5)
    assert torch.allclose(outcome.removed_logits[1], outcome.clean[1], atol=1e-5)


def test_the_scores_are_not_for_classifiers_of_one_image(small_net) -> None:
    one = Classifier(small_net.eval(), mean=(0.5,) * 3, std=(0.2,) * 3, layers=None, image_size=32)
    case = Case(
        masks=torch.rand(1, 1, 32, 32), targets=torch.tensor([0]), ids=["a"], images=torch.rand(1, 3, 32, 32),
        classifier=one,
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs inputs"):
        METRICS["input_agreement"](case)
    with pytest.raises(ValueError, match="reads one image"):
        InputShares()(one, torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="masks must be"):
        Case(masks=torch.rand(1, 2, 32, 32), targets=torch.tensor([0]), ids=["a"], classifier=one)


@pytest.mark.parametrize("spec", ["early:rgb+depth:resnet10t", "late:rgb+depth_jet:resnet10t", "early:depth:resnet10t"])
def test_a_fused_network_comes_back_from_its_file(tmp_path, spec) -> None:
    kind, _, name = spec.partition(":")
    torch.manual_seed(0)
    network, inputs = fused_network(kind, name, file=None, num_classes=3)
    colours = {"mean": (0.5,) * inputs.total, "std": (0.25,) * inputs.total}
    own = Classifier(network, **colours, layers=None, image_size=64, inputs=inputs.settings())
    save_classifier(tmp_path / "own.safetensors", Loaded(own, spec, Sight(64), ("a", "b", "c")))
    again = load_classifier(f"{spec}@{tmp_path / 'own.safetensors'}").classifier
    assert again.inputs == inputs and again.layers == own.layers
    images = torch.rand(2, inputs.total, 64, 64)
    with torch.no_grad(), own.frozen(), again.frozen():
        assert torch.equal(again.logits(images), own.logits(images))


@pytest.mark.parametrize("text", ["", "rgb+rgb", "rgb+de pth", "rgb+depth*x"])
def test_inputs_that_are_no_names_are_refused(text) -> None:
    with pytest.raises(ValueError, match="expected inputs as rgb"):
        read_inputs(text)


def test_specs_name_the_explainers_of_inputs() -> None:
    loaded = Loaded(_sums(0, 0, 0, 3), "", Sight(16), ("a", "b"))
    _, shares, _ = load_explainer("input_shares", loaded=loaded)
    title, each, _ = load_explainer("per_input:of=rise:masks=20,seed=1", loaded=loaded)
    assert isinstance(shares, InputShares) and isinstance(each, PerInput) and title.startswith("per_input")
    assert each.explainer.masks == 20
    with pytest.raises(ValueError, match="per_input:of=SPEC"):
        load_explainer("per_input", loaded=loaded)


def test_attention_pooling_goes_beside_early_fusion() -> None:
    torch.manual_seed(0)
    network, inputs = fused_network("early", "rgb+depth:resnet10t", file=None, num_classes=3)
    own = Classifier(network, mean=(0.5,) * 4, std=(0.2,) * 4, layers=None, image_size=64, inputs=inputs.settings())
    pooled = Pooled(own, QueryStream.for_classifier(own))
    assert pooled.inputs == own.inputs and pooled.logits(_images(2, 64)).shape == (2, 3)
    with pytest.raises(ValueError, match="no pooled head"):
        QueryStream.for_classifier(_late())


def _tiny(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, 4, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.filterwarnings("default:the training has collapsed")  # of masks for a network that knows nothing
def test_a_masker_learns_and_is_measured_on_scenes(tmp_path) -> None:
    """The whole way in one: train, explain, evaluate with the page, on two inputs."""
    torch.manual_seed(0)
    fused = LateFusion({name: _tiny(count) for name, count in RGBD.items()}, (3, 1))
    layers = [f"networks.{name}.{k}" for name in RGBD for k in (1, 3)]
    classifier = Classifier(fused, mean=(0.5,) * 4, std=(0.25,) * 4, layers=layers, image_size=32, inputs=RGBD)
    scenes = Scenes(8, seed=0, size=32, shapes=("disc", "square", "star"))
    masker = salmask.train(classifier, scenes, per_input=True, steps=3, batch_size=4)
    assert masker.masks == 2 and masker.layers == (0, 1, 2, 3)
    explainers = {"masker": masker, "shares": InputShares(), "Grad-CAM": "gradcam"}
    metrics = ("average_drop", "le", "mask_mean", "input_agreement", "insertion")
    scores = salmask.evaluate(classifier, explainers, scenes, metrics=metrics, out=tmp_path)
    assert set(scores["masker"]) >= set(metrics)
    assert scores["shares"]["input_agreement"]["mean"] == pytest.approx(1.0, abs=1e-6)
    with Image.open(next((tmp_path / "pictures" / "masker").glob("*.png"))) as strip:
        assert strip.width == 8 * strip.height  # image, map, kept, removed, each of two inputs side by side
