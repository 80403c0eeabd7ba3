"""Holes, the inpainter that learns to fill them, and infills by side and by name."""

import itertools
import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from salmask.classifier import Classifier
from salmask.cli.main import main
from salmask.data.synthetic import write_folder
from salmask.masking import Blur, MeanColour, Noise, Remasked, keep, remove
from salmask.outcome import play
from salmask.specs import load_infill
from salmask.training.inpainter import (
    Inpainter,
    fit_inpainter,
    inpainting_loss,
    load_inpainter,
    push_pull,
    random_holes,
    save_inpainter,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Mean(torch.nn.Module):
    """Two logits: mean red, mean green."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))[:, :2]


@pytest.fixture
def small() -> Inpainter:
    torch.manual_seed(0)
    return Inpainter(width=4, depth=2)


def two_colours(seed: int = 0):
    """Endless pictures of one colour each: what is hidden follows from what is seen."""
    g = generator(seed)
    while True:
        yield torch.rand(8, 3, 1, 1, generator=g).expand(-1, -1, 16, 16).contiguous()


def stripes(seed: int = 0):
    """Endless pictures whose columns are one colour and black in turn: smooth filling gets them wrong."""
    for images in two_colours(seed):
        yield images * (torch.arange(16) % 2)


# Holes


def test_holes_cover_from_a_little_to_most_of_the_picture() -> None:
    holes = random_holes(200, (16, 24), generator())
    assert holes.shape == (200, 1, 16, 24)
    assert holes.min() >= 0 and holes.max() <= 1
    area = holes.mean((1, 2, 3))
    assert area.min() < 0.2 and area.max() > 0.55


def test_holes_follow_their_generator() -> None:
    first, again, other = (random_holes(4, (8, 8), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# The smooth filling


def test_push_pull_keeps_what_is_known_and_fills_from_nearby() -> None:
    """Left half red, right half blue: a hole in each takes its side's colour; without a known pixel, the given one."""
    colour = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    images = torch.zeros(1, 3, 32, 32)
    images[:, 0, :, :16], images[:, 2, :, 16:] = 1, 1
    holes = torch.zeros(1, 1, 32, 32)
    holes[..., 12:16, 2:6] = holes[..., 12:16, 26:30] = 1
    filled = push_pull(images, holes, colour)
    assert torch.allclose(filled * (1 - holes), images * (1 - holes))
    assert (filled[:, :, 12:16, 2:6] - images[:, :, 12:16, 2:6]).abs().max() < 0.05
    assert (filled[:, :, 12:16, 26:30] - images[:, :, 12:16, 26:30]).abs().max() < 0.05
    assert torch.allclose(push_pull(images, torch.ones(1, 1, 32, 32), colour), colour.expand(1, 3, 32, 32))


def test_an_untrained_inpainter_fills_smoothly(small) -> None:
    images, holes = torch.full((1, 3, 16, 16), 0.3), torch.zeros(1, 1, 16, 16)
    holes[..., 4:12, 4:12] = 1
    assert torch.allclose(small.frozen()(images, holes), images, atol=1e-4)


# The inpainter


def test_what_is_hidden_is_not_looked_at(small) -> None:
    """Two pictures that differ in the hole alone are filled alike."""
    images = torch.rand(1, 3, 16, 16, generator=generator())
    holes = torch.zeros(1, 1, 16, 16)
    holes[..., 4:12, 4:12] = 1
    other = torch.where(holes.bool(), torch.rand(1, 3, 16, 16, generator=generator(5)), images)
    inpainter = small.frozen()
    assert torch.allclose(inpainter(images, holes), inpainter(other, holes), atol=1e-6)
    assert not torch.allclose(inpainter(images, holes), inpainter(images, 0 * holes))


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (40, 9)])
def test_any_size_is_filled_with_colours(small, size) -> None:
    filled = small.frozen()(torch.rand(2, 3, *size), torch.rand(2, 1, *size))
    assert filled.shape == (2, 3, *size)
    assert filled.min() >= 0 and filled.max() <= 1


