"""The contract of every explainer, over the table `EXPLAINERS` and over networks of four kinds."""

import gc
import math
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.classifier.scores import logit
from salmask.explain import EXPLAINERS
from salmask.explain.base import Explainer, Explanation, Passes, explainer_of
from salmask.explain.learned import Learned
from salmask.explain.optimise.methods import OPTIMISED, refined
from salmask.masker import Masker
from salmask.types import constant

SIZE = 32
LABELLED = {"ground_truth"}
SAME_FOR_ALL = {"full", "empty", "center", "gaussian", "random", "random_blocks", "fake_cam", "ground_truth"}
CLASS_AGNOSTIC = SAME_FOR_ALL | {"eigencam"}
CONSTANT = {"full", "empty"}

# Settings under which one explanation takes a few passes.
CHEAP = {
    "scorecam": {"layer": 0},
    "ablationcam": {"layer": 0},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
    "rise": {"masks": 6, "cells": 4},
    "occlusion": {"window": 112, "stride": 112},
    "attribution_mask": {"steps": 2},
    "opticam": {"iterations": 2},
    "meaningful": {"iterations": 2},
    "extremal": {"iterations": 2},
    "bank_masks": {"iterations": 2, "draws": 2},
    "fido": {"iterations": 2, "draws": 2, "cells": 4},
}
# Settings under which 200 explanations take a second.
TINY = {
    "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
    "rise": {"masks": 2, "cells": 2},
    "occlusion": {"window": 224, "stride": 112},
    "bank_masks": {"iterations": 2, "draws": 1},
    "fido": {"iterations": 2, "draws": 1},
}
NAMES = sorted(EXPLAINERS)
LOOKING = sorted(set(EXPLAINERS) - SAME_FOR_ALL)


def build(name, **more):
    return EXPLAINERS[name](**{**CHEAP.get(name, {}), **more})


def explain(explainer, classifier, images, targets=None):
    extra = {}
    if "boxes" in getattr(explainer, "wants", ()):
        extra["boxes"] = [torch.tensor([[2.0, 3.0, 20.0, 17.0]])] * len(images)
    return explainer(classifier, images, targets, **extra)


def statistics_not_the_identity(network):
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return network


def seeded(make):
    torch.manual_seed(0)
    return statistics_not_the_identity(make())


def hand_written(network=None, **options):
    network = network or seeded(SmallNet)
    return Classifier(
        network,
        mean=(0.5, 0.45, 0.4),
        std=(0.25, 0.2, 0.3),
        image_size=SIZE,
        **{"layers": ("stem", "middle", "relu"), **options},
    )


def transformer():
    make = partial(
        timm.create_model,
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        num_classes=4,
    )
    layers = ("blocks.0", "blocks.1", "blocks.2")
    return Classifier(seeded(make), mean=(0.5,) * 3, std=(0.5,) * 3, layers=layers, image_size=SIZE)


def from_timm(name):
    return seeded(lambda: Classifier.from_timm(name, pretrained=False, num_classes=4, image_size=2 * SIZE))


BACKBONES = {
    "hand_written": hand_written,
    "resnet18": partial(from_timm, "resnet18"),
    "mobilenet": partial(from_timm, "mobilenetv3_small_050"),
    "transformer": transformer,
}
NOT_LINEAR = {("cam", "mobilenet"), ("cam", "transformer")}


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request):
    classifier = BACKBONES[request.param]()
    return request.param, classifier, pictures(classifier.image_size)


def pictures(size):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def images():
    return pictures(SIZE)


