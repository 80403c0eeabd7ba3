"""Generators keyed by a seed and what is drawn for: the same key gives the same numbers, whatever else is drawn."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["draw_from", "drawing", "drawing_on", "generator_for", "seed_of", "undisturbed"]


def generator_for(seed: int, image: str, purpose: str = "") -> torch.Generator:
    """Return the CPU generator of one image: the same for every batch size, order, process and machine.

    The state is the BLAKE2b hash of (seed, purpose, image id); `purpose` separates the draws of two metrics.
    """
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{image}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@contextmanager
def drawing(*key: int) -> Iterator[None]:
    """Let torch's global CPU generator draw from `key` inside the block, and leave it as it was found."""
    with undisturbed():
        draw_from(seed_of(*key))
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave torch's global CPU generator as it was found."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def seed_of(*key: int) -> int:
    """Return the seed that a key stands for."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def draw_from(seed: int) -> None:
    """Let torch's global CPU generator draw from a seed from now on; inside `undisturbed`."""
    # Not torch.manual_seed, which would set the generators of the accelerators too.
    torch.default_generator.manual_seed(seed)


@contextmanager
def drawing_on(device: torch.device, *key: int) -> Iterator[None]:
    """Let layers that draw from torch's global generators, such as dropout, draw from `key` on a device and the CPU."""
    cuda = device.type == "cuda"
    with drawing(*key), torch.random.fork_rng(devices=[device] if cuda else []):
        if cuda:
            torch.cuda.manual_seed(int(torch.randint(2**62, ())))
        yield
