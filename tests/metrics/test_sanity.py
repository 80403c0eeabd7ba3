import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from salmask.classifier import Classifier
from salmask.classifier.hold import layers_to_randomise, randomised, redraw_as_released, reset
from salmask.metrics.sanity import Step, compare_maps, curve, randomisation
from salmask.metrics.sanity_figures import curve_figure, strip_figure
from salmask.metrics.similarity import (
    SIMILARITIES,
    hog_correlation,
    similarities_for,
    spearman,
    spearman_absolute,
    spearman_off_half,
    ssim,
)

RANKS = {"spearman": spearman}


@pytest.fixture
def classifier(small_net):
    return Classifier(small_net, mean=(0.5,) * 3, std=(0.25,) * 3, layers=("deep",), image_size=48)


@pytest.fixture
def images():
    return torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(2))


def answer(masks, range=(0.0, 1.0)):
    return SimpleNamespace(masks=masks, range=range)


def gradient(classifier, images, targets):
    """Explain by the size of the input gradient, scaled to [0, 1]."""
    with torch.enable_grad(), classifier.frozen():
        x = images.clone().requires_grad_()
        score = classifier.logits(x).gather(1, targets[:, None]).sum()
        size = torch.autograd.grad(score, x)[0].abs().sum(1, keepdim=True)
    return answer(size / size.amax((2, 3), keepdim=True).clamp_min(1e-12))


def edges(classifier, images, targets):
    """Explain by the picture alone: insensitive to the network."""
    return answer(images.mean(1, keepdim=True))


def weights(network):
    return {name: value.clone() for name, value in [*network.named_parameters(), *network.named_buffers()]}


def same(network, before):
    return all(torch.equal(value, before[name]) for name, value in weights(network).items())


# Similarities


@pytest.mark.parametrize("name", sorted(SIMILARITIES))
def test_similarity_of_equal_maps_is_one(name):
    maps = torch.rand(2, 1, 48, 60, generator=torch.Generator().manual_seed(0))
    other = torch.rand(2, 1, 48, 60, generator=torch.Generator().manual_seed(1))
    assert SIMILARITIES[name](maps, maps).tolist() == pytest.approx([1, 1])
    assert bool((SIMILARITIES[name](maps, other) < 0.9).all())
    torch.testing.assert_close(SIMILARITIES[name](maps, other), SIMILARITIES[name](other, maps))


