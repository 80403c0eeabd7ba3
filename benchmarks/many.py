"""Whether 100,200 pictures in shards come once each, however many processes and workers read them, and in what memory.

    python benchmarks/many.py [--reader wds|hf-dataset] [--layouts 1x0 3x2 ...] [--pictures 100200] [--shards 20]

Writes pictures of 8 pixels into tar or parquet files, and lets 1, 2 and 3 processes with 0, 1 and 2 workers each read a
pass of training (167 batches of 600, in its drawn order, by shares of every batch); a layout is PROCESSESxWORKERS.
Counts every picture over all processes, and looks at every tenth of the pass at the memory of each process together
with its workers: what is their own, without the files that are mapped. Writes results/benchmarks/many-READER.json.
"""

import argparse
import io
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


def contents() -> list[bytes]:
    """Return pictures of 8 pixels, of few kinds, as it is their numbers that matter here."""
    written = []
    for kind in range(KINDS):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(kind).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        written.append(buffer.getvalue())
    return written


def tars(root: Path, count: int, number: int) -> str:
    """Write shards of WebDataset; return the spec."""
    pictures = contents()
    for shard in range(number):
        with tarfile.open(root / f"{shard:03d}.tar", "w") as archive:
            for picture in range(shard, count, number):
                for ending, content in (("jpg", pictures[picture % KINDS]), ("cls", b"%d" % (picture % 10))):
                    entry = tarfile.TarInfo(f"{picture:08d}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return f"wds:{root}/{{000..{number - 1:03d}}}.tar"


def tables(root: Path, count: int, number: int) -> str:
    """Write parquet files; return the spec. A picture's number is that of its row."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = root / "cache"
    pictures, each = contents(), -(-count // number)
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for file in range(number):
        numbers = range(file * each, min(count, (file + 1) * each))
        rows = {
            "image": [{"bytes": pictures[one % KINDS], "path": None} for one in numbers],
            "label": [one % 10 for one in numbers],
        }
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(root / f"train-{file:03d}.parquet")
    return f"hf-dataset:{root}"


WRITERS = {"wds": tars, "hf-dataset": tables}


def memory() -> float:
    """Return the memory of this process and its workers that is their own, in MiB."""
    workers = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
    return sum(owned(pid) for pid in ("self", *workers)) / 2**10


def owned(pid: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def counted(batches: Iterator[Batch], total: int, steps: int) -> tuple[np.ndarray, list[float]]:
    """Return how often each picture came, and the memory at each tenth of the steps."""
    times, used = np.zeros(total, dtype=np.int64), []
    for step, batch in enumerate(batches):
        np.add.at(times, [int(name.rpartition("/")[2][:8]) for name in batch.ids], 1)
        if step * TENTHS // steps == len(used) or step == steps - 1:  # after the last, there are no workers
            used.append(memory())
    return times, used


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
        f"{processes} processes, {workers} workers: " + ", ".join(f"{name} {value:.5g}" for name, value in row.items()),
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", choices=WRITERS, default="wds")
    parser.add_argument("--layouts", nargs="+", default=[f"{p}x{w}" for p, w in product((1, 2, 3), (0, 1, 2))])
    parser.add_argument("--pictures", type=int, default=100_200)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="6,000 pictures")
    given = parser.parse_args()
    given.pictures = 6000 if given.quick else given.pictures
    with TemporaryDirectory() as folder:
        spec = WRITERS[given.reader](Path(folder), given.pictures, given.shards)
        start = time.perf_counter()
        data = open_data(spec, "train")
        found = time.perf_counter() - start
        layouts = [tuple(map(int, layout.split("x"))) for layout in given.layouts]
        rows = {f"{p} processes, {w} workers": together(data, p, w) for p, w in layouts}
    wrong = sum(row["lost"] + row["doubled"] for row in rows.values())
    rows["looking through the shards"] = {"seconds": found, "pictures": len(data)}
    write(f"many-{given.reader}", {**vars(given), "device": "cpu", "batch": BATCH}, rows, {"ratio": wrong, "target": 0})


if __name__ == "__main__":
    main()
