"""In what networks end, and what they do to pictures themselves: noticed where it is there, and only there."""

import warnings

import pytest
import torch
from test_matrix import MEAN, SIZE, STD, Squares, scene
from torch import Tensor, nn

from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS


class Ending(nn.Module):
    """The network that counts colours, with something done to its pictures and its logits."""

    def __init__(self, end=lambda z: z, begin=lambda x: x) -> None:
        super().__init__()
        self.net, self.end, self.begin = Squares(), end, begin

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.net(self.begin(x)))


def around(end, **options) -> Classifier:
    given = {"mean": MEAN, "std": STD, "layers": ["net.stage1", "net.stage2"], "image_size": SIZE, **options}
    return Classifier(Ending(end), **given)


def one_logit(z: Tensor) -> Tensor:
    return z[:, 2:] - z[:, :1]


@pytest.mark.parametrize("outputs", ["binary", "multilabel"])
def test_logits_between_0_and_1_are_no_sigmoid_that_nobody_has_called(outputs) -> None:
    def end(z: Tensor) -> Tensor:
        squashed = 0.5 + z.tanh() / 4
        return squashed[:, :1] if outputs == "binary" else squashed

    with pytest.warns(UserWarning, match="taken for logits, for no sigmoid has made it"):
        classifier = around(end, outputs=outputs)
    raw = classifier.network((scene() - classifier.mean) / classifier.std)
    expected = torch.cat([-raw / 2, raw / 2], 1) if outputs == "binary" else raw
    torch.testing.assert_close(classifier.logits(scene()), expected)


def test_a_function_is_taken_at_its_values_for_nobody_sees_its_sigmoid() -> None:
    network = Ending(lambda z: z[:, :1].sigmoid())
    with pytest.warns(UserWarning, match="ends in a sigmoid"):
        classifier = Classifier(
            lambda x: network(x).detach().clone(), mean=MEAN, std=STD, layers=[], image_size=SIZE, outputs="binary"
        )
    z = network.net((scene() - classifier.mean) / classifier.std)[:, :1]
    torch.testing.assert_close(classifier.logits(scene()), torch.cat([-z / 2, z / 2], 1), rtol=1e-3, atol=1e-3)


SURE = 3000.0
ENDINGS = {
    "sigmoid, squeezed": ("binary", lambda z: (SURE * one_logit(z)).sigmoid().squeeze(1), one_logit),
    "softmax, copied": ("auto", lambda z: (SURE * z).softmax(1).clone(), lambda z: z),
    "softmax of maps": ("auto", lambda z: (SURE * z)[..., None, None].softmax(1).flatten(1), lambda z: z),
    "log-softmax": ("auto", lambda z: (SURE * z).log_softmax(1), lambda z: z),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_an_ending_is_taken_back_where_the_network_is_sure(name) -> None:
    outputs, end, plain_end = ENDINGS[name]
    with pytest.warns(UserWarning, match="it is taken back"):
        classifier = around(end, outputs=outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = around(lambda z: SURE * plain_end(z), outputs="binary" if outputs == "binary" else "logits")
    torch.testing.assert_close(classifier.logits(scene()), plain.logits(scene()))
    for explainer in ("gradcam", "gradient"):
        masks = [EXPLAINERS[explainer]()(one, scene()).masks for one in (classifier, plain)]
        torch.testing.assert_close(*masks)
        assert float(masks[0].abs().max()) > 0


def test_a_network_of_log_probabilities_is_kept_as_one() -> None:
    """A run builds its network again by the options that it has kept."""
    with pytest.warns(UserWarning, match="log-softmax"):
        classifier = around(lambda z: z.log_softmax(1))
    again = around(lambda z: z.log_softmax(1), **classifier.options())
    torch.testing.assert_close(again.logits(scene()), classifier.logits(scene()))


def test_logits_that_are_not_a_number_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN for every picture"):
        around(lambda z: z * torch.nan)
    classifier = around(lambda z: z)
    classifier.network.end = lambda z: z * torch.nan
    for name in ("gradcam", "gradient", "occlusion", "rise"):
        with pytest.raises(ValueError, match="the network returns NaN for a picture"):
            EXPLAINERS[name]()(classifier, scene())


def test_a_network_that_divides_by_the_spread_of_a_picture_is_taken() -> None:
    network = Ending(begin=lambda x: (x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), keepdim=True))
    classifier = Classifier(network, mean=[0.0] * 3, std=[1.0] * 3, layers=None, image_size=SIZE)
    assert classifier.logits(scene()).isfinite().all()
    assert EXPLAINERS["gradcam"]()(classifier, scene()).masks.isfinite().all()


def test_a_network_that_repeats_one_channel_itself_takes_one() -> None:
    network = Ending(begin=lambda x: x.repeat(1, 3, 1, 1))
    classifier = Classifier(network, mean=[0.5], std=[0.25], layers=["net.stage2"], image_size=SIZE)
    assert classifier.logits(scene()[:, :1]).shape == (1, 3)


def test_the_order_in_which_layers_are_registered_says_nothing_of_channels() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.stem = nn.Conv2d(8, 4, 1), nn.Conv2d(3, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).relu()).mean((2, 3))

    assert Classifier(HeadFirst(), mean=MEAN, std=STD, layers=None, image_size=SIZE).num_classes == 4


class Normalising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def test_pictures_that_would_be_normalised_twice_are_told_of() -> None:
    network = nn.Sequential(Normalising(), Squares())
    with pytest.warns(UserWarning, match=r"std of its own \(0\).*give mean \(0, 0, 0\) and std \(1, 1, 1\)"):
        Classifier(network, mean=MEAN, std=STD, layers=None, image_size=SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = Classifier(network, mean=[0.0] * 3, std=[1.0] * 3, layers=["1.stage2"], image_size=SIZE)
        plain = Classifier(network[1], mean=MEAN, std=STD, layers=["stage2"], image_size=SIZE)
    torch.testing.assert_close(once.logits(scene()), plain.logits(scene()))
