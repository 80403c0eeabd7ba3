import math

import pytest
import torch

from pixel_sums import Counting, Share, case_of, classifier_of, half_picture
from salmask.classifier import Classifier
from salmask.classifier.scores import logit, sigmoid
from salmask.metrics import Case
from salmask.metrics.faithfulness import (
    FAITHFULNESS,
    average_drop,
    average_gain,
    average_increase,
    faithfulness,
    fidelity_in,
    sensitivity_n,
)
from salmask.metrics.fills import BLACK, MEAN
from salmask.metrics.maps import complexity, sparseness
from salmask.metrics.soundness import SOUNDNESS

TABLE = FAITHFULNESS | SOUNDNESS
SHOWN = sorted(name for name, metric in TABLE.items() if "classifier" in metric.needs)


@pytest.fixture
def network(small_net):
    small_net.head.weight.data *= 30  # decided, so that the scores are far from constant
    return Classifier(small_net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), layers=("deep",), image_size=32)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, 24, 20, generator=generator), torch.rand(3, 1, 24, 20, generator=generator)


# Values on paper


def test_drop_increase_gain_on_paper():
    """p = the mean of what is shown = .8 whole; the mask .5 keeps .4, on a white fill .9."""
    classifier, image = classifier_of(Share()), torch.full((1, 3, 4, 4), 0.8)
    half = case_of(classifier, image, torch.full((1, 1, 4, 4), 0.5))
    assert average_drop(half).item() == pytest.approx(0.5, abs=1e-6)
    assert average_increase(half).item() == average_gain(half).item() == 0
    white = classifier_of(Share(), mean=1.0)
    white.mean.zero_()  # keeps the toy's pixel space
    case = case_of(white, image, torch.full((1, 1, 4, 4), 0.5))
    fill = type(MEAN)("white", lambda classifier: lambda images, holes: torch.ones(1, 3, 1, 1))
    assert average_gain(case, fill=fill).item() == pytest.approx(0.1 / 0.2, abs=1e-5)
    assert average_increase(case, fill=fill).item() == 1
    assert average_drop(case, fill=fill).item() == 0


def test_faithfulness_and_fidelity_on_paper():
    """Left half white, p = .5: without the left half p = 0; the other class wins both pictures at .45."""
    classifier, image = classifier_of(Share()), half_picture()
    case = case_of(classifier, image, image[:, :1])
    assert faithfulness(case).item() == pytest.approx(0.5, abs=1e-6)
    assert faithfulness(case_of(classifier, image, 1 - image[:, :1])).item() == pytest.approx(0, abs=1e-6)
    bright = torch.full((1, 3, 4, 4), 0.8)
    assert fidelity_in(case_of(classifier, bright, torch.full((1, 1, 4, 4), 0.9))).item() == 1  # .72
    assert fidelity_in(case_of(classifier, bright, torch.full((1, 1, 4, 4), 0.5))).item() == 0  # .4


def test_no_picture_is_shown_twice_for_one_case():
    """Clean, and kept and removed on each of two fills: five pictures an image serve all scores of single pictures."""
    counting = Counting(Share())
    classifier, image = classifier_of(counting, layer="inner.tap"), half_picture()
    case = case_of(classifier, image, image[:, :1] * 0.7)
    counting.shown = 0
    outcome = case.outcome()
    assert counting.shown == 3 and outcome.kept.shape == outcome.removed.shape == outcome.clean.shape
    for name in SHOWN:
        if name.startswith(("average", "fidelity", "faithfulness")):
            TABLE[name](case)
    assert counting.shown == 5
    known = case_of(classifier, image, image[:, :1], clean=outcome.clean)
    assert torch.equal(known.outcome(sides=frozenset({"kept"})).clean, outcome.clean) and counting.shown == 6


def test_explained_class_is_the_cases(network, batch):
    images, masks = batch
    first = faithfulness(case_of(network, images, masks, [0, 0, 0]))
    mixed = faithfulness(case_of(network, images, masks, [0, 1, 0]))
    second = faithfulness(case_of(network, images, masks, [1, 1, 1]))
    assert first[0] == mixed[0] and second[1] == mixed[1] and first[1] != mixed[1]


def test_full_map_changes_nothing(network, batch):
    images, _ = batch
    case = case_of(network, images, torch.ones(3, 1, 24, 20), [0, 1, 2])
    for name in TABLE:
        if name.startswith("average"):
            assert TABLE[name](case).tolist() == [0, 0, 0], name
        if name.startswith("fidelity_in"):
            assert TABLE[name](case).tolist() == [1, 1, 1], name
    assert FAITHFULNESS["complexity"](case).tolist() == pytest.approx([math.log(480)] * 3, abs=1e-9)
    assert FAITHFULNESS["sparseness"](case).tolist() == [0, 0, 0]


