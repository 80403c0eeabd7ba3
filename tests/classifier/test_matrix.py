"""Networks of every source in every wrapping and state: evidence found, the same map as bare, the network as before."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import Generator, Tensor, nn

import salmask
from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.classifier.hold import held
from salmask.explain import EXPLAINERS
from salmask.explain.learned import Learned
from salmask.masker import Masker

SIZE = 64
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)


def hugging_face(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"num_labels": 3}
    if name == "resnet":
        sizes = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 4, 1], "embedding_size": 8, "layer_type": "basic"}
        return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, **small))
    if name == "convnext":
        sizes = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 4, 1]}
        return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes, **small))
    if name == "swin":
        sizes = {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 4, 1]}
        heads = {"num_heads": [1, 2, 2, 2], "window_size": 2}
        return transformers.SwinForImageClassification(transformers.SwinConfig(**sizes, **heads, **small))
    sizes = {"image_size": SIZE, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 6}
    more = {"num_attention_heads": 2, "intermediate_size": 16}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **more, **small))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm cnn": (lambda: timm.create_model("test_resnet", num_classes=3), 32),
    "timm vit": (lambda: timm.create_model("test_vit", num_classes=3, img_size=SIZE), 16),
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=3), 32),
    "torchvision vit": (lambda: torchvision.models.VisionTransformer(SIZE, 8, 6, 2, 16, 16, num_classes=3), 8),
    "hf resnet": (lambda: hugging_face("resnet"), 32),
    "hf convnext": (lambda: hugging_face("convnext"), 32),
    "hf vit": (lambda: hugging_face("vit"), 8),
    "hf swin": (lambda: hugging_face("swin"), 32),
    "own": (lambda: SmallNet(3), 8),
}


class LightningLike(nn.Module):
    """A trainer's module: the network beside a loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = network, nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> object:
        return self.model(x)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "Lightning": LightningLike,
    "compiled in Lightning": lambda network: LightningLike(torch.compile(network, backend="eager")),
    "frozen": lambda network: network.requires_grad_(False),
    "train mode": lambda network: network.train(),
    "bf16": lambda network: network.bfloat16(),
}


def seeded(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name][0]().eval()
    for value in network.parameters():
        if value.ndim > 1 and not value.any():  # a head of zeros, whose logits are constants
            nn.init.normal_(value, 0, 0.1)
    return network


def around(network: nn.Module) -> Classifier:
    return Classifier(network, mean=MEAN, std=STD, layers=None, image_size=SIZE)


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=Generator().manual_seed(1))


EXPLAINED: dict[str, Callable[[Classifier], Callable[..., object]]] = {
    "gradcam": lambda classifier: EXPLAINERS["gradcam"](),
    "layercam": lambda classifier: EXPLAINERS["layercam"](),
    "gradient": lambda classifier: EXPLAINERS["gradient"](),
    "occlusion": lambda classifier: EXPLAINERS["occlusion"](window=112, stride=112),
    "learned": lambda classifier: Learned(Masker.for_classifier(classifier, generator=Generator().manual_seed(0))),
}


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    def state() -> object:
        modules = [(m.training, len(m._forward_hooks), m.__dict__.get("forward")) for m in network.modules()]
        return modules, [(p.requires_grad, p.grad is None, p.dtype, p.device) for p in network.parameters()]

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_spatial_output_is_read_and_published(name) -> None:
    classifier = around(seeded(name))
    assert classifier.strides[-1] == NETWORKS[name][1] == max(classifier.strides)
    assert len(classifier.layers) >= 3
    described = classifier.describe()
    maps = classifier.features(pictures()).maps
    assert [layer.shape for layer in described] == [tuple(m.shape[1:]) for m in maps]
    assert [layer.name for layer in described] == list(classifier.layers)


@cache
def bare_classifier(name: str) -> Classifier:
    return around(seeded(name))


@cache
def alone(name: str, method: str) -> Tensor:
    bare = bare_classifier(name)
    return EXPLAINED[method](bare)(bare, pictures(), torch.tensor([0, 2])).masks


