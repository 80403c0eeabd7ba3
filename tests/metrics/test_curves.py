import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pixel_sums import Counting, Share, Sum, case_of, classifier_of, half_picture
from salmask.classifier import Classifier
from salmask.classifier.scores import logit, probability, top1
from salmask.masking import MeanColour, WindowBlur
from salmask.metrics.curves import (
    Aopc,
    Curve,
    Perturbation,
    Showing,
    cell_ranks,
    mean_of_points,
    random_ties,
    ranks,
    raster,
    trapezoid,
)
from salmask.metrics.faithfulness import FAITHFULNESS
from salmask.metrics.fills import BLACK, MEAN, Fill, window_blur
from salmask.metrics.reading import read
from salmask.metrics.soundness import SOUNDNESS


@pytest.fixture
def network(small_net):
    small_net.head.weight.data *= 30  # decided, so that the curves are far from flat
    counting = Counting(small_net)
    classifier = Classifier(counting, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), layers=("inner.deep",), image_size=32)
    counting.shown = counting.passes = 0
    return classifier


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 24, 20, generator=generator)
    maps = torch.rand(3, 1, 24, 20, generator=generator)
    return images, (maps * 10).round() / 10  # with many ties


# Areas on paper


def test_area_of_a_linear_classifier_and_the_map_of_its_evidence():
    """p = the share of white that is shown: up to .5 over the first half, then flat; and the reverse."""
    image, classifier = half_picture(), classifier_of(Share())
    truth, wrong = image[:, :1], 1 - image[:, :1]
    for steps in (2, 4, 16):
        insertion, deletion = Curve(insert=True, steps=steps), Curve(insert=False, steps=steps)
        assert insertion(case_of(classifier, image, truth)).item() == pytest.approx(0.375, abs=1e-6)
        assert deletion(case_of(classifier, image, truth)).item() == pytest.approx(0.125, abs=1e-6)
        assert insertion(case_of(classifier, image, wrong)).item() == pytest.approx(0.125, abs=1e-6)
        assert deletion(case_of(classifier, image, wrong)).item() == pytest.approx(0.375, abs=1e-6)


def test_area_of_a_softmax_over_a_pixel_sum():
    """All pixels 1: after k pixels p = 1 / (1 + exp(-k)), whatever the map."""
    image, classifier = torch.ones(1, 3, 2, 2), classifier_of(Sum(), size=2)
    case = case_of(classifier, image, torch.rand(1, 1, 2, 2))
    p = [1 / (1 + math.exp(-k)) for k in range(5)]
    area = (p[0] / 2 + p[1] + p[2] + p[3] + p[4] / 2) / 4
    assert Curve(insert=True, steps=4)(case).item() == pytest.approx(area, abs=1e-6)
    assert Curve(insert=False, steps=4)(case).item() == pytest.approx(area, abs=1e-6)
    assert Curve(insert=True, steps=4, area=mean_of_points)(case).item() == pytest.approx(sum(p) / 5, abs=1e-6)
    assert Curve(insert=True, steps=4, score=logit, area=mean_of_points)(case).item() == pytest.approx(
        1, abs=1e-6
    )  # the constant logit of class 1 is shared out: class 0 has k / 2


def test_perturbation_on_paper():
    """10 x 10, left half white: p falls by .1 per tenth of the picture; class 0 leads while p > .5."""
    image, classifier = half_picture(10), classifier_of(Share(), size=10)
    case = case_of(classifier, image, image[:, :1])
    positive = Perturbation(positive=True, score=probability)
    negative = Perturbation(positive=False, score=probability)
    assert positive.points(case)[0].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0, 0], abs=1e-6)
    assert negative.points(case)[0].tolist() == pytest.approx([0.5] * 5 + [0.4, 0.3, 0.2, 0.1], abs=1e-6)
    whole = case_of(classifier, torch.full((1, 3, 10, 10), 0.98), image[:, :1])
    assert Perturbation(positive=True)(whole).item() == pytest.approx(4 / 9)  # .98 * .6 leads, .98 * .5 does not


def test_aopc_on_paper():
    """Cells of 1 x 1: p falls by 1/16 a cell, so the mean fall over k = 0 ... 4 is 2/16."""
    image, classifier = half_picture(), classifier_of(Share())
    case = case_of(classifier, image, image[:, :1])
    assert Aopc(cells=4, regions=4)(case).item() == pytest.approx(2 / 16, abs=1e-6)
    with pytest.raises(ValueError, match="regions"):
        Aopc(cells=4, regions=17)(case)


def test_unequal_last_step_is_weighed_by_its_share():
    image, classifier = half_picture(), classifier_of(Share())
    case = case_of(classifier, image, image[:, :1])
    curve, shares = Curve(insert=True, step_pixels=6).points(case)
    assert shares.tolist() == [0, 6 / 16, 12 / 16, 1]
    assert curve[0].tolist() == pytest.approx([0, 6 / 16, 0.5, 0.5], abs=1e-6)
    expected = (6 / 16 / 2) * 6 / 16 + (6 / 16 + 0.5) / 2 * 6 / 16 + 0.5 * 4 / 16
    assert trapezoid(curve, shares).item() == pytest.approx(expected, abs=1e-6)