def test_empty_map_removes_nothing(network, batch):
    case = case_of(network, batch[0], torch.zeros(3, 1, 24, 20), [0, 1, 2])
    assert faithfulness(case).tolist() == [0, 0, 0]
    assert faithfulness(case, fill=BLACK).tolist() == [0, 0, 0]


def test_fake_cam_hardly_drops_nor_gains(network, batch):
    """All ones but one pixel: hardly any drop, as systems.md asks; the docs say what this rewards."""
    masks = torch.ones(3, 1, 24, 20)
    masks[..., 0, 0] = 0
    case = case_of(network, batch[0], masks, [0, 1, 2])
    assert bool((average_drop(case) < 0.02).all()) and bool((average_gain(case) < 0.02).all())


def test_score_functions_are_values(network, batch):
    images, masks = batch
    case = case_of(network, images, masks)
    with torch.no_grad(), network.frozen():
        whole = network.logits(images)[:, 0].double()
        grey = images.new_tensor((0.5, 0.4, 0.3)).view(1, 3, 1, 1)
        kept = network.logits(images * masks + grey * (1 - masks))[:, 0].double()
    expected = (whole.sigmoid() - kept.sigmoid()).clamp_min(0) / whole.sigmoid()
    torch.testing.assert_close(average_drop(case, score=sigmoid), expected, atol=1e-5, rtol=0)
    kept_by_faithfulness = faithfulness(case_of(network, images, 1 - masks), score=logit)
    torch.testing.assert_close(kept_by_faithfulness, whole - kept, atol=1e-4, rtol=0)


def test_floor_of_the_divisor():
    """p = .4 and o = .2: the drop is .2 over p, or over the floor where p is below it."""
    classifier = classifier_of(Share())
    case = case_of(classifier, torch.full((1, 3, 4, 4), 0.4), torch.full((1, 1, 4, 4), 0.5))
    assert average_drop(case).item() == pytest.approx(0.5, abs=1e-6)
    assert average_drop(case, epsilon=0.8).item() == pytest.approx(0.25, abs=1e-6)
    none = case_of(classifier, torch.zeros(1, 3, 4, 4), torch.full((1, 1, 4, 4), 0.5))
    assert average_drop(none).item() == 0


def test_sensitivity_of_an_additive_classifier_is_one():
    """p = mean of what is shown: hiding S costs just the sum over S of the picture."""
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(2, 1, 16, 16, generator=generator).expand(2, 3, 16, 16) * 0.9
    case = case_of(classifier_of(Share(), size=16), image, image[:, :1])
    assert sensitivity_n(case, cells=8).tolist() == pytest.approx([1, 1], abs=1e-4)
    against = case_of(classifier_of(Share(), size=16), image, 1 - image[:, :1])
    assert sensitivity_n(against, cells=8).tolist() == pytest.approx([-1, -1], abs=1e-4)
    flat = case_of(classifier_of(Share(), size=16), image, torch.full((2, 1, 16, 16), 0.3))
    assert sensitivity_n(flat, cells=8).tolist() == [0, 0]
    with pytest.raises(ValueError, match="share"):
        sensitivity_n(case, share=1.0)


def test_sensitivity_draws_by_image_and_seed(network, batch):
    images, masks = batch
    metric = FAITHFULNESS["sensitivity_n"]
    same = metric(case_of(network, images, masks, ids=["a", "b", "c"]))
    turned = metric(case_of(network, images.flip(0), masks.flip(0), ids=["c", "b", "a"]))
    torch.testing.assert_close(turned.flip(0), same, atol=1e-4, rtol=0)
    other = metric(case_of(network, images, masks, ids=["a", "b", "c"], seed=1))
    assert not torch.allclose(other, same, atol=1e-3)


# Concentration


