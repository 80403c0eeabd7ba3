"""The masker: published sizes and start, grids of any size, conditioning, heads, files."""

import inspect
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from salmask.classifier import Classifier
from salmask.masker import HEADS, Concrete, Masker, Sigmoid
from salmask.outcome import Outcome
from salmask.terms import area, total_variation

RESNET50 = ((64, 256, 512, 1024, 2048), (4, 4, 8, 16, 32))
TINY = ((6, 8, 10, 12, 14), (4, 4, 8, 16, 32))
SUBSETS = [s for n in range(1, 6) for s in itertools.combinations(range(5), n)]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def tiny(**options) -> Masker:
    return Masker(*TINY, **{"width": 8, "generator": seeded(), **options})


def maps_of(size: tuple[int, int], batch: int = 2, *, seed: int = 1) -> list[Tensor]:
    g = seeded(seed)
    return [torch.randn(batch, c, -(-size[0] // s), -(-size[1] // s), generator=g) for c, s in zip(*TINY, strict=True)]


# Published facts


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        ((3, 4), 198_017),
        ((0, 1, 2, 3, 4), 249_153),
        ((4,), 131_777),
        ((3,), 66_241),
        ((2,), 33_473),
        ((1,), 17_089),
        ((0,), 4_801),
    ],
)
def test_parameter_counts_are_the_published_ones(layers, count) -> None:
    assert sum(p.numel() for p in Masker(*RESNET50, layers=layers).parameters()) == count


def test_weights_start_he_normal_by_fan_out_with_the_final_bias_of_pytorch() -> None:
    masker = Masker(*RESNET50, layers=(3, 4), generator=seeded())
    for projection in masker.projections.values():
        weight = projection[0].weight
        assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / 64), rel=0.02)
        assert abs(float(weight.detach().mean())) < 0.003
        assert projection[0].bias is None
        assert projection[1].weight.eq(1).all() and projection[1].bias.eq(0).all()
    assert float(masker.final.weight.detach().std()) == pytest.approx(math.sqrt(2 / 9), rel=0.08)
    biases = torch.stack([Masker(*TINY, layers=(3, 4), generator=seeded(k)).final.bias.detach() for k in range(200)])
    bound = 1 / math.sqrt(128 * 9)
    assert biases.abs().max() <= bound and biases.abs().max() > 0.9 * bound


def test_the_same_generator_gives_the_same_masker_whatever_torch_would_draw() -> None:
    torch.manual_seed(0)
    one = tiny(classes=3)
    torch.manual_seed(1)
    other = tiny(classes=3)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert not torch.equal(one.final.weight, tiny(classes=3, generator=seeded(1)).final.weight)


# Forward


