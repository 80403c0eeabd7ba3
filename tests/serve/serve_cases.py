"""What the tests of the page share: a run's folder of a small network, pictures on the disk, a bomb."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator

from salmask.masker import Masker
from salmask.training.run import load_classifier, save_run

NETWORK = """
import torch
from conftest import SmallNet

def build():
    torch.manual_seed(7)
    names = ["cat <b>", "dog & co", "plane", "ship"]
    return SmallNet(), {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "image_size": 32, "classes": names}
"""


def run_folder(folder: Path) -> Path:
    """Write a run of a small network, as `salmask train` leaves it."""
    (folder / "page_net.py").write_text(NETWORK)
    loaded = load_classifier(f"{folder / 'page_net.py'}:build")
    (folder / "run").mkdir()
    masker = Masker.for_classifier(loaded.classifier, generator=Generator().manual_seed(0))
    with torch.no_grad():
        masker.final.weight *= 20  # masks that differ between pictures, and from one half
        loaded.classifier.network.head.weight *= 30  # and a network that decides
    save_run(folder / "run", masker, loaded, {})
    return folder / "run"


def paint(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """Write a picture of its own for each seed: blocks of colours, width and height given."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def bomb(path: Path, side: int = 60_000) -> Path:
    """Write a PNG of a few kilobytes whose header promises 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    lines = zlib.compress(bytes(side // 8 * 100), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b""))
    return path
