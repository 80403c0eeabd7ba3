"""Fixed areas, smooth masks and blur pyramids of extremal perturbations."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from salmask.classifier import Classifier
from salmask.explain.optimise.extremal import FixedArea, smooth_maximum
from salmask.explain.optimise.masks import Scene
from salmask.explain.optimise.methods import extremal
from salmask.masking import Blur, BlurPyramid, MeanColour, keep
from salmask.types import Features

BLACK = MeanColour((0.0, 0.0, 0.0))


class Upper(nn.Module):
    """Class 0 is the mean of the upper half, class 1 its opposite."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        score = 20 * self.tap(x)[..., : x.shape[-2] // 2, :].mean((1, 2, 3))
        return torch.stack([score, -score], 1)


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(Upper(), mean=(0.0,) * 3, std=(1.0,) * 3, layers=["tap"], image_size=32)


def test_smooth_maximum_equals_the_formula() -> None:
    grid = torch.rand(2, 1, 3, 4, generator=Generator().manual_seed(0), dtype=torch.float64)
    sigma, density, temperature = 1.5, 2, 0.05
    fast = smooth_maximum(grid, sigma=sigma, density=density, temperature=temperature)
    reach = 3
    for item in range(2):
        for u in range(6):
            for v in range(8):
                y, x = (u + 0.5) / density - 0.5, (v + 0.5) / density - 0.5
                bumps = []
                for row in range(u // 2 - reach, u // 2 + reach + 1):
                    for column in range(v // 2 - reach, v // 2 + reach + 1):
                        insides = [(i + 0.5) / density - 0.5 for i in range(density)]
                        nearest = min(
                            math.hypot(row - u // 2 - a, column - v // 2 - b) for a in insides for b in insides
                        )
                        if nearest > 2 * sigma:
                            continue
                        z = math.hypot(row - y, column - x) / sigma
                        height = grid[item, 0, min(max(row, 0), 2), min(max(column, 0), 3)].item()
                        bumps.append(math.exp(-2 * max(0.0, z - 0.5) ** 2) * height)
                weights = [math.exp(bump / temperature) for bump in bumps]
                expected = sum(w * b for w, b in zip(weights, bumps, strict=True)) / sum(weights)
                assert fast[item, 0, u, v].item() == pytest.approx(expected, rel=1e-9)


def test_slope_of_the_smooth_maximum() -> None:
    grid = torch.rand(2, 1, 3, 4, generator=Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda theta: smooth_maximum(theta, sigma=1.5, density=2, temperature=0.2), grid)


def test_one_point_draws_one_bump() -> None:
    grid = torch.zeros(1, 1, 9, 9)
    grid[..., 4, 4] = 1
    bump = smooth_maximum(grid, sigma=2.0, density=1, temperature=0.02)[0, 0]
    assert bump[4, 4] == pytest.approx(1, abs=1e-4)
    assert bump[4, 5] == pytest.approx(1, abs=1e-4)  # the plateau reaches half of sigma
    torch.testing.assert_close(bump, bump.T)
    torch.testing.assert_close(bump, bump.flip(0))
    assert bump[4, 8] < 0.05


def test_penalty_is_zero_at_the_template_and_grows_with_the_step() -> None:
    grid = FixedArea(areas=(0.25,), weight=2.0, growth=1.1)
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., 1, :] = 1
    areas = torch.tensor([0.25])
    assert grid.penalty(masks, (areas,), 0).item() == pytest.approx(0, abs=1e-12)
    masks[..., 2, :2] = 0.8  # two of sixteen too many
    assert grid.penalty(masks, (areas,), 0).item() == pytest.approx(2.0 * 2 * 0.64 / 16, rel=3e-2)
    assert grid.penalty(masks, (areas,), 3).item() == pytest.approx(2.0 * 2 * 0.64 / 16 * 1.1**3, rel=3e-2)


def test_penalty_pulls_ties_alike_and_the_rest_to_the_step() -> None:
    grid, areas = FixedArea(areas=(0.25,)), (torch.tensor([0.25]),)
    flat = torch.full((1, 1, 4, 4), 0.7, requires_grad=True)
    grid.penalty(flat, areas, 0).sum().backward()
    torch.testing.assert_close(flat.grad, flat.grad[..., :1, :1].expand_as(flat))
    ranked = torch.linspace(0.2, 0.8, 16).view(1, 1, 4, 4).requires_grad_()
    grid.penalty(ranked, areas, 0).sum().backward()
    assert (ranked.grad.flatten()[:12] > 0).all() and (ranked.grad.flatten()[12:] < 0).all()


def test_a_constant_grid_gives_a_constant_mask() -> None:
    masks = smooth_maximum(torch.full((1, 1, 5, 7), 0.6), sigma=2.0, density=1, temperature=0.05)
    torch.testing.assert_close(masks, masks[..., :1, :1].expand_as(masks))


def test_items_come_image_by_image() -> None:
    scene = Scene(torch.rand(2, 3, 64, 32), torch.tensor([0, 1]), Features(torch.zeros(2, 2), []))
    begun = FixedArea(areas=(0.1, 0.2, 0.3)).begin(scene)
    assert begun.parameters.shape == (6, 1, 64, 32)
    torch.testing.assert_close(begun.fixed[0], torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))


@pytest.mark.parametrize(("variant", "share"), [("preserve", 0.1), ("delete", 0.2), ("dual", 0.15)])
def test_the_area_is_met_inside_the_half(variant: str, share: float, classifier: Classifier) -> None:
    explainer = extremal(areas=(share,), variant=variant, infill=BLACK, step=14.0, sigma=21.0, iterations=150, lr=0.05)
    picture = torch.full((1, 3, 32, 32), 0.8)
    masks = explainer(classifier, picture, torch.tensor([0])).masks
    assert masks.mean().item() == pytest.approx(share, abs=0.04)
    assert (masks > 0.5).float().mean().item() == pytest.approx(share, abs=0.05)
    assert masks[..., :16, :].sum() > 0.9 * masks.sum()


def test_fewer_steps_walk_the_same_way_in_longer_strides(classifier: Classifier) -> None:
    picture, targets = torch.full((1, 3, 32, 32), 0.8), torch.tensor([0])
    masks = [
        extremal(areas=0.2, infill=BLACK, step=14.0, iterations=steps)(classifier, picture, targets).masks
        for steps in (100, 400)
    ]
    for mask in masks:
        assert mask.mean().item() == pytest.approx(0.2, abs=0.04)
        assert mask[..., 20:, :].mean().item() < 0.02
        assert 0 <= mask.amin().item() <= mask.amax().item() <= 1


def test_maps_of_several_areas_are_averaged(classifier: Classifier) -> None:
    picture = torch.rand(2, 3, 32, 32, generator=Generator().manual_seed(0))
    targets = torch.tensor([0, 1])
    settings = {"infill": BLACK, "step": 28.0, "sigma": 28.0, "iterations": 6, "lr": 0.5}
    both = extremal(areas=(0.1, 0.4), **settings).solve(classifier, picture, targets)
    single = [extremal(areas=(share,), **settings).solve(classifier, picture, targets) for share in (0.1, 0.4)]
    torch.testing.assert_close(both.masks, (single[0].masks + single[1].masks) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(both.history[:, ::2], single[0].history, rtol=1e-4, atol=1e-4)
    assert both.passes.backward == 12
    assert both.passes.forward == 13


def test_two_levels_equal_the_blur() -> None:
    images = torch.rand(2, 3, 32, 32, generator=Generator().manual_seed(0))
    masks = torch.rand(2, 1, 32, 32, generator=Generator().manual_seed(1))
    torch.testing.assert_close(
        keep(images, masks, BlurPyramid(20.0, levels=2)), keep(images, masks, Blur(20.0)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("depth", [0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 1.0])
def test_the_kept_picture_is_the_level_of_the_hole(depth: float) -> None:
    images = torch.rand(1, 3, 32, 32, generator=Generator().manual_seed(0))
    pyramid = BlurPyramid(20.0, levels=5)
    levels = [images, *(Blur(20.0 * level / 4)(images, images[:, :1]) for level in range(1, 5))]
    below = min(3, math.floor(depth * 4))
    expected = torch.lerp(levels[below], levels[below + 1], depth * 4 - below)
    kept = keep(images, torch.full((1, 1, 32, 32), 1 - depth), pyramid)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


def test_slope_of_the_pyramid_with_respect_to_the_mask() -> None:
    images = torch.rand(1, 3, 16, 16, generator=Generator().manual_seed(0), dtype=torch.float64)
    masks = torch.rand(1, 1, 16, 16, generator=Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.rand(1, 3, 16, 16, generator=Generator().manual_seed(2), dtype=torch.float64)
    masks = (masks * 3).floor() / 3 + 0.1  # away from the kinks
    masks = masks.requires_grad_()
    infill = BlurPyramid(20.0, levels=4).prepare(images)
    (weights * keep(images, masks, infill)).sum().backward()
    step = 1e-5
    with torch.no_grad():
        ends = [(weights * keep(images, masks + sign * step, infill)).sum((0, 1)) for sign in (1, -1)]
    torch.testing.assert_close(masks.grad[0, 0], (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("areas", [(), (0.0,), (0.1, 1.0)])
def test_areas_must_be_shares(areas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares of the picture"):
        extremal(areas=areas)


def test_a_pyramid_needs_two_levels() -> None:
    with pytest.raises(ValueError, match="at least 2 levels"):
        BlurPyramid(levels=1)
