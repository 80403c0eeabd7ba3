"""Networks by name: a function of one's own that fails is told of in one line."""

import pytest

from salmask.classifier.named import own_network


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
