"""How fast pictures are read from folders, WebDataset shards and parquet, against a plain torch DataLoader.

    python benchmarks/readers.py [--quick] [--pictures 512] [--size 256] [--workers 0] [--rounds 5]

All read the same JPEG bytes in a shuffled order, resize to 224 x 224 and make batches of 32 floats in [0, 1] with their
labels. The plain DataLoader opens a file a picture with Pillow, resizes with torchvision and stacks. All are timed in
turns within one run; the ratio is that of the medians. The target is .9 of its rate, or 1.11 of its time. Writes
results/benchmarks/readers.json.
"""

import argparse
import io
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as Picture
from PIL import Image
from side_by_side import compare, describe, write
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from salmask.data import Squash, open_data, training_batches

TARGET, SIDE, BATCH = 0.9, 224, 32


class Plain(torch.utils.data.Dataset):
    """What everybody writes first: pictures and labels, as torchvision's ImageFolder has them."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.jpg"))
        self.labels = [int(file.parent.name[1:]) for file in self.files]
        self.resize = v2.Resize((SIDE, SIDE), antialias=True)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = np.array(Image.open(self.files[index]).convert("RGB"))
        return self.resize(torch.from_numpy(picture).permute(2, 0, 1)), self.labels[index]


def jpegs(count: int, size: int) -> list[bytes]:
    """Return pictures of clouds, which compress about as photographs do."""
    files = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        small = torch.rand(1, 3, size // 8, size // 8, generator=generator)
        pixels = F.interpolate(small, (size, size), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray((pixels * 255).byte().numpy()).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def spread(files: list[bytes], root: Path) -> dict[str, str]:
    """Write the pictures in all layouts; return name -> spec."""
    for number, content in enumerate(files):
        folder = root / "folder" / "train" / f"c{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(content)
    for shard in range(8):
        with tarfile.open(root / f"{shard:03d}.tar", "w") as archive:
            for number in range(shard, len(files), 8):
                for ending, content in (("jpg", files[number]), ("cls", str(number % 4).encode())):
                    entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    kinds = Features({"image": Picture(), "label": ClassLabel(names=[f"c{k}" for k in range(4)])})
    rows = {
        "image": [{"bytes": content, "path": None} for content in files],
        "label": [n % 4 for n in range(len(files))],
    }
    Dataset.from_dict(rows, features=kinds).to_parquet(root / "train.parquet")
    return {
        "folder": str(root / "folder"),
        "webdataset": f"wds:{root}/{{000..007}}.tar",
        "parquet": f"hf-dataset:{root / 'train.parquet'}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="64 pictures, two rounds")
    given = parser.parse_args()
    if given.quick:
        given.pictures, given.rounds = 64, 2
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        specs = spread(jpegs(given.pictures, given.size), Path(folder))
        plain = Plain(Path(folder) / "folder")
        steps = given.pictures // BATCH

        def read_plain() -> None:
            loader = DataLoader(plain, BATCH, shuffle=True, num_workers=given.workers)
            for pictures, _labels in loader:
                images = pictures.float().div_(255)  # held until the next batch is there, as training holds it
            assert len(images) == BATCH

        def read(spec: str) -> Callable[[], None]:
            data = open_data(spec, "train", transform=Squash(SIDE))

            def once() -> None:
                for _ in islice(training_batches(data, batch_size=BATCH, seed=0, workers=given.workers), steps):
                    pass

            return once

        seconds = compare({"plain": read_plain, **{n: read(spec) for n, spec in specs.items()}}, rounds=given.rounds)
    rows = describe(seconds, unit="plain")
    for name, row in rows.items():
        print(f"{name}: {1 / row['ratio']:.2f} of the plain DataLoader's rate, {given.pictures / row['median']:.0f}/s")
    settings = {**vars(given), "device": "cpu"}
    write("readers", settings, rows, {"ratio": max(row["ratio"] for row in rows.values()), "target": 1 / TARGET})


if __name__ == "__main__":
    main()