# Against a slow, obvious implementation


def by_hand(classifier, image, saliency, target, *, insert, fill, budgets):
    """Change the picture pixel by pixel, as RISE describes it; equal pixels in raster order."""
    values = saliency.flatten().tolist()
    order = sorted(range(len(values)), key=lambda pixel: (-values[pixel], pixel))
    filled = fill.infill(classifier)(image, torch.ones_like(image[:, :1])).expand_as(image)
    start, finish = (filled, image) if insert else (image, filled)
    curve = []
    for budget in budgets:
        picture = start.clone().flatten(2)
        picture[..., order[:budget]] = finish.flatten(2)[..., order[:budget]]
        with torch.no_grad(), classifier.frozen():
            curve.append(classifier.logits(picture.view_as(image)).softmax(1)[0, target].item())
    return curve


@pytest.mark.parametrize("insert", [True, False])
@pytest.mark.parametrize("fill", [MEAN, BLACK, window_blur(5, 5)], ids=lambda fill: fill.name[:5])
def test_curve_equals_the_slow_one(network, batch, insert, fill):
    images, maps = batch
    metric = Curve(insert=insert, steps=7, fill=fill)
    case = case_of(network, images, maps, [0, 1, 2])
    curve, shares = metric.points(case)
    budgets = metric.budgets(24 * 20)
    assert shares.tolist() == [budget / 480 for budget in budgets]
    for index in range(3):
        one = slice(index, index + 1)
        expected = by_hand(network, images[one], maps[one], index, insert=insert, fill=fill, budgets=budgets)
        assert curve[index].tolist() == pytest.approx(expected, abs=1e-5)
        assert metric(case)[index].item() == pytest.approx(np.trapezoid(expected, shares.numpy()), abs=1e-5)


def test_window_blur_is_the_published_kernel():
    """RISE: a reflecting 2-D Gaussian of a single 1 in the window, convolved with zeros around, normalised space."""
    single = np.zeros((11, 11))
    single[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(single, 5)).float()
    image, mean = torch.rand(1, 3, 20, 23), torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    normalised = (image - mean).transpose(0, 1)
    expected = torch.nn.functional.conv2d(normalised, kernel[None, None], padding=5).transpose(0, 1) + mean
    made = WindowBlur(11, 5, (0.5, 0.4, 0.3))(image, torch.ones(1, 1, 20, 23))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="odd"):
        WindowBlur(4, 5, (0, 0, 0))


def test_published_steps_at_the_published_size():
    pixels = 224 * 224
    for name, size in (("insertion:rise", 224), ("insertion:opti_cam", 224), ("deletion:ca_stream", 1792)):
        curve = FAITHFULNESS[name].function
        assert curve.budgets(pixels) == list(range(0, pixels + 1, size))
    assert FAITHFULNESS["insertion:rise"].function.budgets(112 * 112) == list(range(0, 112 * 112 + 1, 56))
    assert FAITHFULNESS["insertion:opti_cam"].protocol["area"] == "mean_of_points"
    assert "black" in FAITHFULNESS["deletion:opti_cam"].protocol["fill"]
    assert "window 5" in FAITHFULNESS["insertion:ca_stream"].protocol["fill"]
    assert "mean colour" in FAITHFULNESS["deletion:rise"].protocol["fill"]


# Order