def state_of(network):
    """Everything that a call must leave as it was."""
    hooks = sum(
        len(hooks)
        for module in network.modules()
        for key, hooks in vars(module).items()
        if key.endswith("_hooks") or key.endswith("_hooks_with_kwargs")
    )
    return {
        "hooks": hooks,
        "modes": [module.training for module in network.modules()],
        "wanted": [parameter.requires_grad for parameter in network.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        "modules": [id(module) for module in network.modules()],
        "values": [value.clone() for value in network.state_dict().values()],
    }


def assert_same_state(before, after):
    for key in ("hooks", "modes", "wanted", "modules"):
        assert before[key] == after[key], key
    assert all(torch.equal(a, b) for a, b in zip(before["values"], after["values"], strict=True))
    assert all(gradient is None for gradient in after["gradients"])


def close(found, wanted, *, share=1e-4):
    """Compare maps on the scale of the map."""
    return bool((found - wanted).abs().amax() <= share * wanted.abs().amax().clamp_min(1e-12))


# --- over all networks ---


@pytest.mark.parametrize("name", NAMES)
def test_gives_raw_maps_in_range_and_leaves_the_network_alone(name, backbone):
    kind, classifier, images = backbone
    classifier.network.train()
    before, drawn = state_of(classifier.network), torch.get_rng_state()
    if (name, kind) in NOT_LINEAR:
        with pytest.raises(ValueError, match="CAM needs"):
            build(name)(classifier, images)
        assert_same_state(before, state_of(classifier.network))
        return
    with torch.no_grad():
        found = explain(build(name), classifier, images, torch.tensor([1, 3]))
    assert_same_state(before, state_of(classifier.network))
    assert torch.equal(drawn, torch.get_rng_state())
    assert found.masks.shape == (2, 1, *images.shape[2:])
    assert found.masks.dtype == torch.float32
    assert not found.masks.requires_grad
    assert found.masks.isfinite().all()
    low, high = found.range
    assert low <= float(found.masks.min())
    assert float(found.masks.max()) <= high + 1e-6
    assert found.targets.tolist() == [1, 3]
    assert found.class_agnostic == found.normalized("minmax").class_agnostic == (name in CLASS_AGNOSTIC)
    assert found.passes.forward >= 1
    with classifier.frozen(), torch.no_grad():
        torch.testing.assert_close(found.logits, classifier.logits(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_gets_the_same_map_whatever_else_is_in_the_batch(name, backbone):
    kind, classifier, images = backbone
    if (name, kind) in NOT_LINEAR:
        pytest.skip("not defined for this network")
    explainer, (first, second) = build(name), images.split(1)
    batch = explain(explainer, classifier, torch.cat([first, second, first, first]), torch.tensor([1, 2, 1, 0])).masks
    alone = explain(explainer, classifier, first, torch.tensor([1])).masks
    other = explain(explainer, classifier, first, torch.tensor([0])).masks
    assert close(batch[:1], alone)
    assert close(batch[2:3], alone)
    assert close(batch[3:], other)


@pytest.mark.parametrize("name", LOOKING)
def test_the_class_that_is_asked_for_is_the_class_explained(name, images):
    classifier, explainer = (
        hand_written(),
        build(name, **({"layer": 0} if "cam" in name[-4:] and name != "cam" else {})),
    )
    by_class = [explain(explainer, classifier, images, torch.full((2,), k)).masks for k in range(4)]
    differ = any(not torch.equal(by_class[0], other) for other in by_class[1:])
    assert differ == (name not in CLASS_AGNOSTIC)
    predicted = explain(explainer, classifier, images)
    assert torch.equal(predicted.targets, predicted.logits.argmax(1))
    together = torch.cat([by_class[int(k)][i : i + 1] for i, k in enumerate(predicted.targets)])
    assert close(predicted.masks, together)


# --- over the hand-written network ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 4]), "classes from 0 to 3"),
        (torch.tensor([-1, 0]), "classes from 0 to 3"),
        (torch.tensor([0]), "expected targets"),
        (torch.tensor([0, 1, 2]), "expected targets"),
        (torch.tensor([0.0, 1.0]), "expected targets"),
    ],
)
def test_wrong_targets_are_refused(name, targets, message, images):
    with pytest.raises(ValueError, match=message):
        explain(build(name), hand_written(), images, targets)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_is_refused(name, images):
    with pytest.raises(ValueError, match="at least one image"):
        explain(build(name), hand_written(), images[:0])


class Failing(SmallNet):
    """A network whose forward pass number `at` fails."""

    def __init__(self):
        super().__init__()
        self.at, self.calls = None, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise KeyError("this pass fails")
        return super().forward(x)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_restored_after_a_failure_on_any_pass(name, images):
    network = seeded(Failing)
    classifier, explainer = hand_written(network), build(name)
    wanted = explain(explainer, classifier, images).masks
    network.train()
    network.head.bias.requires_grad_(False)
    before = state_of(network)
    for at in (1, 2, 3, 5):
        network.at, network.calls = at, 0
        try:
            explain(explainer, classifier, images)
        except KeyError:
            assert network.calls == at
        else:
            assert network.calls < at
        assert_same_state(before, state_of(network))
    network.at = None
    assert torch.equal(explain(explainer, classifier, images).masks, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_map_in_any_mode(name, images):
    classifier, explainer = hand_written(), build(name)
    classifier.network.eval()
    wanted = explain(explainer, classifier, images).masks
    torch.manual_seed(123)
    classifier.network.train().requires_grad_(False)
    with torch.inference_mode():
        found = explain(explainer, classifier, images.clone()).masks
    assert torch.equal(found, wanted)
    assert found.clone().requires_grad_().sum().requires_grad  # usable outside, not an inference tensor


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_weights_give_the_map_of_the_full_ones(name, images):
    wanted = explain(build(name), hand_written(), images, torch.tensor([1, 2])).masks
    network = seeded(SmallNet).bfloat16()
    found = explain(build(name), hand_written(network), images, torch.tensor([1, 2])).masks
    assert found.dtype == torch.float32
    assert next(network.parameters()).dtype == torch.bfloat16
    for one, other in zip(found, wanted, strict=True):
        if float(other.amax() - other.amin()) > 0:
            assert float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) > 0.8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pictures_are_explained(name, dtype, images):
    found = explain(build(name), hand_written(), images.to(dtype), torch.tensor([1, 2]))
    wanted = explain(build(name), hand_written(), images.to(dtype).float(), torch.tensor([1, 2]))
    assert found.masks.dtype == found.logits.dtype == torch.float32
    assert found.masks.isfinite().all()
    for one, other in zip(found.masks, wanted.masks, strict=True):
        if float(other.amax() - other.amin()) > 0:
            assert float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) > 0.8


