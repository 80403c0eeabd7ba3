"""Networks by name: a function of one's own that fails is told of in one line."""

import socket
from threading import Event
from unittest.mock import MagicMock

import pytest
import timm
from huggingface_hub import constants

from salmask.classifier import Classifier, reach
from salmask.classifier.named import named_network, own_network


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def net():\n    raise RuntimeError('boom')\n", "called without arguments, ends in RuntimeError: boom"),
        ("def net(width):\n    return width\n", "called without arguments, ends in TypeError"),
        ("def net():\n    return 5\n", "is to return a torch.nn.Module"),
        ("import nowhere_at_all\n", "cannot be imported"),
        ("def other():\n    return 5\n", "has no function 'net': it has other"),
    ],
)
def test_a_function_that_gives_no_network_is_refused_by_name(tmp_path, code, message) -> None:
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        own_network(f"{tmp_path / 'own.py'}:net")


@pytest.fixture
def no_hub(monkeypatch):
    """A hub at an address where nothing answers, and no proxy."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    monkeypatch.setattr(reach, "getproxies", dict)


def test_a_hub_out_of_reach_is_asked_once_and_not_six_times(no_hub, monkeypatch) -> None:
    def create(name, **options):
        assert constants.HF_HUB_OFFLINE  # what has been downloaded is still found
        raise OSError("not in the cache")

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"weights of test_resnet cannot be had \(not in the cache\): give timm:test_"):
        named_network("timm", "test_resnet")
    assert not constants.HF_HUB_OFFLINE
    assert socket.getdefaulttimeout() is None


def test_what_answers_is_reached_and_a_proxy_is_trusted(no_hub, monkeypatch) -> None:
    assert not reach.reachable(constants.ENDPOINT, patience=1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert reach.reachable(f"http://127.0.0.1:{server.getsockname()[1]}", patience=5.0)
    monkeypatch.setattr(reach, "getproxies", lambda: {"http": "http://proxy"})
    assert reach.reachable(constants.ENDPOINT, patience=1.0)


def test_a_name_that_is_looked_up_without_end_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(reach, "getproxies", dict)
    slow = MagicMock(side_effect=lambda *args, **options: Event().wait(1) or MagicMock())
    monkeypatch.setattr(reach.socket, "create_connection", slow)
    assert not reach.reachable("https://hub.example", patience=0.05)


def test_the_stages_of_levit_lie_as_its_own_description_says() -> None:
    """Its tokens, 196, 49 and 16, have no class token and no patch embedding to be asked; its strides are known."""
    network = timm.create_model("levit_128s", num_classes=3).eval()
    classifier = Classifier(network, mean=[0.5] * 3, std=[0.5] * 3, layers=None)
    assert [layer.shape[1:] for layer in classifier.describe()][-3:] == [(14, 14), (7, 7), (4, 4)]
    assert classifier.layers[-1] == "stages.2"
