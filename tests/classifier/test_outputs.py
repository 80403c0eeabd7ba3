"""What comes out of a network: one logit, labels, probabilities, entries of tuples and dictionaries, functions."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from test_matrix import MEAN, SIZE, STD, Squares, scene
from torch import Generator, Tensor, nn

from salmask.classifier import Classifier
from salmask.classifier.wrappers import as_module
from salmask.explain import EXPLAINERS
from salmask.masker import Masker


class Ending(nn.Module):
    """The network that counts colours, with something done to its logits."""

    def __init__(self, end) -> None:
        super().__init__()
        self.net, self.end = Squares(), end

    def forward(self, x: Tensor) -> object:
        return self.end(self.net(x))


def around(end, **options) -> Classifier:
    layers = options.pop("layers", ["net.stage1", "net.stage2"])
    return Classifier(Ending(end), mean=MEAN, std=STD, layers=layers, image_size=SIZE, **options)


def one_logit(z: Tensor) -> Tensor:
    return z[:, 2:] - z[:, :1]  # the red square speaks against it


def share_of_red(masks: Tensor) -> float:
    positive = masks[0, 0].clamp_min(0)
    return float(positive[:30, :30].sum() / positive.sum())


@pytest.mark.parametrize("shape", [lambda z: z, lambda z: z[:, 0], lambda z: z.squeeze()])
def test_one_logit_speaks_for_both_classes(shape) -> None:
    classifier = around(lambda z: shape(one_logit(z)), outputs="binary")
    z = one_logit(Squares()((scene() - classifier.mean) / classifier.std))
    logits = classifier.logits(scene())
    torch.testing.assert_close(logits, torch.cat([-z / 2, z / 2], 1))
    torch.testing.assert_close(classifier.probabilities(logits)[:, 1:], z.sigmoid())
    for name in ("gradcam", "layercam", "integrated_gradients"):
        explanation = EXPLAINERS[name]()(classifier, scene())
        assert int(explanation.targets) == 0 and share_of_red(explanation.masks) > 0.9


def test_a_constant_logit_has_the_evidence_of_the_others_taken_off_and_is_said() -> None:
    with pytest.warns(UserWarning, match="class 0 is a constant.*outputs='binary'"):
        classifier = around(lambda z: torch.cat([torch.zeros(len(z), 1), one_logit(z)], 1))
    binary = around(one_logit, outputs="binary")
    torch.testing.assert_close(classifier.logits(scene()), binary.logits(scene()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = around(lambda z: torch.cat([torch.zeros(len(z), 1), one_logit(z)], 1), outputs="logits")
    assert plain.logits(scene())[0, 0] == 0 and plain.options() == {"outputs": "logits"}


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_a_softmax_at_the_end_is_taken_back_also_where_the_network_is_sure(scale) -> None:
    with pytest.warns(UserWarning, match="ends in a softmax"):
        classifier = around(lambda z: (scale * z).softmax(1))
    plain = around(lambda z: scale * z)
    torch.testing.assert_close(classifier.logits(scene()), plain.logits(scene()))
    probabilities = classifier.probabilities(classifier.logits(scene()))
    torch.testing.assert_close(probabilities, classifier.network((scene() - classifier.mean) / classifier.std))
    masks = [EXPLAINERS["gradcam"]()(one, scene()).masks for one in (classifier, plain)]
    torch.testing.assert_close(*masks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = around(lambda z: (scale * z).softmax(1), outputs=classifier.options()["outputs"])  # as it was kept
    torch.testing.assert_close(again.logits(scene()), plain.logits(scene()))


def test_what_is_no_softmax_by_name_is_taken_back_by_the_logarithm() -> None:
    with pytest.warns(UserWarning, match="ends in a softmax"):
        classifier = around(lambda z: z.exp() / z.exp().sum(1, keepdim=True))
    logits = classifier.logits(scene())
    torch.testing.assert_close(logits, around(lambda z: z).logits(scene()).log_softmax(1))


def test_labels_are_independent_of_each_other() -> None:
    classifier = around(lambda z: z, outputs="multilabel")
    logits = classifier.logits(scene())
    torch.testing.assert_close(classifier.probabilities(logits), logits.sigmoid())
    masks = EXPLAINERS["occlusion"](window=28, stride=28)(classifier, scene(), torch.tensor([0])).masks[0, 0]
    assert masks[44:60, 44:60].abs().max() < 1e-6 < 1e-3 < masks.max()  # the blue square says nothing of red
    softmax = EXPLAINERS["occlusion"](window=28, stride=28)(around(lambda z: z), scene(), torch.tensor([0])).masks
    assert softmax[0, 0, 44:60, 44:60].min() < -1e-3


def test_a_sigmoid_at_the_end_of_labels_is_taken_back() -> None:
    with pytest.warns(UserWarning, match="ends in a sigmoid"):
        classifier = around(lambda z: z.sigmoid(), outputs="multilabel")
    torch.testing.assert_close(classifier.logits(scene()), around(lambda z: z).logits(scene()))
    with pytest.warns(UserWarning, match="taken for logits: give outputs='multilabel'"):
        around(lambda z: z.sigmoid())


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda z: (z, z + 1), r"several entries could be the logits.*output=.*0 \(2, 3\), 1 \(2, 3\)"),
        (lambda z: {"a": z[:, :, None], "b": z.mean()}, r"no entry is known.*'a' \(2, 3, 1\), 'b' \(\)"),
        (lambda z: SimpleNamespace(last_hidden_state=z[:, None], pooler_output=z), "no entry is known"),
        (lambda z: z[:, :, None, None].expand(-1, -1, 8, 8), "as in segmentation: wrap it as torch.nn.Sequential"),
        (lambda z: z[:, :1], "outputs='binary'.*regression"),
        (lambda z: z[:, None], "one row of logits a picture"),
    ],
)
def test_what_is_no_row_of_logits_is_refused_with_the_remedy(end, message) -> None:
    with pytest.raises(ValueError, match=message):
        around(end)


def test_the_wrapping_that_is_advised_for_segmentation_works() -> None:
    maps = Ending(lambda z: z[:, :, None, None].expand(-1, -1, 8, 8))
    network = nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(network, mean=MEAN, std=STD, layers=["0.net.stage2"], image_size=SIZE)
    torch.testing.assert_close(classifier.logits(scene()), around(lambda z: z).logits(scene()))


def test_an_entry_is_chosen_by_name_or_place() -> None:
    wanted = around(lambda z: z).logits(scene())
    torch.testing.assert_close(around(lambda z: (z + 1, z), output=1).logits(scene()), wanted)
    torch.testing.assert_close(around(lambda z: {"a": z + 1, "b": z}, output="b").logits(scene()), wanted)
    with pytest.raises(ValueError, match=r"no tensor under output='c': it returns 'a' \(2, 3\)"):
        around(lambda z: {"a": z}, output="c")
    with pytest.raises(ValueError, match="expected outputs of auto, logits, binary"):
        around(lambda z: z, outputs="softmax")
    with pytest.raises(ValueError, match="expected probabilities, rows that sum to 1"):
        around(lambda z: z, outputs="probabilities")


# Functions, sessions, scripted networks


class Session:
    """What an ONNX session offers."""

    def __init__(self) -> None:
        self.network = Squares()

    def get_inputs(self) -> list[object]:
        return [SimpleNamespace(name="pixels")]

    def get_outputs(self) -> list[object]:
        return [SimpleNamespace(name="scores")]

    def run(self, names: object, fed: dict[str, object]) -> list[object]:
        with torch.no_grad():
            return [self.network(torch.from_numpy(fed["pixels"])).numpy()]


def black_boxes() -> dict[str, object]:
    network = Squares().eval()
    return {
        "function": torch.no_grad()(lambda x: network(x)),
        "session": Session(),
        "scripted": torch.jit.script(network),
    }


@pytest.mark.parametrize("kind", ["function", "session", "scripted"])
def test_what_has_no_layers_serves_explainers_that_ask_for_logits_alone(kind) -> None:
    network = black_boxes()[kind]
    for layers in (None, ["stage1"]):
        with pytest.raises(ValueError, match=r"give layers=\[\] for explainers that ask for logits alone.*wrap"):
            Classifier(network, mean=MEAN, std=STD, layers=layers, image_size=SIZE)
    classifier = Classifier(network, mean=MEAN, std=STD, layers=[], image_size=SIZE)
    masks = EXPLAINERS["occlusion"](window=28, stride=28)(classifier, scene(), torch.tensor([0])).masks
    assert share_of_red(masks) > 0.9
    assert EXPLAINERS["rise"](masks=8)(classifier, scene()).masks.isfinite().all()
    with pytest.raises(ValueError, match=r"reads none|needs gradients"):
        EXPLAINERS["gradcam"]()(classifier, scene())
    with pytest.raises(ValueError, match="reads none"):
        EXPLAINERS["scorecam"]()(classifier, scene())
    if kind != "scripted":
        with pytest.raises(ValueError, match="needs gradients, and none come back"):
            EXPLAINERS["gradient"]()(classifier, scene())
    with pytest.raises(ValueError, match="layer"):
        Masker.for_classifier(classifier, generator=Generator().manual_seed(0))


def test_a_network_of_more_inputs_is_refused_with_the_remedy() -> None:
    class Pair(nn.Module):
        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            return image

    with pytest.raises(ValueError, match=r"missing 1 required positional argument.*wrap it in a module whose forward"):
        Classifier(Pair(), mean=MEAN, std=STD, layers=[], image_size=SIZE)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module or a function"):
        as_module(3)


def test_percentages_and_other_shares_are_noticed() -> None:
    with pytest.warns(UserWarning, match="sum to 100 for every picture, as shares do"):
        around(lambda z: 100 * z.softmax(1))


def test_a_map_for_each_class_in_a_dictionary_is_told_how_to_be_wrapped() -> None:
    with pytest.raises(ValueError, match=r"'out' .*as in segmentation.*AdaptiveAvgPool2d"):
        around(lambda z: {"out": z[..., None, None].expand(-1, -1, 8, 8)})


@pytest.mark.parametrize("low", [-torch.inf, -1e9, -1e4])
def test_classes_that_are_masked_away_change_nothing_of_the_others(low) -> None:
    plain, classifier = around(lambda z: z), around(lambda z: torch.cat([z, torch.full((len(z), 2), low)], 1))
    torch.testing.assert_close(classifier.logits(scene())[:, :3], plain.logits(scene()))
    probabilities = classifier.probabilities(classifier.logits(scene()))
    torch.testing.assert_close(probabilities[:, :3], plain.probabilities(plain.logits(scene())))
    assert not probabilities[:, 3:].any()
    entropy = -(probabilities * classifier.logits(scene()).log_softmax(1)).sum(1)
    assert entropy.isfinite().all()
    for name in ("gradcam", "integrated_gradients", "occlusion"):
        one, other = (EXPLAINERS[name]()(each, scene()).masks for each in (classifier, plain))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_constant_is_centred_among_the_classes_that_are_not_masked_away() -> None:
    def end(z: Tensor) -> Tensor:
        return torch.cat([torch.zeros(len(z), 1), one_logit(z), torch.full((len(z), 1), -1e9)], 1)

    with pytest.warns(UserWarning, match="class 0 is a constant"):
        classifier = around(end)
    binary = around(one_logit, outputs="binary")
    torch.testing.assert_close(classifier.logits(scene())[:, :2], binary.logits(scene()))


@pytest.mark.parametrize("end", [lambda z: z > 0, lambda z: nn.functional.one_hot(z.argmax(1), 3)])
def test_decisions_are_no_logits(end) -> None:
    with pytest.raises(
        ValueError, match=r"expected logits from the network, got torch\.(bool|int64), as decisions are"
    ):
        around(end)


@pytest.mark.parametrize("layers", [None, ["stage1"]])
def test_layers_of_what_has_none_are_refused_with_the_way_out(layers) -> None:
    own = {"mean": MEAN, "std": STD, "image_size": SIZE}
    with pytest.raises(ValueError, match=r"a function has no layers: give layers=\[\]"):
        Classifier(lambda pictures: Squares()(pictures), layers=layers, **own)
    with pytest.raises(ValueError, match=r"a scripted network cannot be read inside: give layers=\[\]"):
        Classifier(torch.jit.script(Squares().eval()), layers=layers, **own)
