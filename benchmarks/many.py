"""Whether 100,200 pictures in shards come once each, however many processes and workers read them, and in what memory.

    python benchmarks/many.py [--pictures 100200] [--shards 20]

Writes pictures of 8 pixels into shards, and lets 1, 2 and 3 processes with 0, 1 and 2 workers each read a pass of
training (167 batches of 600, in its drawn order, by shares of every batch). Counts every picture over all processes,
and looks at the resident memory of each process at every tenth of the pass. Writes results/benchmarks/many.json.
"""

import argparse
import io
import os
import tarfile
import time
from collections.abc import Iterator
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from side_by_side import write

from salmask.data import Batch, open_data, training_batches
from salmask.data.sample import Labelled
from salmask.data.streams import Share

BATCH, KINDS, TENTHS = 600, 64, 10


def shards(root: Path, count: int, number: int) -> str:
    """Write pictures of 8 pixels, of few kinds, as their numbers matter here; return the spec."""
    contents = []
    for kind in range(KINDS):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(kind).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        contents.append(buffer.getvalue())
    for shard in range(number):
        with tarfile.open(root / f"{shard:03d}.tar", "w") as archive:
            for picture in range(shard, count, number):
                for ending, content in (("jpg", contents[picture % KINDS]), ("cls", b"%d" % (picture % 10))):
                    entry = tarfile.TarInfo(f"{picture:08d}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return f"wds:{root}/{{000..{number - 1:03d}}}.tar"


def memory() -> float:
    """Return the resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def counted(batches: Iterator[Batch], total: int, steps: int) -> tuple[np.ndarray, list[float]]:
    """Return how often each picture came, and the memory at each tenth of the steps."""
    times, used = np.zeros(total, dtype=np.int64), []
    for step, batch in enumerate(batches):
        np.add.at(times, [int(name.rpartition("/")[2][:8]) for name in batch.ids], 1)
        if step * TENTHS // steps == len(used):
            used.append(memory())
    return times, [*used, memory()]


def read(data: Labelled, share: Share, workers: int, answers: object) -> None:
    """Read this process's share of a pass; hand over the counts and the memory."""
    torch.set_num_threads(1)
    steps = len(data) // BATCH
    training = islice(training_batches(data, batch_size=BATCH, seed=0, workers=workers, share=share), steps)
    answers.put((share.rank, counted(training, len(data), steps)))


def together(data: Labelled, processes: int, workers: int) -> dict[str, float]:
    context = get_context("fork")
    answers = context.Queue()
    start = time.perf_counter()
    readers = [
        context.Process(target=read, args=(data, Share(rank, processes), workers, answers)) for rank in range(processes)
    ]
    for reader in readers:
        reader.start()
    parts = dict(answers.get() for _ in readers)
    for reader in readers:
        reader.join()
    times = sum(part[0] for part in parts.values())
    row = {
        "lost": int((times == 0).sum()),
        "doubled": int((times > 1).sum()),
        "memory at a tenth, MiB": parts[0][1][1],
        "memory at the end, MiB": parts[0][1][-1],
        "most growth of a process, MiB": max(used[-1] - used[1] for _, used in parts.values()),
        "seconds": time.perf_counter() - start,
    }
    print(
        f"{processes} processes, {workers} workers: " + ", ".join(f"{name} {value:.5g}" for name, value in row.items())
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_200)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="6,000 pictures")
    given = parser.parse_args()
    given.pictures = 6000 if given.quick else given.pictures
    with TemporaryDirectory() as folder:
        spec = shards(Path(folder), given.pictures, given.shards)
        start = time.perf_counter()
        data = open_data(spec, "train")
        found = time.perf_counter() - start
        rows = {f"{p} processes, {w} workers": together(data, p, w) for p, w in product((1, 2, 3), (0, 1, 2))}
    wrong = sum(row["lost"] + row["doubled"] for row in rows.values())
    rows["looking through the shards"] = {"seconds": found, "pictures": len(data)}
    write("many", {**vars(given), "device": "cpu", "batch": BATCH}, rows, {"ratio": wrong, "target": 0})


if __name__ == "__main__":
    main()