def test_ranks_break_ties_in_raster_order():
    maps = torch.tensor([[0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]).view(1, 1, 2, 3)
    assert ranks(maps).flatten().tolist() == [2, 0, 3, 5, 4, 1]
    assert ranks(torch.full((1, 1, 2, 3), 0.3)).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_random_ties_order_only_equal_pixels_and_belong_to_the_image():
    maps = torch.tensor([0.0] * 30 + [1.0] * 30).view(1, 1, 6, 10).repeat(2, 1, 1, 1)
    images = torch.rand(2, 3, 6, 10)
    classifier = classifier_of(Share())
    case = case_of(classifier, images, maps, ids=["a", "b"])
    places = ranks(maps, random_ties(case)).flatten(1)
    assert sorted(places[0].tolist()) == list(range(60))
    assert places[0, 30:].max() < places[0, :30].min()
    assert places[0].tolist() != ranks(maps)[0].flatten().tolist() != places[1].tolist()
    swapped = case_of(classifier, images, maps, ids=["b", "a"])
    assert torch.equal(ranks(maps, random_ties(swapped)).flatten(1), places.flip(0))
    again = case_of(classifier, images, maps, ids=["a", "b"], seed=1)
    assert not torch.equal(ranks(maps, random_ties(again)).flatten(1), places)
    assert torch.equal(ranks(maps, raster(case)), ranks(maps))


def test_cells_share_a_rank():
    maps = torch.zeros(1, 1, 4, 6)
    maps[..., :2, :3], maps[..., 2:, 3:] = 0.9, 0.4
    places = cell_ranks(maps, 2)
    assert places[0, 0, 0, 0] == 0 and places[0, 0, 3, 5] == 1
    assert places.unique().tolist() == [0, 1, 2, 3]


def test_monotone_rescaling_and_flips_change_nothing(network, batch):
    images, _ = batch
    maps = torch.rand(3, 1, 24, 20, generator=torch.Generator().manual_seed(2))
    metric = Curve(insert=True)
    plain = metric(case_of(network, images, maps))
    torch.testing.assert_close(metric(case_of(network, images, maps**3)), plain)
    share = classifier_of(Share())
    flipped = metric(case_of(share, images.flip(3), maps.flip(3)))
    torch.testing.assert_close(flipped, metric(case_of(share, images, maps)), atol=1e-6, rtol=0)


# Passes


@pytest.mark.parametrize("images_per_pass", [1, 2, 5, 1000])
def test_chunked_equals_unchunked(network, batch, images_per_pass):
    for metric in (Curve(insert=True, fill=window_blur(5, 5)), Perturbation(positive=False, score=probability)):
        chunked = type(metric)(**{**vars(metric), "images_per_pass": images_per_pass})
        expected = metric(case_of(network, *batch))
        torch.testing.assert_close(chunked(case_of(network, *batch)), expected, atol=1e-6, rtol=0)


def test_no_picture_is_shown_twice(network, batch):
    """27 inner points for each of insertion and deletion, the whole images once, one bare fill for all."""
    case = case_of(network, *batch)
    FAITHFULNESS["insertion"](case)
    FAITHFULNESS["deletion"](case)
    expected = 3 * 27 * 2 + 3 + 1
    assert network.network.shown == expected
    for name in ("deletion:ca_stream", "average_drop"):
        FAITHFULNESS[name](case)
    SOUNDNESS["completeness"](case)
    SOUNDNESS["soundness"](case)
    assert network.network.shown == expected + 3  # the softly kept pictures alone are new
    FAITHFULNESS["average_gain"](case)
    FAITHFULNESS["fidelity_in"](case)
    assert network.network.shown == expected + 3


def test_more_steps_than_pixels_show_every_picture_once(network):
    case = case_of(network, torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))
    area = Curve(insert=True, steps=224)(case)
    assert network.network.shown == 63 + 2
    assert area.item() == pytest.approx(Curve(insert=True, step_pixels=1)(case).item(), abs=0.02)


def test_passes_are_filled(network, batch):
    case = case_of(network, *batch)
    Curve(insert=True, steps=28, images_per_pass=27)(case)
    assert network.network.passes == 1 + 1 + 3


def test_out_of_memory_halves_the_batch(small_net):
    classifier = Classifier(small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=("deep",), image_size=32)
    images = torch.rand(9, 3, 32, 32)
    expected = read(classifier, lambda at: images[at], torch.zeros(9, dtype=torch.long))

    class Small(Classifier):
        limit = 2

        def logits(self, pictures):
            if len(pictures) > self.limit:
                raise torch.OutOfMemoryError("too much")
            return super().logits(pictures)

    limited = Small(small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=("deep",), image_size=32)
    with pytest.warns(UserWarning, match="out of memory"):
        said = read(limited, lambda at: images[at], torch.zeros(9, dtype=torch.long), images_per_pass=9)
    torch.testing.assert_close(said[logit], expected[logit], atol=1e-5, rtol=1e-5)
    Small.limit = 0
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        read(limited, lambda at: images[at], torch.zeros(9, dtype=torch.long))


def test_fill_that_makes_one_picture_an_image_keeps_them_apart(network, batch):
    images, maps = batch
    own = Fill("own mean", lambda classifier: lambda x, holes: x.mean((2, 3), keepdim=True))
    together = Curve(insert=True, fill=own)(case_of(network, images, maps))
    for index in range(3):
        one = slice(index, index + 1)
        alone = Curve(insert=True, fill=own)(case_of(network, images[one], maps[one]))
        assert together[index].item() == pytest.approx(alone.item(), abs=1e-6)


def test_the_fill_is_the_classifiers_mean(network):
    assert MEAN.infill(network).colour == pytest.approx((0.5, 0.4, 0.3))
    assert BLACK.infill(network) == MeanColour((0.0,))


def test_bad_settings_are_named(network, batch):
    with pytest.raises(ValueError, match="step"):
        Curve(insert=True, steps=0)
    with pytest.raises(ValueError, match="images_per_pass"):
        Curve(insert=True, images_per_pass=0)(case_of(network, *batch))
    with pytest.raises(ValueError, match="images"):
        Showing(True, MEAN)(case_of(network, *batch).__class__(batch[1], torch.zeros(3).long(), "abc"), [0])


def test_nothing_to_show_gives_nothing(network):
    said = read(network, lambda at: torch.zeros(len(at), 3, 8, 8), torch.zeros(0, dtype=torch.long))
    assert said[top1].shape == said[probability].shape == (0,)
    assert network.network.passes == 0