def test_no_gradient_passes_through_its_use(small) -> None:
    images = torch.rand(1, 3, 16, 16)
    masks = torch.full((1, 1, 16, 16), 0.5, requires_grad=True)
    inpainter = small.frozen()
    keep(images, masks, inpainter).sum().backward()
    filled = inpainter(images, torch.full((1, 1, 16, 16), 0.5))
    assert torch.allclose(masks.grad, (images - filled).sum(1, keepdim=True), atol=1e-5)  # dX/dm = x - g
    assert all(p.grad is None for p in inpainter.parameters())


def square(size: int = 8) -> torch.Tensor:
    holes = torch.zeros(1, 1, size, size)
    holes[..., 2:6, 2:6] = 1
    return holes


def test_a_filling_that_goes_on_where_the_picture_stops_costs_nothing() -> None:
    constant = torch.full((1, 3, 8, 8), 0.7)
    assert float(inpainting_loss(constant, constant, square())) == pytest.approx(0.0, abs=1e-7)


def test_errors_count_six_times_in_the_holes_and_rough_fillings_cost() -> None:
    image, holes = torch.full((1, 3, 8, 8), 0.5), square()
    outside = image + 0.3 * (1 - holes)  # what is filled there is not shown, so that it cannot be rough
    assert float(inpainting_loss(outside, image, holes)) == pytest.approx(0.3 * 48 / 64)
    inside = image + 0.3 * holes
    # 16 of 64 pixels are wrong by .3; on each side 4 pairs of pixels, two sides along each axis of 8 x 7 pairs
    assert float(inpainting_loss(inside, image, holes)) == pytest.approx(6 * 0.3 * 16 / 64 + 0.1 * 2 * 0.3 * 8 / 56)


def test_it_learns_what_the_surroundings_tell(small) -> None:
    images = next(stripes(seed=9))
    holes = random_holes(8, (16, 16), generator(3)).round()

    def error() -> float:
        return float(((small(images, holes) - images).abs() * holes).sum() / (3 * holes.sum()))

    before = error()
    fit_inpainter(small, stripes(), steps=150, lr=5e-3)
    mean_colour = float(((MeanColour()(images, holes) - images).abs() * holes).sum() / (3 * holes.sum()))
    assert error() < 0.6 * before
    assert error() < 0.6 * mean_colour
    assert not small.training and not any(p.requires_grad for p in small.parameters())


def test_training_follows_its_seed() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(fit_inpainter(Inpainter(width=4, depth=1), two_colours(), steps=3, seed=7))
    for one, other in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_stops_the_training(small) -> None:
    broken = itertools.repeat(torch.full((2, 3, 16, 16), float("nan")))
    with pytest.raises(ValueError, match="the inpainter's loss is nan at step 0"):
        fit_inpainter(small, broken, steps=3)


