"""What goes into a classifier: pictures in [0, 1] with as many channels as it has a mean for."""

from torch import Tensor, nn

__all__ = ["check_images", "check_mean", "first_channels"]

_ROUNDING = 1e-3


def check_images(images: Tensor, channels: int) -> None:
    """Raise ValueError for what is no float batch (B, C, H, W) of values in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"expected images of shape (B, {channels}, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected float images in [0, 1], got {images.dtype}: divide 8-bit pictures by 255")
    if not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if low != low or high != high:
        raise ValueError("expected images in [0, 1], got NaN in them: look at how they are read or scaled")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        remedy = (
            "they seem to be normalised already: leave that to the classifier, which knows mean and std"
            if low < 0
            else "divide by 255"
            if high > 2
            else "clamp or rescale them"
        )
        raise ValueError(f"expected images in [0, 1], got values from {low:.3g} to {high:.3g}: {remedy}")


def check_mean(mean: list[float], std: list[float], network: nn.Module) -> None:
    """Raise ValueError where mean and std are not one number a channel that the network reads."""
    if len(mean) != len(std) or not mean:
        raise ValueError(f"expected mean and std of one number a channel, got {len(mean)} and {len(std)}")
    if not all(value > 0 for value in std):
        raise ValueError(f"expected a std above 0 for every channel, got {tuple(std)}")
    reads = first_channels(network)
    if reads is not None and reads != len(mean):
        raise ValueError(
            f"mean and std are of {len(mean)} channel{'s' * (len(mean) > 1)}, but the network's first convolution "
            f"reads {reads}: give mean and std of {reads}, or wrap the network so that it takes {len(mean)}"
        )


def first_channels(network: nn.Module) -> int | None:
    """Return how many channels the first convolution that the network registers reads, None without one."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return None if first is None else first.in_channels