class Functional(SmallNet):
    """The same network without a word in place, and no module used twice."""

    def forward(self, x):
        x = torch.relu(self.middle(torch.relu(self.stem[1](self.stem[0](x)))))
        return self.head(torch.relu(self.deep(x)).mean((2, 3)))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"cam"}))  # which reads no layer before a ReLU
def test_in_place_and_reused_relus_change_no_map(name, images):
    layers = ("stem.0", "middle", "deep")
    wanted = explain(build(name), hand_written(seeded(Functional), layers=layers), images, torch.tensor([1, 2])).masks
    found = explain(build(name), hand_written(layers=layers), images, torch.tensor([1, 2])).masks
    assert close(found, wanted)


@pytest.mark.parametrize("name", sorted(set(LOOKING) - {"cam"}))
def test_a_layer_of_one_cell_gives_finite_maps(name):
    """A picture so small that the deepest maps have one position, where nothing can be placed."""
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = explain(build(name), hand_written(), picture, torch.tensor([2]))
    assert found.masks.shape == (1, 1, 8, 8)
    assert found.masks.isfinite().all()
    if name in ("gradcam", "gradcam_pp", "xgradcam", "layercam", "hirescam", "eigencam", "opticam"):
        assert found.degenerate.all()


def test_bounded_maps_stay_as_they_are_and_raw_ones_go_by_minimum_and_maximum():
    maps = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    mask = Explanation(maps, torch.zeros(2).long(), torch.zeros(2, 3), Passes(1))
    assert mask.bounded() is mask
    raw = replace(mask, masks=maps * 8 - 4, range=(-math.inf, math.inf)).bounded()
    assert raw.range == (0.0, 1.0) and raw.masks.amax((1, 2, 3)).tolist() == [1, 1]
    torch.testing.assert_close(raw.masks, mask.normalized("minmax").masks)