def test_saved_and_loaded_it_fills_alike(small, tmp_path) -> None:
    save_inpainter(tmp_path / "one.safetensors", small)
    again = load_inpainter(tmp_path / "one.safetensors")
    images, holes = torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16)
    assert torch.equal(small.frozen()(images, holes), again(images, holes))
    assert again.settings() == small.settings()


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no inpainter at"):
        load_inpainter(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no inpainter"):
        load_inpainter(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no inpainter"):
        load_inpainter(tmp_path / "broken.safetensors")


# Infills by side, twice masked, by name


def test_remasked_equals_masking_twice() -> None:
    """m * (m x + (1 - m) c) + (1 - m) g, also in its gradient."""
    images = torch.rand(2, 3, 8, 8, generator=generator())
    masks = torch.rand(2, 1, 8, 8, generator=generator(1)).requires_grad_()
    colour, blur = (0.2, 0.5, 0.7), Blur(sigma=10.0, at=8)
    c = torch.tensor(colour).view(1, 3, 1, 1)
    direct = masks * (masks * images + (1 - masks) * c) + (1 - masks) * blur(images, 1 - masks)
    ours = keep(images, masks, Remasked(blur, colour))
    assert torch.allclose(ours, direct, atol=1e-6)
    weights = torch.rand(direct.shape, generator=generator(2))
    first, second = (torch.autograd.grad((one * weights).sum(), masks)[0] for one in (ours, direct))
    assert torch.allclose(first, second, atol=1e-5)


def test_binary_masks_do_not_mind_being_masked_twice() -> None:
    images = torch.rand(1, 3, 8, 8)
    masks = (torch.rand(1, 1, 8, 8) > 0.5).float()
    plain = MeanColour((0.1, 0.2, 0.3))
    assert torch.allclose(remove(images, masks, Remasked(plain)), remove(images, masks, plain), atol=1e-6)


def test_each_side_may_have_an_infill_of_its_own() -> None:
    classifier = Classifier(Mean(), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), layers=[], outputs="logits")
    images, masks = torch.zeros(1, 3, 4, 4), torch.full((1, 1, 4, 4), 0.25)
    fills = {"kept": MeanColour((1.0, 0.0, 0.0)), "removed": MeanColour((0.0, 1.0, 0.0))}
    outcome = play(classifier, images, masks, torch.tensor([0]), infill=fills)
    assert outcome.kept.tolist() == [[pytest.approx(0.75), 0.0]]
    assert outcome.removed.tolist() == [[0.0, pytest.approx(0.25)]]


@pytest.mark.parametrize("name", ["mean", "blur", "noise", "colour", "bank"])
@pytest.mark.parametrize("remask", [False, True])
def test_infills_by_name_fill_pictures(name, remask) -> None:
    classifier = Classifier(Mean(), mean=(0.3, 0.4, 0.5), std=(1.0, 1.0, 1.0), layers=[])
    bank = torch.rand(3, 3, 8, 8)
    infill = load_infill(name, classifier=classifier, generator=generator(), bank=bank, remask=remask)
    images = torch.rand(2, 3, 8, 8)
    kept = keep(images, torch.zeros(2, 1, 8, 8), infill)
    assert kept.shape == images.shape and kept.min() >= 0 and kept.max() <= 1
    if name == "mean":
        assert torch.allclose(kept, torch.tensor([0.3, 0.4, 0.5]).view(1, 3, 1, 1).expand_as(kept), atol=1e-6)


def test_infills_that_do_not_exist_are_refused() -> None:
    classifier = Classifier(Mean(), mean=(0.3, 0.4, 0.5), std=(1.0, 1.0, 1.0), layers=[])
    with pytest.raises(ValueError, match="no infill 'snow': expected mean, blur, noise, colour, bank"):
        load_infill("snow", classifier=classifier, generator=generator())
    with pytest.raises(ValueError, match="needs images to fill with"):
        load_infill("bank", classifier=classifier, generator=generator())


def test_remasked_hands_on_the_generator_of_what_it_wraps() -> None:
    g = generator()
    assert Remasked(Noise(g)).generator is g
    assert Remasked(MeanColour()).generator is None


# The commands


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("inpainter") / "data"
    write_folder(root, train=20, val=10, seed=3, size=64)
    return root


def test_an_inpainter_is_trained_shown_and_used_in_training(data, tmp_path, capsys) -> None:
    out = tmp_path / "fill.safetensors"
    assert main(["inpainter", "--data", str(data), "--out", str(out), "--image-size", "32", "--steps", "2"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("inpainter", "mean colour", "blur"))
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.height > 5 * 32  # whole, with holes, and three ways to fill them
    torch.manual_seed(0)
    weights = tmp_path / "plain.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), weights)
    train = ["train", "--data", str(data), "--classifier", f"timm:test_resnet@{weights}", "--image-size", "64"]
    train += ["--epochs", "0.2", "--batch-size", "4", "--infill-kept", str(out), "--infill", "blur", "--remask"]
    assert main([*train, "--out", str(tmp_path / "run")]) == 0
    evaluate = ["evaluate", "--data", str(data), "--explainer", f"{tmp_path / 'run'}:top=0.25", "--metric", "mask_mean"]
    assert main([*evaluate, "--out", str(tmp_path / "scores")]) == 0
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["run:top=0.25"]["mask_mean"]["mean"] == pytest.approx(0.25)


def test_bad_input_is_one_clear_line(data, tmp_path, capsys) -> None:
    assert main(["inpainter", "--data", str(data), "--out", str(tmp_path / "fill.pt")]) == 1
    assert "an output file here ends in .safetensors" in capsys.readouterr().err
    assert main(["inpainter", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "fill.safetensors")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
