import pytest
import torch

from pixel_sums import Counting, Share, case_of, classifier_of, half_picture
from salmask.classifier import Classifier
from salmask.metrics.soundness import FUNCTION, SCRIPT, Bounds, certificates, completeness, soundness


@pytest.fixture
def network(small_net):
    small_net.head.weight.data *= 30  # decided, so that the areas are far from equal
    counting = Counting(small_net)
    found = Classifier(counting, mean=(0.5,) * 3, std=(0.25,) * 3, layers=("inner.deep",), image_size=32)
    counting.shown = 0
    return found


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.rand(3, 3, 28, 28, generator=generator), torch.rand(3, 4, 28, 28, generator=generator)


def test_bounds_on_paper():
    area, label = torch.tensor([0.05, 0.3, 0.6, 0.0]), torch.tensor([0.8, 0.6, 0.02, 0.0])
    assert SCRIPT.completeness(area, label).tolist() == pytest.approx([0.1 / 0.8, 0.5, 1, 1])
    assert SCRIPT.soundness(area, label).tolist() == pytest.approx([1, 1, 0.1 / 0.6, 1])
    assert FUNCTION.completeness(area, label).tolist() == pytest.approx([0.05 / 0.8, 0.5, 1, 1])
    assert FUNCTION.soundness(area, label).tolist() == pytest.approx([1, 1, 0.02 / 0.6, 1])
    assert Bounds(eps=0, beta=0, alpha=0.5).completeness(area, label)[0].item() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="alpha"):
        Bounds(eps=0.1, beta=0.1, alpha=0)


def test_area_on_paper():
    """4 x 7, left 14 pixels white, p = shown share of white: sum over k of min(k, 14)/28, over 28."""
    image = torch.zeros(1, 3, 4, 7)
    order = torch.zeros(28)
    order[:14] = 1
    image[:] = order.view(4, 7)
    classifier = classifier_of(Share())
    area = sum(min(k, 14) / 28 for k in range(1, 29)) / 28
    case = case_of(classifier, image, image[:, :1])
    assert completeness(case).item() == pytest.approx(area / 0.5, abs=1e-6)
    assert soundness(case).item() == 1  # p = .5 is more than the area
    maps = torch.stack([image[:, 0], image[:, 0]], 1)
    made = certificates(classifier, image, maps)
    assert made.area[0].tolist() == pytest.approx([area, 1 - area], abs=1e-6)
    assert made.probability[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    assert made.soundness[0].tolist() == pytest.approx([1, 0.5 / (1 - area)], abs=1e-6)
    backwards = certificates(classifier, image, maps, top_first=False)
    late = sum(max(0, k - 14) / 28 for k in range(1, 29)) / 28
    assert backwards.area[0, 0].item() == pytest.approx(late, abs=1e-6)


def test_constant_maps_have_a_closed_form(network, batch):
    """No map can tell pixels apart: the order is the raster's, soundness = min(max(beta, p) / A, 1)."""
    images = batch[0]
    maps = torch.full((3, 4, 28, 28), 0.4)
    made = certificates(network, images, maps)
    for image in range(3):
        areas = []
        for k in range(1, 29):
            shown = torch.full_like(images[image : image + 1], 0.5)
            shown.flatten(2)[..., : k * 28] = images[image : image + 1].flatten(2)[..., : k * 28]
            with torch.no_grad(), network.frozen():
                areas.append(network.logits(shown).softmax(1)[0])
        area = torch.stack(areas).mean(0).double()
        with torch.no_grad(), network.frozen():
            p = network.logits(images[image : image + 1]).softmax(1)[0].double()
        torch.testing.assert_close(made.area[image], area, atol=1e-6, rtol=0)
        closed = (p.clamp_min(0.1) / area).clamp_max(1)
        torch.testing.assert_close(made.soundness[image], closed, atol=1e-6, rtol=0)


def test_per_label_maps_equal_the_metric_of_one_map(network, batch):
    images, maps = batch
    made = certificates(network, images, maps, bounds=FUNCTION)
    for label in range(4):
        case = case_of(network, images, maps[:, label : label + 1], [label] * 3)
        torch.testing.assert_close(made.completeness[:, label], completeness(case, bounds=FUNCTION), atol=1e-6, rtol=0)
        torch.testing.assert_close(made.soundness[:, label], soundness(case, bounds=FUNCTION), atol=1e-6, rtol=0)


def test_subset_softmax_is_over_the_subset(network, batch):
    images, maps = batch
    made = certificates(network, images, maps[:, :2], [2, 0])
    with torch.no_grad(), network.frozen():
        expected = network.logits(images)[:, [2, 0]].double().softmax(1)
    torch.testing.assert_close(made.probability, expected)
    torch.testing.assert_close(made.probability.sum(1), torch.ones(3, dtype=torch.float64))
    assert certificates(network, images, maps[:, :1], [3]).probability.tolist() == [[1], [1], [1]]


def test_aggregates(network, batch):
    images, maps = batch
    made = certificates(network, images, maps)
    targets = torch.tensor([0, 1, 3])
    assert torch.equal(made.worst_soundness, made.soundness.min(1).values)
    assert torch.equal(made.worst_completeness, made.completeness.min(1).values)
    assert torch.equal(made.mean_soundness, made.soundness.mean(1))
    for image in range(3):
        ordered = made.probability[image].argsort(descending=True)
        assert made.second_soundness[image] == made.soundness[image, ordered[1]]
        assert made.predicted_completeness[image] == made.completeness[image, ordered[0]]
        others = [label for label in range(4) if label != targets[image]]
        assert made.wrong_completeness(targets)[image] == made.completeness[image, others].min()
        assert made.right(targets)[image] == float(made.area[image].argmax() == targets[image])


def test_passes(network, batch):
    images, maps = batch
    certificates(network, images, maps)
    assert network.network.shown == 3 + 3 * 4 * 27


def test_chunks_change_nothing(network, batch):
    whole, parts = certificates(network, *batch), certificates(network, *batch, images_per_pass=5)
    torch.testing.assert_close(whole.soundness, parts.soundness, atol=1e-6, rtol=0)


def test_what_does_not_fit_is_named(network, batch):
    images, maps = batch
    with pytest.raises(ValueError, match="one map per image and label"):
        certificates(network, images, maps[:, :3])
    for labels in ([0, 0], [4], [-1], []):
        with pytest.raises(ValueError, match="different class indices"):
            certificates(network, images, maps[:, : len(labels)], labels)
    with pytest.raises(ValueError, match="normalise"):
        certificates(network, images, maps * 2)
    with pytest.raises(ValueError, match="finite"):
        certificates(network, images, maps * float("nan"))
    with pytest.raises(ValueError, match="budget"):
        certificates(network, images, maps, budgets=0)
    made = certificates(network, images, maps[:, :2], [0, 1])
    with pytest.raises(ValueError, match="target 3"):
        made.right(torch.tensor([0, 3, 1]))
    with pytest.raises(ValueError, match="3 targets"):
        made.right(torch.tensor([0]))
    with pytest.raises(ValueError, match="two labels"):
        _ = certificates(network, images, maps[:, :1], [0]).second_soundness


def test_half_picture_certifies_itself():
    """The map of the evidence beats its complement, as completeness should say."""
    image, classifier = half_picture(), classifier_of(Share())
    truth = completeness(case_of(classifier, image, image[:, :1]))
    assert truth > completeness(case_of(classifier, image, 1 - image[:, :1]))