def test_spearman_on_paper():
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15) = .8; ties share their mean rank."""
    a = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 1, 2, 2)
    b = torch.tensor([0.1, 0.2, 0.9, 0.5]).view(1, 1, 2, 2)
    assert spearman(a, b).item() == pytest.approx(0.8)
    assert spearman(a, -b).item() == pytest.approx(-0.8)
    assert spearman(a, a**3).item() == pytest.approx(1)
    tied = torch.tensor([0.1, 0.1, 0.3, 0.4]).view(1, 1, 2, 2)
    ranks = np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 4, 3])[0, 1]
    assert spearman(tied, b).item() == pytest.approx(ranks)


def test_absolute_ranks_let_the_sign_go():
    m = torch.rand(1, 1, 8, 8)
    assert spearman_off_half(m, 1 - m).item() == pytest.approx(1)
    assert spearman_absolute(m - 0.5, 0.5 - m).item() == pytest.approx(1)
    assert spearman(m, 1 - m).item() == pytest.approx(-1)


def test_constant_and_broken_maps_are_nan_not_poison():
    maps = torch.rand(3, 1, 48, 48)
    other = torch.rand(3, 1, 48, 48)
    other[0] = 0.3
    other[1, 0, 5, 5] = float("nan")
    for measure in (spearman, spearman_off_half, spearman_absolute, hog_correlation):
        assert [math.isnan(value) for value in measure(maps, other).tolist()] == [True, True, False]
    assert [math.isnan(value) for value in ssim(maps, other).tolist()] == [False, True, False]
    flat = torch.full((1, 1, 48, 48), 0.4)
    assert ssim(flat, flat).item() == 1
    points = curve([Step("a", str(i), "spearman", v) for i, v in enumerate(spearman(maps, other).tolist())])
    assert (points[0].defined, points[0].undefined) == (1, 2) and math.isfinite(points[0].mean)
    assert math.isnan(curve([Step("a", "1", "hog", float("nan"))])[0].mean)


def test_data_range_of_ssim_is_said():
    a, b = torch.rand(1, 1, 20, 20), torch.rand(1, 1, 20, 20)
    assert ssim(a * 10, b * 10, data_range=10.0).item() == pytest.approx(ssim(a, b, data_range=1.0).item(), abs=1e-6)
    assert ssim(a, b, data_range=2.0).item() > ssim(a, b, data_range=1.0).item()  # the published default flatters
    span = max(a.max(), b.max()) - min(a.min(), b.min())
    assert ssim(a, b).item() == pytest.approx(ssim(a, b, data_range=span.item()).item(), abs=1e-6)


def test_maps_of_another_scale_are_compared_as_those_of_the_unit_range():
    """Beside the constants of SSIM maps of size 1e-3 vanish: unrelated ones would look alike."""
    first, second = (torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for maps in (first, second):
        maps[..., 0, 0], maps[..., 0, 1] = 0, 1  # so that their span is [0, 1]
    assert bool((ssim(first * 1e-3, second * 1e-3, data_range=1.0) > 0.99).all())
    for span in ((0.0, math.inf), (-math.inf, math.inf)):
        measures = similarities_for(48, span)
        assert list(measures) == ["spearman", "spearman_absolute", "hog", "ssim"]
        for name in ("hog", "ssim"):
            for scale in (1e-6, 1.0, 1e3):
                found = measures[name](first * scale, second * scale)
                torch.testing.assert_close(found, SIMILARITIES[name](first, second), atol=1e-4, rtol=0)
    signed = similarities_for(48, (-math.inf, math.inf))
    assert signed["spearman_absolute"](first - 0.5, 0.5 - first).tolist() == pytest.approx([1, 1])
    broken = first.clone()
    broken[0, 0, 3, 3] = math.inf
    flat = torch.full_like(first, 7.0)
    for name in ("hog", "ssim"):
        assert [math.isnan(value) for value in signed[name](broken, second).tolist()] == [True, False]
        assert not bool(signed[name](flat, second).isinf().any())


def test_small_maps_have_small_cells():
    maps = torch.rand(1, 1, 20, 24)
    assert similarities_for(20)["hog"](maps, maps).item() == pytest.approx(1)
    assert list(similarities_for(224)) == list(SIMILARITIES)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises((ValueError, TypeError), match=r"alike in shape|Type-check"):  # shapes are types where checked
        spearman(torch.rand(1, 1, 8, 8), torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="smaller `cell`"):
        hog_correlation(torch.rand(1, 1, 40, 48), torch.rand(1, 1, 40, 48))


# Randomising


def test_layers_of_a_resnet50_are_the_papers():
    with torch.device("meta"):
        network = timm.create_model("resnet50")
    names = list(layers_to_randomise(network))
    blocks = [f"layer{stage}.{block}" for stage, n in ((4, 3), (3, 6), (2, 4), (1, 3)) for block in reversed(range(n))]
    assert names == ["fc", *blocks, "bn1", "conv1"] and len(names) == 19
    parameters = [p for modules in layers_to_randomise(network).values() for m in modules for p in m.parameters(False)]
    assert len(parameters) == len(list(network.parameters()))


@pytest.mark.parametrize("rule", [reset, redraw_as_released])
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_every_group_changes_comes_back_and_stays_finite(rule, name):
    torch.manual_seed(0)
    extra = {"img_size": 64} if name.startswith("vit") else {}
    network = timm.create_model(name, num_classes=5, **extra).eval()
    for parameter in network.parameters():  # as after training: nothing stays at its first constant
        parameter.data += 0.01 * torch.randn_like(parameter)
    before = weights(network)
    state = torch.get_rng_state()
    with randomised(network) as redraw:
        for group, modules in layers_to_randomise(network).items():
            was = weights(network)
            redraw(modules, rule, group, 0)
            changed = {key for key, value in weights(network).items() if not torch.equal(value, was[key])}
            assert changed, group
            own = "" if group == "(own)" else group
            assert all(key.startswith(own) for key in changed)
        with torch.no_grad():
            picture = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
            assert bool(torch.isfinite(network(picture)).all())
    assert same(network, before) and torch.equal(torch.get_rng_state(), state)


def test_reset_forgets_batch_statistics_and_the_released_rule_keeps_them():
    for rule, kept in ((reset, False), (redraw_as_released, True)):
        norm = nn.BatchNorm2d(6)
        norm.running_mean.fill_(3)
        rule(norm)
        assert torch.equal(norm.running_mean, torch.full((6,), 3.0)) is kept


def test_released_rule_has_its_moments():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(64, 128, (3, 5)), nn.BatchNorm1d(400)
    redraw_as_released(conv)
    redraw_as_released(norm)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 64 * 5)), rel=0.02)
    assert norm.weight.abs().max() <= 1 / 20 and norm.weight.mean().abs() < 0.01  # gains around 0, as published


def test_same_seed_and_name_give_the_same_weights(small_net):
    drawn = []
    for seed in (0, 0, 1):
        with randomised(small_net) as redraw:
            redraw([small_net.deep], reset, "deep", seed)
            drawn.append(small_net.deep.weight.detach().clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_weights_come_back_after_a_failure(small_net):
    before = weights(small_net)

    def broken(module):
        nn.init.zeros_(next(module.parameters()))
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), randomised(small_net) as redraw:
        redraw([small_net.head], broken, "head", 0)
    assert same(small_net, before)


def test_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameters"):
        layers_to_randomise(nn.ReLU())


# The checks


@pytest.mark.parametrize("cascading", [True, False])
def test_randomisation_separates_a_gradient_from_an_edge_detector(classifier, images, cascading):
    before = weights(classifier)
    found = randomisation(gradient, classifier, images, cascading=cascading, similarities=RANKS, ids=["a", "b", "c"])
    assert found.steps == ("head", "deep", "middle.1", "middle.0", "stem.1", "stem.0")
    assert len(found.rows) == 3 * 6 and {row.image for row in found.rows} == {"a", "b", "c"}
    assert curve(found.rows)[-1].mean < 0.9
    blind = randomisation(edges, classifier, images, cascading=cascading, similarities=RANKS)
    assert all(row.value == pytest.approx(1) for row in blind.rows)
    assert same(classifier, before)
    assert found.maps.shape == (7, 3, 1, 48, 48) and sum(found.degenerate.values()) == 0


def test_raw_maps_are_compared_on_their_own_scale(classifier, images):
    """The same explainer, one in [0, 1] and one a thousandth of it: SSIM must not tell another story."""

    def small(classifier, images, targets):
        return answer(gradient(classifier, images, targets).masks * 1e-3, range=(0.0, math.inf))

    def unit(classifier, images, targets):
        masks = gradient(classifier, images, targets).masks
        low = masks.amin((2, 3), keepdim=True)
        return answer((masks - low) / (masks.amax((2, 3), keepdim=True) - low))

    for name in ("ssim", "hog"):
        raw, scaled = (
            [row.value for row in randomisation(one, classifier, images).rows if row.similarity == name]
            for one in (small, unit)
        )
        assert raw == pytest.approx(scaled, abs=1e-4, nan_ok=True)


def test_modules_that_share_or_hide_their_weights_are_redrawn_and_come_back():
    torch.manual_seed(0)
    network = nn.ModuleDict(
        {
            "first": nn.Linear(4, 4),
            "tied": nn.Linear(4, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "slope": nn.PReLU(3),
            "attention": nn.MultiheadAttention(4, 2),
            "recurrent": nn.LSTM(4, 4),
            "silent": nn.ReLU(),
            "empty": nn.BatchNorm1d(4, affine=False),
        }
    )
    network["tied"].weight = network["first"].weight
    network["again"] = network["first"]
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    before = weights(network)
    groups = layers_to_randomise(network, depth=1)
    assert list(groups) == ["recurrent", "attention", "slope", "normed", "tied", "first"]
    for rule in (reset, redraw_as_released):
        with randomised(network) as redraw:
            redrawn = set()
            for name, modules in groups.items():
                redraw(modules, rule, name, 0)
                redrawn |= {key for key, value in weights(network).items() if not torch.equal(value, before[key])}
            assert redrawn == set(dict(network.named_parameters()))
        assert same(network, before)


def test_cascade_adds_up_and_independence_does_not(classifier, images):
    targets = torch.tensor([0, 1, 2])
    groups = layers_to_randomise(classifier.network)
    found = randomisation(gradient, classifier, images, targets, similarities=RANKS, seed=3)
    alone = randomisation(gradient, classifier, images, targets, similarities=RANKS, seed=3, cascading=False)
    with randomised(classifier.network) as redraw:
        for name in ("head", "deep"):
            redraw(groups[name], reset, name, 3)
        expected = gradient(classifier, images, targets).masks
    torch.testing.assert_close(found.maps[2], expected)
    with randomised(classifier.network) as redraw:
        redraw(groups["deep"], reset, "deep", 3)
        expected = gradient(classifier, images, targets).masks
    torch.testing.assert_close(alone.maps[2], expected)
    assert torch.equal(found.maps[1], alone.maps[1]) and not torch.equal(found.maps[2], alone.maps[2])


def test_class_stays_that_of_the_untouched_network(classifier, images):
    asked = []

    def spy(classifier, images, targets):
        asked.append(targets.clone())
        return gradient(classifier, images, targets)

    randomisation(spy, classifier, images, similarities=RANKS)
    with torch.no_grad(), classifier.frozen():
        predicted = classifier.logits(images).argmax(1)
    assert len(asked) == 7 and all(torch.equal(targets, predicted) for targets in asked)


def test_masker_can_be_randomised_instead(classifier, images):
    masker = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1), nn.Sigmoid())

    def learned(classifier, images, targets):
        return answer(masker(images))

    before, classifiers = weights(masker), weights(classifier)
    found = randomisation(learned, classifier, images, network=masker, similarities=RANKS)
    assert found.steps == ("2", "0") and curve(found.rows)[0].mean < 0.99
    assert same(masker, before) and same(classifier, classifiers)


def test_failing_explainer_leaves_the_weights(classifier, images):
    before, calls = weights(classifier), []

    def fails(classifier, images, targets):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("on purpose")
        return gradient(classifier, images, targets)

    with pytest.raises(RuntimeError, match="on purpose"):
        randomisation(fails, classifier, images, similarities=RANKS)
    assert same(classifier, before)


def test_degenerate_maps_are_counted(classifier, images):
    calls = []

    def vanishes(classifier, images, targets):
        calls.append(1)
        masks = images.mean(1, keepdim=True).clone()
        if len(calls) > 1:
            masks[0] = 0.5
        return answer(masks)

    found = randomisation(vanishes, classifier, images, similarities=RANKS)
    assert set(found.degenerate.values()) == {1}
    assert {point.undefined for point in curve(found.rows)} == {1}


def test_labels_compares_two_explainers(images):
    first, second = torch.rand(3, 1, 48, 48), torch.rand(3, 1, 48, 48)
    found = compare_maps(first, second, images, ids=["a", "b", "c"])
    assert found.kind == "labels" and len(found.rows) == 3 * len(SIMILARITIES)
    assert [r.value for r in found.rows if r.similarity == "spearman"] == spearman(first, second).tolist()
    with pytest.raises(ValueError, match="one id per map"):
        compare_maps(first, second, images, ids=["a"])


def test_figures(classifier, images, tmp_path):
    found = randomisation(gradient, classifier, images, keep=2)
    other = randomisation(gradient, classifier, images, keep=2, cascading=False, similarities=RANKS)
    figure = curve_figure([found, other])
    assert len(figure.axes) == 2
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines() if line.get_label()[0] != "_"}
    assert set(drawn) == set(SIMILARITIES)
    assert list(drawn["spearman"]) == [p.mean for p in curve(found.rows) if p.similarity == "spearman"]
    strip = strip_figure(found, every=2, images=5)
    assert len(strip.axes) == 2 * (1 + 1 + 3)
    figure.savefig(tmp_path / "curve.png")
    strip.savefig(tmp_path / "strip.png")
    assert (tmp_path / "curve.png").stat().st_size and (tmp_path / "strip.png").stat().st_size
    with pytest.raises(ValueError, match="at least one"):
        curve_figure([])
    with pytest.raises(ValueError, match="keep"):
        strip_figure(randomisation(edges, classifier, images, keep=0, similarities=RANKS))