def slow(masker: Masker, maps: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """The published decoder, written out for a masker in eval mode."""
    parts = []
    for layer in masker.layers:
        x = maps[layer]
        if layer != 0 or masker.layers == (0,):
            conv, norm, _ = masker.projections[str(layer)]
            x = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            x = ((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp_min(0)
        if x.shape[-2:] != grid:
            x = torch.nn.Upsample(size=grid, mode="bilinear", align_corners=False)(x)
        parts.append(x)
    return torch.nn.functional.conv2d(torch.cat(parts, 1), masker.final.weight, masker.final.bias, padding=1)


@pytest.mark.parametrize("layers", [(0,), (4,), (0, 4), (3, 4), (0, 1, 2, 3, 4)])
def test_logits_equal_the_decoder_written_out(layers) -> None:
    masker = tiny(layers=layers).eval()
    for module in masker.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=seeded())
            module.running_var.uniform_(0.5, 2, generator=seeded())
    maps = maps_of((64, 64))
    expected = slow(masker, maps, (16, 16))
    torch.testing.assert_close(masker.logits(maps, (64, 64)), expected)
    torch.testing.assert_close(
        masker(maps, (64, 64)), expected.sigmoid().repeat_interleave(4, 2).repeat_interleave(4, 3)
    )


def test_layer_0_is_read_raw_unless_it_is_the_only_one() -> None:
    assert set(tiny(layers=(0, 4)).projections) == {"4"}
    assert tiny(layers=(0, 4)).final.in_channels == 6 + 8
    assert set(tiny(layers=(0,)).projections) == {"0"}


def test_layers_may_count_from_the_deepest_and_come_in_any_order() -> None:
    assert tiny(layers=(-1, 3)).layers == (3, 4)


@pytest.mark.parametrize(("count", "wanted"), [(1, (0,)), (2, (0, 1)), (3, (1, 2)), (5, (3, 4)), (6, (4, 5))])
def test_the_two_deepest_layers_are_read_unless_told_otherwise(count, wanted) -> None:
    channels, strides = [4 + k for k in range(count)], [2 ** (k + 1) for k in range(count)]
    masker = Masker(channels, strides, width=8, generator=seeded()).eval()
    assert masker.layers == wanted
    maps = [torch.rand(2, c, -(-64 // s), -(-64 // s)) for c, s in zip(channels, strides, strict=True)]
    assert masker(maps, (64, 64)).shape == (2, 1, 64, 64)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (33, 50), (7, 9), (224, 225)])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_any_image_size_gives_masks_of_that_size(size, upsample) -> None:
    masker = tiny(upsample=upsample, layers=(0, 1, 2, 3, 4)).eval()
    maps = maps_of(size)
    masks = masker(maps, size)
    assert masks.shape == (2, 1, *size)
    assert masks.min() >= 0 and masks.max() <= 1
    assert masker.small(maps, size).shape == (2, 1, -(-size[0] // 4), -(-size[1] // 4))


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_area_and_variation_of_the_grid_are_those_of_the_picture_where_zoom_says_so(size) -> None:
    masker = tiny().eval()
    small = torch.rand(3, 1, size[0] // 4, size[1] // 4, generator=seeded(), dtype=torch.float64)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(masker.enlarge(small, size), large.float())
    targets, logits = torch.zeros(3, dtype=torch.long), torch.zeros(3, 2)
    zoom = masker.zoom(size)
    assert zoom == 4
    on_grid = Outcome(small, targets, logits, None, None, zoom=zoom)
    on_picture = Outcome(large, targets, logits, None, None)
    torch.testing.assert_close(area(on_grid), area(on_picture), rtol=1e-12, atol=0)
    torch.testing.assert_close(total_variation(on_grid), total_variation(on_picture), rtol=1e-12, atol=0)


def test_zoom_promises_nothing_where_enlarging_is_not_repetition() -> None:
    assert tiny(upsample="bilinear").zoom((64, 64)) is None
    assert tiny().zoom((64, 66)) is None
    assert tiny(stride=8).zoom((64, 64)) == 8


def test_gradients_reach_every_parameter_and_the_mask_follows_its_image_alone() -> None:
    masker = tiny(layers=(0, 1, 2, 3, 4)).train()
    masker(maps_of((64, 64)), (64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in masker.parameters())
    masker.eval()
    maps = maps_of((64, 64))
    alone = masker([m[:1] for m in maps], (64, 64))
    torch.testing.assert_close(masker(maps, (64, 64))[:1], alone)


@pytest.mark.parametrize("layers", [(5,), (-6,), ()])
def test_layers_that_do_not_exist_are_refused(layers) -> None:
    with pytest.raises(ValueError, match=r"do not exist: the classifier gives maps 0 \.\.\. 4"):
        tiny(layers=layers)


def test_unknown_upsampling_and_maps_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="'nearest' or 'bilinear', got 'cubic'"):
        tiny(upsample="cubic")
    with pytest.raises(ValueError, match=r"channels \(6, 8, 10, 12, 14\), got \(12, 14\)"):
        tiny()(maps_of((64, 64))[3:], (64, 64))


# Conditioning


@pytest.mark.parametrize("layers", SUBSETS)
def test_conditioning_works_for_every_choice_of_layers(layers) -> None:
    masker = tiny(layers=layers, area_condition=True, classes=5).eval()
    maps, areas = maps_of((32, 32)), torch.tensor([0.2, 0.7])
    targets = torch.tensor([1, 4])
    z = masker.logits(maps, (32, 32), areas=areas, targets=targets)
    assert z.shape == (2, 1, 8, 8)
    other_area = masker.logits(maps, (32, 32), areas=areas + 0.2, targets=targets)
    other_class = masker.logits(maps, (32, 32), areas=areas, targets=torch.tensor([1, 3]))
    assert not torch.allclose(z, other_area)
    assert torch.equal(z[0], other_class[0]) and not torch.allclose(z[1], other_class[1])


@pytest.mark.parametrize(("area_condition", "classes", "extra"), [(True, None, 1), (False, 5, 64), (True, 5, 65)])
def test_conditions_are_constant_channels_of_every_layer_that_is_read(area_condition, classes, extra) -> None:
    masker = tiny(layers=(0, 3), area_condition=area_condition, classes=classes)
    assert masker.projections["3"][0].in_channels == 12 + extra
    assert masker.final.in_channels == 8 + 6 + extra


def test_what_a_masker_is_conditioned_on_must_be_given_and_nothing_else() -> None:
    maps = maps_of((32, 32))
    with pytest.raises(ValueError, match="conditioned on an area: give `areas`"):
        tiny(area_condition=True)(maps, (32, 32))
    with pytest.raises(ValueError, match="not conditioned on an area: leave `areas` out"):
        tiny()(maps, (32, 32), areas=torch.rand(2))
    with pytest.raises(ValueError, match="conditioned on a class: give `targets`"):
        tiny(classes=3)(maps, (32, 32))


# Heads


def test_sigmoid_is_the_sigmoid() -> None:
    z = torch.tensor([-2.0, 0, 3])
    torch.testing.assert_close(Sigmoid()(z), 1 / (1 + (-z).exp()))


@pytest.mark.parametrize("hard", [True, False])
def test_concrete_in_training_is_the_published_relaxation(hard) -> None:
    z = torch.randn(4, 1, 6, 6, generator=seeded(3), requires_grad=True)
    head = Concrete(0.5, hard=hard, generator=seeded(9)).train()
    u = torch.rand(z.shape, generator=seeded(9))
    soft = torch.sigmoid((z + torch.log(u + 1e-8) - torch.log(1 - u + 1e-8)) / 0.5)
    drawn = head(z)
    torch.testing.assert_close(drawn, (soft > 0.5).float() if hard else soft, rtol=1e-4, atol=1e-5)
    if hard:
        assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    weights = torch.randn(z.shape, generator=seeded(4))
    (ours,) = torch.autograd.grad((drawn * weights).sum(), z)
    (straight_through,) = torch.autograd.grad((soft * weights).sum(), z)
    torch.testing.assert_close(ours, straight_through, rtol=1e-3, atol=1e-4)


def test_concrete_draws_one_with_the_probability_of_its_logit() -> None:
    z = torch.full((20_000,), 0.8)
    drawn = Concrete(0.1, generator=seeded()).train()(z)
    assert float(drawn.mean()) == pytest.approx(float(torch.tensor(0.8).sigmoid()), abs=0.012)


def test_concrete_in_evaluation_is_the_threshold_at_zero_and_draws_nothing() -> None:
    z = torch.tensor([-0.1, 0.0, 0.1])
    for head in (Concrete(), Concrete(hard=False)):
        assert head.eval()(z).tolist() == [0, 0, 1]


def test_a_learnable_temperature_gets_a_gradient_and_stays_positive() -> None:
    head = Concrete(0.5, hard=False, learnable=True, generator=seeded()).train()
    head(torch.randn(50, generator=seeded(1))).pow(2).sum().backward()
    assert head.log_temperature.grad.abs() > 0
    assert [name for name, _ in head.named_parameters()] == ["log_temperature"]
    assert not list(Concrete(0.5).parameters())


def test_concrete_needs_a_generator_and_a_positive_temperature() -> None:
    with pytest.raises(ValueError, match=r"give it a torch\.Generator"):
        Concrete().train()(torch.zeros(2))
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected a temperature > 0"):
            Concrete(temperature)


# Files


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": (0, 1, 4), "upsample": "bilinear", "stride": 8},
        {"head": "soft"},
        {"area_condition": True, "classes": 7, "classifier": "0123456789abcdef"},
    ],
)
def test_what_is_saved_comes_back(tmp_path, options) -> None:
    if options.get("head") == "soft":
        options = {"head": Concrete(0.3, hard=False, learnable=True)}
    masker = tiny(**options).train()
    conditions = {
        "areas": torch.tensor([0.1, 0.6]) if masker.area_condition else None,
        "targets": torch.tensor([2, 5]) if masker.classes else None,
    }
    if not isinstance(masker.head, Concrete):
        masker(maps_of((64, 64)), (64, 64), **conditions)  # moves the normalisation statistics
    masker.save_pretrained(tmp_path / "new" / "masker")
    back = Masker.from_pretrained(tmp_path / "new" / "masker")
    assert not back.training
    assert back.settings() == masker.settings()
    maps = maps_of((64, 64))
    assert torch.equal(back(maps, (64, 64), **conditions), masker.eval()(maps, (64, 64), **conditions))
    assert sorted(p.name for p in (tmp_path / "new" / "masker").iterdir()) == ["config.json", "model.safetensors"]


def test_every_head_can_be_built_from_its_settings() -> None:
    for name, head in HEADS.items():
        settings = head().settings()
        assert settings.pop("head") == name
        assert head(**settings).settings() == head().settings()


def test_a_classifier_that_does_not_fit_is_refused_with_both_sides(small_net) -> None:
    classifier = Classifier(
        small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=("stem", "middle", "deep"), image_size=32
    )
    Masker.for_classifier(classifier, layers=(1, 2)).fits(classifier)
    with pytest.raises(ValueError, match=r"channels \(6, 8, 10, 12, 14\), the classifier gives \(8, 12, 16\)"):
        tiny().fits(classifier)
    with pytest.raises(ValueError, match=r"strides \(4, 8, 16\), the classifier gives \(2, 4, 8\)"):
        Masker((8, 12, 16), (4, 8, 16), layers=(1,)).fits(classifier)


def test_for_classifier_takes_sizes_and_fingerprint(small_net) -> None:
    classifier = Classifier(
        small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=("stem", "middle", "deep"), image_size=32
    )
    masker = Masker.for_classifier(classifier, layers=(0, 2), upsample="bilinear")
    assert (masker.channels, masker.strides, masker.layers) == (classifier.channels, classifier.strides, (0, 2))
    assert masker.classifier == classifier.fingerprint()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("width", -1, "width: expected a whole number, 1 to"),
        ("width", 10**12, "width: expected a whole number"),
        ("width", 999_999, "is .*, expected"),  # four gigabytes, of which none are asked for
        ("stride", 0, "stride: expected"),
        ("classes", -5, "classes: expected"),
        ("layers", [77], "layers"),
        ("layers", ["3"], "layers"),
        ("channels", [8] * 5000, "channels: expected a list of 1 to 64"),
        ("temperature", 0.1, "temperature: expected it with the head 'concrete'"),
        ("upsample", "cubic", "upsample: expected"),
    ],
)
def test_a_configuration_that_was_changed_is_refused_by_its_field(tmp_path, field, value, words) -> None:
    tiny().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), field: value}))
    with pytest.raises(ValueError, match=words):
        Masker.from_pretrained(tmp_path)