def test_a_map_that_is_constant_but_for_rounding_is_degenerate_and_not_blown_up():
    """.3 and the next float above it: by minimum and maximum, rounding would become a map of zeros and ones."""
    maps = torch.full((2, 1, 4, 4), 0.3)
    maps[0, 0, 1, 1] = torch.nextafter(maps[0, 0, 1, 1], torch.tensor(1.0))
    maps[1, 0, 1, 1] = 0.3001
    found = Explanation(maps, torch.zeros(2).long(), torch.zeros(2, 3), Passes(1))
    assert found.degenerate.tolist() == [True, False]
    assert found.normalized("minmax").masks.amax((1, 2, 3)).tolist() == [0, 1]
    assert constant(torch.tensor([[0.0, 0.0], [1e-12, 3e-12], [1.0, torch.nan]])).tolist() == [True, False, True]


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_picture_gives_no_nan(name):
    grey = torch.full((1, 3, SIZE, SIZE), 0.5)
    found = explain(build(name), hand_written(), grey)
    assert found.masks.isfinite().all()
    assert found.normalized("minmax").masks.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_maps_are_the_constant_ones(name, images):
    found = explain(build(name), hand_written(), images, torch.tensor([1, 2]))
    flat = found.masks.flatten(1)
    assert torch.equal(found.degenerate, flat.amax(1) == flat.amin(1))
    assert bool(found.degenerate.all()) or name not in CONSTANT


# --- memory ---