def test_concentration_on_paper():
    single = torch.zeros(1, 1, 4, 5)
    single[0, 0, 2, 3] = 0.7
    assert sparseness(single).item() == pytest.approx(1 - 1 / 20)
    assert complexity(single).item() == 0
    half = torch.zeros(1, 1, 4, 5)
    half[0, 0, :2] = 0.4
    assert sparseness(half).item() == pytest.approx(0.5)
    assert complexity(half).item() == pytest.approx(math.log(10))
    three = torch.tensor([0.1, 0.2, 0.3]).view(1, 1, 1, 3)
    pairwise = sum(abs(a - b) for a in (1, 2, 3) for b in (1, 2, 3)) / (2 * 3 * 6)  # Gini by its definition
    assert sparseness(three).item() == pytest.approx(pairwise, abs=1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_concentration_of_constant_maps(constant):
    maps = torch.full((2, 1, 6, 7), constant)
    assert sparseness(maps).tolist() == [0, 0]
    assert complexity(maps).tolist() == pytest.approx([math.log(42)] * 2)


def test_concentration_does_not_see_the_scale():
    maps = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(sparseness(maps * 0.2), sparseness(maps))
    torch.testing.assert_close(complexity(maps * 0.2), complexity(maps))


# The contract of every metric of the tables


@pytest.mark.parametrize("name", sorted(TABLE))
def test_metric_says_its_protocol(name):
    metric = TABLE[name]
    assert metric.name == name and metric.source and metric.direction in {"up", "down"}
    if name in SHOWN:
        assert {"fill", "score", "explained_class"} <= set(metric.protocol)
    assert not metric.set_level


@pytest.mark.parametrize("name", sorted(TABLE))
def test_metric_keeps_its_range_and_its_batch(name, network, batch):
    images, masks = batch
    case = case_of(network, images, masks, [0, 1, 2])
    values = TABLE[name](case)
    low, high = TABLE[name].range
    assert values.shape == (3,) and bool(torch.isfinite(values).all())
    assert bool((values >= low).all()) and bool((values <= high).all())
    assert not values.requires_grad
    for index in range(3):
        one = slice(index, index + 1)
        alone = case_of(network, images[one], masks[one], [index], ids=[case.ids[index]])
        tolerance = 1e-3 if name == "sensitivity_n" else 1e-5  # a correlation of differences magnifies rounding
        assert TABLE[name](alone).item() == pytest.approx(values[index].item(), abs=tolerance)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_metric_of_constant_maps_is_finite(name, network, batch):
    for constant in (0.0, 0.5, 1.0):
        case = case_of(network, batch[0], torch.full((3, 1, 24, 20), constant))
        assert bool(torch.isfinite(TABLE[name](case)).all())


@pytest.mark.parametrize("name", SHOWN)
def test_classifier_is_left_as_found(name, network, batch):
    network.network.train()
    network.network.middle.eval()
    network.network.head.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    wants = [parameter.requires_grad for parameter in network.parameters()]

    def same():
        assert [module.training for module in network.modules()] == modes
        assert [parameter.requires_grad for parameter in network.parameters()] == wants
        assert all(parameter.grad is None for parameter in network.parameters())
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert not any(module._forward_hooks for module in network.modules())

    TABLE[name](case_of(network, *batch))
    same()
    fails = FailsAt(network.network, call=2)
    hook = network.network.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        TABLE[name](case_of(network, *batch))
    hook.remove()
    same()


class FailsAt:
    def __init__(self, network, call):
        self.left = call

    def __call__(self, module, inputs):
        self.left -= 1
        if not self.left:
            raise RuntimeError("on purpose")


@pytest.mark.parametrize("name", SHOWN)
def test_outer_no_grad_and_inputs_that_want_gradients(name, network, batch):
    images, masks = batch
    expected = TABLE[name](case_of(network, images, masks))
    with torch.no_grad():
        assert torch.equal(TABLE[name](case_of(network, images, masks)), expected)
    wanting = case_of(network, images.clone().requires_grad_(), masks.clone().requires_grad_())
    torch.testing.assert_close(TABLE[name](wanting).detach(), expected)


@pytest.mark.parametrize("name", SHOWN)
def test_inputs_are_not_changed(name, network, batch):
    images, masks = batch
    copies = images.clone(), masks.clone()
    TABLE[name](case_of(network, images, masks))
    assert torch.equal(images, copies[0]) and torch.equal(masks, copies[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.01, 1.01])
def test_bad_maps_are_refused_also_by_scores_of_order_alone(network, batch, bad):
    images, masks = batch
    masks[1, 0, 2, 3] = bad
    with pytest.raises(ValueError, match="finite" if not math.isfinite(bad) else "normalise it explicitly"):
        FAITHFULNESS["insertion"](case_of(network, images, masks))


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_missing_is_named(name, batch):
    case = Case(masks=batch[1], targets=torch.zeros(3, dtype=torch.long), ids=["a", "b", "c"])
    with pytest.raises(ValueError, match="classifier, images"):
        TABLE[name](case)