def test_the_files_of_a_masker_can_be_read_by_everybody(tmp_path) -> None:
    tiny().save_pretrained(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_both_files_is_named(tmp_path, missing) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected config\.json and model\.safetensors there"):
        Masker.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no masker in"):
        Masker.from_pretrained(tmp_path / "absent" / "deeper")


def _without(key: str):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "format": "another"}),
        lambda text: json.dumps({**json.loads(text), "head": "softmax"}),
        lambda text: json.dumps({**json.loads(text), "colour": "red"}),
        _without("format"),
        _without("channels"),
    ],
)
def test_a_broken_configuration_is_one_clear_error(tmp_path, spoil) -> None:
    tiny().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(spoil(config.read_text()))
    with pytest.raises(ValueError, match=r"config\.json.*not the configuration of a salmask masker"):
        Masker.from_pretrained(tmp_path)


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no tensors at all" * 9])
def test_broken_weights_are_one_clear_error(tmp_path, spoil) -> None:
    tiny().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(spoil(weights.read_bytes()))
    with pytest.raises(ValueError, match="does not hold the weights"):
        Masker.from_pretrained(tmp_path)


def test_weights_of_another_masker_are_refused(tmp_path) -> None:
    tiny().save_pretrained(tmp_path / "a")
    tiny(width=9).save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights"):
        Masker.from_pretrained(tmp_path / "a")


def test_an_interrupted_write_leaves_the_old_files(tmp_path, monkeypatch) -> None:
    tiny().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def dies(path, content):
        path.write_text("half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny(generator=seeded(5)).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("size", [(0, 64), (64, -1), 64, (64,), (64.0, 64.0), "64", None, (64, 64, 64)])
def test_a_size_that_is_none_is_refused(size) -> None:
    masker = Masker((4, 8), (4, 8), generator=Generator().manual_seed(0))
    reading = inspect.unwrap(Masker.logits)  # without the checks of types that tests have and users do not
    with pytest.raises(ValueError, match="expected the size of the pictures as"):
        reading(masker, [torch.rand(1, 4, 16, 16), torch.rand(1, 8, 8, 8)], size)