@pytest.fixture
def eager():
    """Let networks that are compiled be called as they are: one cell of a kind compiles, which takes seconds."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


COMPILED = ("timm cnn", "hf vit", "own")


def check_rounded(got: Tensor, wanted: Tensor, method: str) -> None:
    """Check that maps are the same as far as 8 bits of a mantissa tell: none is off by .4 of the largest value, and
    those that are no constants correlate by .9 (measured: .25 and .96)."""
    largest = wanted.abs().max()
    assert (got - wanted).abs().max() <= 0.4 * largest, method
    for one, other in zip(got.flatten(1), wanted.flatten(1), strict=True):
        if other.std() > 0.02 * largest:
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.9, method


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_wrappers_and_states_change_no_map(name, wrapper, request) -> None:
    if name not in COMPILED or wrapper == "compiled in Lightning":
        request.getfixturevalue("eager")
    bare = bare_classifier(name)
    network = WRAPPERS[wrapper](seeded(name))
    classifier = around(network)
    assert [each.removeprefix("model.") for each in classifier.layers] == list(bare.layers)
    assert classifier.fingerprint() == bare.fingerprint() or wrapper == "bf16"
    thorough = name not in COMPILED or wrapper != "compiled"  # each new mode compiles again
    for method, build in EXPLAINED.items():
        if not thorough and method not in ("gradcam", "learned"):
            continue
        wanted = alone(name, method)
        with unchanged(network), torch.no_grad():
            got = build(classifier)(classifier, pictures(), torch.tensor([0, 2])).masks
        if wrapper == "bf16":
            check_rounded(got, wanted, method)
        else:
            message = f"{method}: {{}}".format
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=message)


def test_a_masker_fits_its_own_network_in_a_wrapper() -> None:
    network = seeded("own")
    masker = Masker.for_classifier(around(network))
    for wrap in ("DataParallel", "compiled", "Lightning"):
        masker.fits(around(WRAPPERS[wrap](network)))
        assert around(WRAPPERS[wrap](network)).fingerprint() == masker.classifier


class Squares(nn.Module):
    """Class k is the share of red, green or blue: what it rests on can be seen."""

    def __init__(self) -> None:
        super().__init__()
        mix = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        self.stem, self.stage1, self.stage2 = nn.Conv2d(3, 3, 1), nn.AvgPool2d(2), nn.AvgPool2d(2)
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.stem.weight.copy_((mix * torch.tensor(STD))[:, :, None, None])
            self.stem.bias.copy_(mix @ torch.tensor(MEAN))
            self.head.weight.copy_(60 * torch.eye(3))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x).relu())).mean((2, 3)))


def scene() -> Tensor:
    x = torch.full((1, 3, SIZE, SIZE), 0.45)
    x[:, :, 4:24, 4:24] = torch.tensor([1.0, 0, 0])[:, None, None]
    x[:, :, 44:60, 44:60] = torch.tensor([0.0, 0, 1])[:, None, None]
    return x


@cache
def masker_of_squares() -> Masker:
    """Train a masker on pictures with one square of one colour."""
    generator = Generator().manual_seed(0)
    shown = torch.full((24, 3, SIZE, SIZE), 0.45)
    for k, picture in enumerate(shown):
        row, column = (int(place) for place in torch.randint(0, 44, (2,), generator=generator))
        picture[:, row : row + 20, column : column + 20] = torch.eye(3)[k % 3, :, None, None]
    weights = [["area_if_kept_right", 0.3], ["area_if_removed_wrong", 3.0]]
    how = {"recipe": "fix", "weights": weights, "decay_at": [], "layers": [1, 2], "precision": "32-true"}
    return salmask.train(around(Squares()), shown, steps=60, batch_size=8, lr=0.01, **how)


FINDS = {
    "gradcam": lambda: EXPLAINERS["gradcam"](),
    "layercam": lambda: EXPLAINERS["layercam"](),
    "gradient": lambda: EXPLAINERS["gradient"](),
    "occlusion": lambda: EXPLAINERS["occlusion"](window=28, stride=28),
    "learned": lambda: Learned(masker_of_squares()),
}
OUTER = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("wrapper", [*WRAPPERS, None])
@pytest.mark.parametrize("method", FINDS)
@pytest.mark.usefixtures("eager")
def test_planted_evidence_is_found(method, wrapper) -> None:
    network = Squares() if wrapper is None else WRAPPERS[wrapper](Squares())
    classifier, explainer = around(network), FINDS[method]()
    one = scene()
    one[:, :, 40:, 40:] = 0.45  # the masker explains what is decided, and not a class: it is shown one square alone
    for target, inside in ((0, (slice(0, 30), slice(0, 30))), (2, (slice(38, 64), slice(38, 64)))):
        shown = one.flip(1, 2, 3) if method == "learned" and target else one if method == "learned" else scene()
        for mode in OUTER.values():
            with unchanged(network), mode():
                masks = explainer(classifier, shown, torch.tensor([target])).masks[0, 0].clamp_min(0)
            assert masks[inside].sum() > 0.8 * masks.sum() > 0


CHEAP = {
    "rise": {"masks": 8},
    "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
    "extremal": {"iterations": 2, "areas": [0.2]},
    "occlusion": {"window": 112, "stride": 112},
} | {name: {"iterations": 2} for name in ("meaningful", "fido", "opticam")}
THREADED = sorted(set(EXPLAINERS) - {"ground_truth", "bank_masks", "cam"})


def alike_in_eight_threads(ask: Callable[[int], Tensor], count: int) -> None:
    """Maps that are asked for by eight threads at once are those of one after the other."""
    alone = [ask(k) for k in range(count)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(count)))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*THREADED, "learned"])
def test_eight_threads_get_the_maps_that_they_get_alone(name) -> None:
    torch.manual_seed(0)
    network = SmallNet(5).train()
    classifiers = [
        Classifier(n, mean=MEAN, std=STD, layers=None, image_size=32) for n in (network, LightningLike(network))
    ]
    learned = Learned(Masker.for_classifier(classifiers[0], generator=Generator().manual_seed(0)).train())
    explainer = learned if name == "learned" else EXPLAINERS[name](**CHEAP.get(name, {}))
    shown = [torch.rand(1, 3, 32, 32, generator=Generator().manual_seed(k)) for k in range(16)]

    def ask(k: int) -> Tensor:
        return explainer(classifiers[k % 2], shown[k], torch.tensor([k % 5])).masks

    with unchanged(network):
        alike_in_eight_threads(ask, 16)
    assert learned.masker.training


class Ensemble(nn.Module):
    """A network, and another one beside it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.one, self.other = network, SmallNet(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


def test_threads_wait_for_each_other_where_networks_have_a_part_in_common() -> None:
    torch.manual_seed(0)
    shared = SmallNet(5).train()
    networks = [shared, Ensemble(shared), Ensemble(shared)]
    classifiers = [Classifier(n, mean=MEAN, std=STD, layers=None, image_size=32) for n in networks]
    shown = [torch.rand(1, 3, 32, 32, generator=Generator().manual_seed(k)) for k in range(24)]

    def ask(k: int) -> Tensor:
        return salmask.explain(classifiers[k % 3], shown[k], targets=[k % 5]).masks

    with unchanged(shared):
        alike_in_eight_threads(ask, 24)


def test_networks_without_a_part_in_common_do_not_wait() -> None:
    one, other = SmallNet(3), SmallNet(3)
    with ThreadPoolExecutor(1) as pool, held(one):
        assert pool.submit(entered, other).result(timeout=60)
        both = pool.submit(entered, nn.ModuleList([one, other]))
        assert not wait([both], timeout=0.2).done
    assert both.result(timeout=60)


def entered(network: nn.Module) -> bool:
    with held(network):
        return True
