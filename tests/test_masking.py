"""Keep and remove as laws; every infill against its contract, blur against scipy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.utils.flop_counter
from scipy import ndimage
from torch import Generator, Tensor

from salmask.masking import (
    Bank,
    Blur,
    BlurPyramid,
    MeanColour,
    Noise,
    RandomColour,
    Remasked,
    WindowBlur,
    keep,
    prepare,
    remove,
    reseeded,
)
from salmask.types import Infill

SIZE = (14, 18)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pictures(count: int = 3, size: tuple[int, int] = SIZE, *, seed: int = 1, dtype=torch.float32) -> Tensor:
    return torch.rand(count, 3, *size, generator=seeded(seed), dtype=dtype)


def masks(count: int = 3, size: tuple[int, int] = SIZE, *, seed: int = 2, dtype=torch.float32) -> Tensor:
    return torch.rand(count, 1, *size, generator=seeded(seed), dtype=dtype)


INFILLS: dict[str, Callable[[], Infill]] = {
    "mean": MeanColour,
    "black": lambda: MeanColour((0.0, 0.0, 0.0)),
    "blur": Blur,
    "blur in a colour": lambda: Blur(border=(0.4, 0.5, 0.6)),
    "noise": lambda: Noise(seeded()),
    "colour": lambda: RandomColour(seeded()),
    "bank": lambda: Bank(pictures(5, SIZE, seed=7), seeded()),
    "bank of another size": lambda: Bank(pictures(5, (9, 30), seed=7), seeded()),
}
DRAWING = [name for name in INFILLS if name in {"noise", "colour"} or name.startswith("bank")]


@pytest.fixture(params=INFILLS)
def build(request: pytest.FixtureRequest) -> Callable[[], Infill]:
    return INFILLS[request.param]


# Keep and remove


def test_a_full_mask_keeps_the_picture_to_the_bit_and_an_empty_one_shows_the_infill(build) -> None:
    x = pictures()
    full, empty = torch.ones(3, 1, *SIZE), torch.zeros(3, 1, *SIZE)
    assert torch.equal(keep(x, full, build()), x)
    assert torch.equal(remove(x, empty, build()), x)
    g = build()(x, full).expand_as(x)
    assert torch.equal(keep(x, empty, build()), g)
    assert torch.equal(remove(x, full, build()), g)


def test_keep_is_the_formula_and_the_two_sides_share_out_the_picture(build) -> None:
    x, m = pictures(), masks()
    g = build()(x, 1 - m)
    torch.testing.assert_close(keep(x, m, build()), m * x + (1 - m) * g)
    torch.testing.assert_close(remove(x, m, build()), (1 - m) * x + m * g)
    # keep(x, m) - g and remove(x, m) - g are m and 1 - m times what the picture has over its infill
    torch.testing.assert_close(keep(x, m, build()) + remove(x, m, build()), x + g)


def test_remove_is_keep_of_the_complement_to_the_bit(build) -> None:
    x, m = pictures(), masks()
    assert torch.equal(remove(x, m, build()), keep(x, 1 - m, build()))


def test_pictures_stay_between_zero_and_one(build) -> None:
    for value in (0.0, 1.0):
        x = torch.full((3, 3, *SIZE), value)
        for picture in (keep(x, masks(), build()), remove(x, masks(), build())):
            assert picture.min() >= -1e-6 and picture.max() <= 1 + 1e-6  # a blur sums many weights


def test_an_infill_is_not_told_the_side() -> None:
    seen = []

    def spy(images: Tensor, holes: Tensor) -> Tensor:
        seen.append(holes)
        return images.new_zeros(1, 3, 1, 1)

    x, m = pictures(), masks()
    keep(x, m, spy)
    remove(x, 1 - m, spy)  # the same picture, reached from the other side
    assert torch.equal(seen[0], 1 - m)
    torch.testing.assert_close(seen[0], seen[1])


def test_gradient_to_the_mask_is_picture_minus_infill_and_the_opposite_when_removed() -> None:
    x, m, g = pictures(dtype=torch.float64), masks(dtype=torch.float64).requires_grad_(), MeanColour((0.1, 0.2, 0.9))
    colour = torch.tensor([0.1, 0.2, 0.9], dtype=torch.float64).view(1, 3, 1, 1)
    expected = (x - colour).sum(1, keepdim=True)
    (kept,) = torch.autograd.grad(keep(x, m, g).sum(), m)
    (removed,) = torch.autograd.grad(remove(x, m, g).sum(), m)
    torch.testing.assert_close(kept, expected)
    torch.testing.assert_close(removed, -expected)


@pytest.mark.parametrize("side", [keep, remove])
@pytest.mark.parametrize("infill", [MeanColour(), Blur(), Blur(border=(0.5, 0.5, 0.5))])
def test_gradients_pass_gradcheck(side, infill) -> None:
    x = pictures(2, (12, 12), dtype=torch.float64).requires_grad_()
    m = masks(2, (12, 12), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, m: side(x, m, infill), (x, m), fast_mode=True)


@pytest.mark.parametrize("shape", [(3, 1, 7, 9), (2, 1, *SIZE), (3, *SIZE), (3, 2, *SIZE), (1, 1, *SIZE)])
@pytest.mark.parametrize("side", [keep, remove])
def test_masks_that_do_not_fit_are_named_with_both_shapes(side, shape) -> None:
    with pytest.raises(ValueError, match=r"expected \(3, 1, 14, 18\)") as caught:
        side(pictures(), torch.ones(shape), MeanColour())
    assert str(shape) in str(caught.value)


# Infills


def test_every_infill_gives_colours_that_fit_the_pictures(build) -> None:
    for size in (SIZE, (32, 8)):
        x = pictures(size=size)
        g = build()(x, masks(size=size))
        assert torch.broadcast_shapes(g.shape, x.shape) == x.shape
        assert g.dtype == x.dtype
        assert g.min() >= -1e-6 and g.max() <= 1 + 1e-6


def test_no_infill_changes_the_pictures_or_looks_at_the_holes(build) -> None:
    x = pictures()
    before = x.clone()
    one, other = build()(x, torch.zeros(3, 1, *SIZE)), build()(x, torch.ones(3, 1, *SIZE))
    assert torch.equal(x, before)
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", DRAWING)
def test_drawing_infills_follow_their_generator_alone(name) -> None:
    x = pictures()
    torch.manual_seed(1)
    infill = INFILLS[name]()
    first, second = infill(x, masks()), infill(x, masks())
    torch.manual_seed(2)
    again = INFILLS[name]()
    assert torch.equal(first, again(x, masks()))
    assert torch.equal(second, again(x, masks()))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", DRAWING)
def test_reseeding_starts_anew_inside_a_remasked_infill_too(name) -> None:
    """Remasked(g) draws from g's generator: a fresh one gives the same colours each time, and leaves g's alone."""
    x, holes = pictures(), masks()
    for infill in (INFILLS[name](), Remasked(INFILLS[name]())):
        before = infill.generator.get_state()
        first, second = (reseeded(infill, 5)(x, holes) for _ in range(2))
        assert torch.equal(first, second) and not torch.equal(first, reseeded(infill, 6)(x, holes))
        assert torch.equal(infill.generator.get_state(), before) and type(reseeded(infill, 5)) is type(infill)
    assert reseeded(Remasked(Blur()), 5) is None and reseeded(MeanColour(), 5) is None


PREPARED = {**INFILLS, "window": lambda: WindowBlur(5, 5, (0.2, 0.3, 0.4)), "pyramid": lambda: BlurPyramid(3.0, at=14)}


@pytest.mark.parametrize("name", sorted(PREPARED.keys() - set(DRAWING)))
def test_a_prepared_infill_is_the_infill_for_several_rounds_of_pictures(name) -> None:
    x, holes = pictures(), masks(6)
    twice = x.repeat(2, 1, 1, 1)
    expected, prepared = PREPARED[name]()(twice, holes), prepare(PREPARED[name](), x)
    torch.testing.assert_close(prepared(twice, holes), expected, rtol=1e-5, atol=1e-5)
    some = torch.tensor([2, 0])
    few = prepared.take(some)(x[some], holes[:2]).expand(2, 3, *SIZE)
    torch.testing.assert_close(few, PREPARED[name]()(x[some], holes[:2]).expand(2, 3, *SIZE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DRAWING)
def test_a_prepared_infill_that_draws_shares_its_draws_among_the_pictures(name) -> None:
    x = pictures(1).repeat(6, 1, 1, 1)
    colours = prepare(INFILLS[name](), x[:3], seed=3, draws=2)(x, masks(6)).expand_as(x)
    assert torch.equal(colours[0], colours[2]) and torch.equal(colours[3], colours[5])
    own = prepare(INFILLS[name](), x[:3], seed=3)(x, masks(6)).expand_as(x)
    assert not torch.equal(colours[0], colours[3]) or name.startswith("bank")
    assert len({tuple(one.flatten().tolist()) for one in own}) > 2


def test_mean_colour_is_the_colour() -> None:
    assert MeanColour((0.1, 0.2, 0.3))(pictures(), masks()).flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_noise_is_uniform_and_a_random_colour_is_one_an_image() -> None:
    x = pictures(4, (40, 40))
    noise = Noise(seeded())(x, masks(4, (40, 40)))
    assert noise.shape == x.shape
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(noise.var()) == pytest.approx(1 / 12, abs=0.003)
    colour = RandomColour(seeded())(x, masks(4, (40, 40)))
    assert colour.shape == (4, 3, 1, 1)
    assert len(colour.unique()) == 12


def blurred(x: Tensor, sigma: float, **border: object) -> Tensor:
    planes = [
        [ndimage.gaussian_filter(plane.numpy().astype(np.float64), sigma, truncate=4, **border) for plane in image]
        for image in x
    ]
    return torch.from_numpy(np.array(planes))


@pytest.mark.parametrize("size", [(56, 56), (28, 40)])
def test_blur_mirrors_at_the_border_as_scipy_does_with_sigma_scaled_by_the_short_side(size) -> None:
    x = pictures(2, size)
    ours = Blur(sigma=20, at=224)(x, masks(2, size))
    torch.testing.assert_close(ours.double(), blurred(x, 20 * min(size) / 224, mode="mirror"), rtol=0, atol=1e-5)


def test_blur_in_a_colour_is_the_zero_padding_of_the_published_code() -> None:
    x, colour = pictures(2, (28, 40)), (0.485, 0.456, 0.406)
    ours = Blur(sigma=20, at=224, border=colour)(x, masks(2, (28, 40)))
    c = torch.tensor(colour).view(1, 3, 1, 1)
    zero_padded = blurred(x - c, 2.5, mode="constant", cval=0.0) + c  # (x - c) / std, padded by zeros, up to std
    torch.testing.assert_close(ours.double(), zero_padded, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, Blur(sigma=20, at=224)(x, masks(2, (28, 40))), atol=1e-3)


def test_blur_keeps_a_constant_picture_and_works_on_the_smallest() -> None:
    flat = torch.full((1, 3, 30, 30), 0.3)
    torch.testing.assert_close(Blur()(flat, masks(1, (30, 30))), flat)
    assert Blur()(torch.full((1, 3, 2, 2), 0.3), masks(1, (2, 2))).allclose(torch.tensor(0.3))


def test_blur_is_no_costlier_than_two_products_of_matrices() -> None:
    x = pictures(1, (224, 224))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        Blur()(x, masks(1, (224, 224)))
    assert counter.get_total_flops() <= 2 * 2 * 3 * 224**3  # a 161 x 161 convolution takes a hundred times as many


def test_a_bank_gives_its_own_pictures_and_resizes_them() -> None:
    bank = pictures(4, SIZE, seed=5)
    x = pictures(40, SIZE)
    drawn = Bank(bank, seeded())(x, masks(40, SIZE))
    matches = (drawn[:, None] == bank[None]).flatten(2).all(2)
    assert matches.sum(1).eq(1).all()  # each is one picture of the bank
    assert matches.any(0).all()  # and each of the bank turns up
    small = Bank(torch.full((1, 3, 4, 4), 0.25), seeded())(x, masks(40, SIZE))
    assert small.shape == x.shape and small.allclose(torch.tensor(0.25))


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8)])
def test_what_is_no_bank_is_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"a bank holds images \(N, C, H, W\)"):
        Bank(torch.zeros(shape), seeded())


# Any number of channels


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_infills_and_sides_take_any_number_of_channels(channels) -> None:
    x, m = torch.rand(2, channels, *SIZE, generator=seeded(3)), masks(2)
    colour = tuple(k / channels for k in range(channels))
    infills = [
        MeanColour(colour),
        MeanColour((0.0,)),
        Blur(),
        Blur(border=colour),
        Noise(seeded()),
        RandomColour(seeded()),
        Bank(torch.rand(3, channels, 5, 5), seeded()),
        BlurPyramid(3.0, at=14),
        WindowBlur(5, 5, colour),
        Remasked(Noise(seeded()), colour),
    ]
    for infill in infills:
        assert keep(x, m, infill).shape == remove(x, m, infill).shape == x.shape
        torch.testing.assert_close(keep(x, torch.ones_like(m), infill), x)
    with pytest.raises(ValueError, match=rf"a colour of 3 values does not fit pictures of {channels} channels"):
        keep(x, m, MeanColour())
    with pytest.raises(ValueError, match="a bank of 3 channels does not fit"):
        keep(x, m, Bank(pictures(), seeded()))