class Small(SmallNet):
    """A network that has no memory for more than `room` pictures, where they enter and before its last layer."""

    room, most = 2, 0

    def __init__(self):
        super().__init__()
        self.head.register_forward_pre_hook(lambda module, inputs: self.hold(inputs[0]))

    def forward(self, x):
        self.hold(x)
        return super().forward(x)

    def hold(self, x):
        self.most = max(self.most, len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("out of memory")


PIECES_OF_AN_IMAGE = {"scorecam", "ablationcam", "smoothgrad", "integrated_gradients", "rise", "occlusion"}
BUILT_UPON = ["learned", "refined"]


def build_any(name, **more):
    """Return any explainer, those that are built upon others among them."""
    if name not in BUILT_UPON:
        return build(name, **more)
    masker = Masker.for_classifier(hand_written(), layers=(1, 2), width=4, generator=torch.Generator().manual_seed(0))
    return Learned(masker, **more) if name == "learned" else refined(Learned(masker), iterations=2, **more)


@pytest.mark.parametrize("name", [*NAMES, *BUILT_UPON])
def test_no_pass_holds_more_pictures_than_it_is_told(name, images):
    many = torch.cat([images, images.flip(3), images.flip(2)])
    whole = explain(build_any(name, max_batch=100), hand_written(), many).masks
    share = 2e-2 if name in OPTIMISED else 1e-4  # two steps of Adam, whose first is the sign of a slope
    for limit in (2, 4):
        network = seeded(Small)
        classifier, network.room = hand_written(network), 100
        assert close(explain(build_any(name, max_batch=limit), classifier, many).masks, whole, share=share)
        assert network.most <= limit or name == "refined"  # which starts at an explainer with a limit of its own
    assert build_any(name).max_batch <= 160 if name != "refined" else build_any(name).optimised.max_batch <= 160
    with pytest.raises(ValueError, match="max_batch"):
        explain(build_any(name, max_batch=0), hand_written(), many)


@pytest.mark.parametrize("name", [*NAMES, *BUILT_UPON])
def test_out_of_memory_halves_the_piece_and_says_so(name, images):
    many = torch.cat([images, images.flip(3), images.flip(2)])
    wanted = explain(build_any(name, max_batch=2), hand_written(), many).masks
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = explain(build_any(name, max_batch=6), hand_written(seeded(Small)), many).masks
    assert close(found, wanted, share=2e-2 if name in OPTIMISED else 1e-4)
    halved = [str(one.message) for one in said if "out of memory: going on with" in str(one.message)]
    passes = {"refined": 2}.get(name, 1)  # the start and the descent
    assert len(halved) == (len(many) if name in PIECES_OF_AN_IMAGE else passes)


@pytest.mark.parametrize("name", [*NAMES, *BUILT_UPON])
def test_one_picture_that_does_not_fit_is_an_error(name, images):
    network = seeded(Small)
    classifier, network.room = hand_written(network), 0
    with warnings.catch_warnings(), pytest.raises(torch.OutOfMemoryError):
        warnings.simplefilter("ignore")
        explain(build_any(name), classifier, images)


@pytest.fixture(scope="module")
def new_objects_alone():
    """Leave out of collections, and of counts, what there is already: hundreds of thousands of objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def count_of_tensors():
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter))


def resident_mib():
    """Return what the process holds in memory, in MiB; 0 where the system does not say."""
    said = Path("/proc/self/statm")
    return int(said.read_text().split()[1]) * 4096 / 2**20 if said.is_file() else 0.0


@pytest.mark.parametrize("name", [*NAMES, *BUILT_UPON])
def test_60_calls_leave_nothing_behind_whether_they_fail_or_not(name, new_objects_alone):
    network, picture = seeded(Failing), torch.rand(1, 3, 16, 16)
    classifier, explainer = hand_written(network), build_any(name, **TINY.get(name, {}))
    passes = 0

    def call(fails_at):
        network.at, network.calls = fails_at, 0
        try:
            explain(explainer, classifier, picture)
        except KeyError:
            return
        assert fails_at is None or network.calls < fails_at

    for fails_at in (None, 1, 2) * 4:
        call(fails_at)
        passes = max(passes, network.calls)
    before, held = count_of_tensors(), resident_mib()
    for k in range(60):
        call(1 + k // 2 % passes if k % 2 else None)
    assert count_of_tensors() <= before
    assert state_of(network)["hooks"] == 0
    assert resident_mib() < held + 8


# --- what moves with the picture ---


class Mirrored(nn.Module):
    """A network that does not tell left from right: symmetric kernels, stride by average pooling."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.pool, self.act, self.head = nn.AvgPool2d(2), nn.ReLU(), nn.Linear(8, 4)
        self.deep = nn.ReLU()
        for conv in (self.first, self.second):
            conv.weight.data.add_(conv.weight.data.flip(3)).mul_(2)
        self.head.weight.data.mul_(8)

    def forward(self, x):
        x = self.pool(self.act(self.first(x)))
        return self.head(self.deep(self.pool(self.second(x))).mean((2, 3)))


EQUIVARIANT = sorted(set(LOOKING) - {"rise", "smoothgrad", "meaningful", "bank_masks", "fido", "extremal"})


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_a_mirrored_picture_gives_the_mirrored_map(name, images):
    classifier = hand_written(seeded(Mirrored), layers=("first", "deep"))
    explainer, targets = build(name), torch.tensor([1, 2])
    plain = explain(explainer, classifier, images, targets).masks
    mirrored = explain(explainer, classifier, images.flip(3), targets).masks
    assert close(mirrored.flip(3), plain, share=1e-3)
    assert not close(mirrored, plain, share=1e-2)


@pytest.mark.parametrize(("name", "more"), [("rise", {"masks": 1500, "score": logit}), ("smoothgrad", {"samples": 40})])
def test_a_random_method_moves_with_the_picture(name, more):
    classifier = hand_written(seeded(Mirrored), layers=("first", "deep"))
    picture = torch.full((1, 3, SIZE, SIZE), 0.45)
    picture[..., 8:20, 2:12] = torch.tensor([0.9, 0.1, 0.8])[:, None, None]
    explainer, target = build(name, **more), torch.tensor([int(classifier.logits(picture).argmax())])
    plain = explain(explainer, classifier, picture, target).masks.flatten()
    mirrored = explain(explainer, classifier, picture.flip(3), target).masks
    moved = torch.corrcoef(torch.stack([plain, mirrored.flip(3).flatten()]))[0, 1]
    stayed = torch.corrcoef(torch.stack([plain, mirrored.flatten()]))[0, 1]
    assert moved > stayed + 0.2


def test_ranges_are_ordered_pairs():
    for name in NAMES:
        found = explain(build(name), hand_written(), torch.rand(1, 3, SIZE, SIZE))
        assert len(found.range) == 2
        assert -math.inf <= found.range[0] < found.range[1] <= math.inf


class AsModule(torch.nn.Module):
    """Somebody's explainer, written as a network is."""

    def forward(self, classifier, images, targets=None) -> Explanation:
        logits = classifier.logits(images).detach()
        return Explanation(torch.ones(len(images), 1, *images.shape[-2:]), logits.argmax(1), logits, Passes(1))


def test_a_module_that_explains_is_taken_and_a_network_is_not() -> None:
    assert isinstance(explainer_of(AsModule()), Explainer)
    with pytest.raises(ValueError, match="expected a masker, a name such as 'gradcam'"):
        explainer_of(torch.nn.Conv2d(3, 1, 1))
