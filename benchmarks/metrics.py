"""Box and pixel scores against the published evaluators' way of working, and 50,000 maps from one file.

    python benchmarks/metrics.py                        ratios, written to results/benchmarks/metrics.json
    python benchmarks/metrics.py --maps 50000           and the stream: time and peak memory

The published ways are written here anew from their description: MaxBoxAccV2 by one threshold and one contour call per
map and threshold (1000 of them), PxAP by two histograms of numpy per map, LE, OM and F1 by one dense picture-sized
array per box. Results are compared before times are: equal hits, equal histograms, F1 to 1e-5.
The published evaluators use one process. Ours are timed with one process and one thread against them, in CPU seconds,
in turn, the least of several rounds; and with as many processes as there are cores, of which the busiest counts.
Reading the maps from the disk is in no time but the stream's. "Floor" is what the box of a mask costs at the least if
all components are labelled: sum, comparison and labelling of every map, each by its one bare call.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import scipy.ndimage as ndimage
import torch
from torch.nn import functional as F

from salmask.boxes import above_mean, mask_boxes
from salmask.metrics import METRICS, Case
from salmask.metrics.wsol import DELTAS, TAUS, box_hits, minmax, pixel_histograms

SIZE = 224
CHUNK = 64
ROUNDS = 4
KINDS = ("masker", "cam", "blobs", "hard", "gradient")
OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "metrics.json"


# --- inputs --------------------------------------------------------------------------------------------------------


def made_up_map(kind: str, draw: np.random.Generator) -> np.ndarray:
    """Return a map of a usual kind, 224 x 224 in [0, 1]: a masker's (56, nearest), a CAM (7, bilinear) and others."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    blob = np.zeros((SIZE, SIZE))
    for _ in range(draw.integers(1, 4)):
        cx, cy, sx, sy = *draw.uniform(0.2, 0.8, 2), *draw.uniform(0.08, 0.3, 2)
        blob = np.maximum(blob, draw.uniform(0.6, 1) * np.exp(-(((x - cx) / sx) ** 2) - ((y - cy) / sy) ** 2))
    if kind == "cam":
        small = torch.from_numpy(blob[16::32, 16::32] + 0.2 * draw.random((7, 7)))[None, None]
        return F.interpolate(small, (SIZE, SIZE), mode="bilinear")[0, 0].numpy() / 1.2
    if kind == "masker":
        logits = 14 * (blob[2::4, 2::4] - 0.45) + 1.5 * draw.standard_normal((56, 56))
        return (1 / (1 + np.exp(-logits))).repeat(4, 0).repeat(4, 1)
    if kind == "hard":
        return (blob > 0.5).astype(float)
    if kind == "gradient":  # a smoothed gradient map
        noise = np.abs(ndimage.gaussian_filter(draw.standard_normal((SIZE, SIZE)), 4.48)) * (0.2 + blob)
        return noise / noise.max()
    return blob


def inputs(count: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    draw = np.random.default_rng(seed)
    maps = np.stack([made_up_map(KINDS[i % len(KINDS)], draw) for i in range(count)]).astype(np.float32)
    boxes = []
    for _ in range(count):
        centre, half = draw.uniform(60, 164, (draw.integers(1, 3), 2)), draw.uniform(25, 90, 2)
        boxes.append(torch.from_numpy(np.concatenate([centre - half, centre + half], 1).round().astype(np.float32)))
    pixels = [torch.from_numpy((ndimage.gaussian_filter(m, 6) > 0.3).astype(np.uint8)) for m in maps]
    return torch.from_numpy(maps)[:, None], boxes, pixels


# --- the published way of working ----------------------------------------------------------------------------------


def published_hits(map_: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return hits (deltas, taus) of one map by one threshold and one contour call per tau."""
    map8, found, number = (map_ * 255).astype(np.uint8), [], []
    height, width = map8.shape
    for tau in TAUS:
        _, above = cv2.threshold(map8, int(tau * np.max(map8)), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        boxes = [[0, 0, 0, 0]] if not contours else []
        for contour in contours:
            x, y, w, h = cv2.boundingRect(contour)
            boxes.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
        found.append(np.asarray(boxes))
        number.append(len(boxes))
    boxes = np.concatenate(found)
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    meet = np.clip(high - low + 1, 0, None).prod(2)
    area, other = ((b[:, 2] - b[:, 0] + 1) * (b[:, 3] - b[:, 1] + 1) for b in (boxes, truth))
    overlap = meet / (area[:, None] + other[None] - meet)
    best, start = [], 0
    for count in number:
        best.append(np.max(overlap[start : start + count]))
        start += count
    return np.asarray(best)[None] >= np.asarray(DELTAS)[:, None]


def published_histograms(map_: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    edges = np.append(TAUS, [1.0, 2.0, 3.0])
    return np.stack([np.histogram(map_[pixels == value], bins=edges)[0] for value in (0, 1)])


def published_box(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Return the box of one mask: label all components, take the largest."""
    labels, _ = ndimage.label((mask > mask.mean()).numpy())
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    component = labels == sizes.argmax()
    columns, rows = np.where(component.any(0))[0], np.where(component.any(1))[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def published_box_scores(mask: torch.Tensor, box: tuple, boxes: torch.Tensor) -> tuple[float, float]:
    """Return F1 and the best hit of one mask and its box, by one dense array per box."""
    x0, y0, x1, y1 = box
    rectangle = torch.zeros(mask.shape)
    rectangle[y0:y1, x0:x1] = 1
    scores, hits = [], []
    for x0, y0, x1, y1 in boxes.int().tolist():
        inside = torch.zeros(mask.shape)
        inside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
        area = (x1 - x0) * (y1 - y0)
        mass = (mask * inside).sum()
        precision, recall = mass / (mask.sum() + 1e-6), mass / area
        scores.append(float(2 * precision * recall / (precision + recall + 1e-6)))
        meet = (rectangle * inside).sum()
        hits.append(float(meet / (rectangle.sum() + area - meet)) > 0.5)
    return max(scores), float(max(hits))


# --- ours ----------------------------------------------------------------------------------------------------------


def ours_wsol(maps: torch.Tensor, boxes: list, pixels: list) -> tuple[np.ndarray, np.ndarray]:
    scores = minmax(maps)
    return box_hits(scores, boxes)[:, :, :-1].numpy(), pixel_histograms(scores, pixels).numpy()


def _case(maps: torch.Tensor, boxes: list) -> Case:
    count = len(maps)
    targets, correct = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool)
    return Case(maps, targets, [str(i) for i in range(count)], boxes=boxes, correct=correct)


def _box_scores(case: Case) -> tuple[np.ndarray, ...]:
    return tuple(METRICS[name](case).numpy() for name in ("f1", "le", "om"))


def _chunks(maps: torch.Tensor, boxes: list) -> list[tuple[torch.Tensor, list]]:
    """Return (maps, boxes) of as many maps at a time as `salmask score` takes."""
    return [(maps[k : k + CHUNK], boxes[k : k + CHUNK]) for k in range(0, len(maps), CHUNK)]


def _joined(parts: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def ours_boxes(maps: torch.Tensor, boxes: list, pixels: list) -> tuple[np.ndarray, ...]:
    return _joined([_box_scores(_case(*part)) for part in _chunks(maps, boxes)])


def theirs_boxes(maps: torch.Tensor, boxes: list, pixels: list) -> tuple[np.ndarray, ...]:
    rows = [published_box_scores(m[0], published_box(m[0]), b) for m, b in zip(maps, boxes, strict=True)]
    f1, hit = np.array(rows).T
    return f1, 1 - hit, 1 - hit


def known_boxes(maps: torch.Tensor, boxes: list, pixels: list) -> tuple[list[tuple[Case, dict]]]:
    """Return cases whose masks' boxes are known, each with what it then remembers."""
    cases = [_case(*part) for part in _chunks(maps, boxes)]
    return ([(case, case.memo | {("mask_boxes", above_mean, False): mask_boxes(case.masks)}) for case in cases],)


def ours_after_the_box(known: list[tuple[Case, dict]]) -> tuple[np.ndarray, ...]:
    for case, memo in known:
        case.memo.clear()
        case.memo.update(memo)
    return _joined([_box_scores(case) for case, _ in known])


def box_scores_alone(data: tuple, pool: ProcessPoolExecutor | None, cores: int) -> dict:
    """Compare what follows the box of a mask: one dense array per box, against closed forms and sums of crops.

    The maps are one chunk a process, as warm in the processor's cache as the search for their boxes leaves them.
    Ours has the mask's sum from the look that found its mean and so its box; theirs sums the mask once a box.
    """
    alone = tuple(part[:CHUNK] for part in data)
    maps, boxes, _ = alone
    (known,) = known_boxes(*alone)
    found = mask_boxes(maps).int().tolist()

    def theirs(*_: object) -> tuple[np.ndarray, ...]:
        rows = [published_box_scores(m[0], tuple(box), b) for m, box, b in zip(maps, found, boxes, strict=True)]
        f1, hit = np.array(rows).T
        return f1, 1 - hit, 1 - hit

    seconds, slow = in_turn(lambda *_: ours_after_the_box(known), theirs, alone)
    row = {
        "maps": len(maps),
        "boxes": int(sum(len(b) for b in boxes)),
        "published_cpu_ms_per_map": 1e3 * slow / len(maps),
        "ours_cpu_ms_per_map": 1e3 * seconds / len(maps),
        "ratio_one_process": slow / seconds,
    }
    if pool is not None:
        chunks = tuple(part[: CHUNK * cores] for part in data)
        times = _together(ours_after_the_box, chunks, pool, cores, known_boxes)
        row |= _row_of_all(times, slow * cores, len(maps) * cores, cores)
    print("boxes alone:", json.dumps(row, indent=1), flush=True)
    return row


def floor_of_boxes(maps: torch.Tensor, boxes: list, pixels: list) -> None:
    for one in maps[:, 0].numpy():
        above = one > cv2.sumElems(one)[0] / one.size
        cv2.connectedComponents(above.view(np.uint8), connectivity=4, ltype=cv2.CV_16U)


def theirs_wsol(maps: torch.Tensor, boxes: list, pixels: list) -> tuple[np.ndarray, np.ndarray]:
    scores = minmax(maps)[:, 0].numpy()
    truth = [np.clip(b.numpy().astype(float), 0, SIZE - 1) for b in boxes]
    hits = np.stack([published_hits(m, t) for m, t in zip(scores, truth, strict=True)])
    return hits, np.stack([published_histograms(m, p.numpy()) for m, p in zip(scores, pixels, strict=True)])


def timed(work: Callable, *arguments, least: float = 0.3) -> tuple[float, object]:
    """Return CPU seconds of the fastest of several calls, and the result."""
    best, spent, result = np.inf, 0.0, None
    while spent < least or best == np.inf:
        start = time.process_time()
        result = work(*arguments)
        seconds = time.process_time() - start
        best, spent = min(best, seconds), spent + seconds
    return best, result


def in_turn(ours: Callable, theirs: Callable, data: tuple) -> tuple[float, float]:
    """Return the least CPU seconds of ours and of theirs, called in turn, so that other programs disturb both alike."""
    mine = other = np.inf
    for _ in range(ROUNDS):
        seconds, result = timed(ours, *data, least=0.1)
        slow, expected = timed(theirs, *data, least=0)
        mine, other = min(mine, seconds), min(other, slow)
    for one, two in zip(result, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    return mine, other


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _as_it_is(*data: object) -> tuple:
    return data


def _share(work: Callable, prepare: Callable, folder: Path, rows: list[int], boxes: list) -> float:
    """Score some maps of a file; return the CPU seconds that it took this process after reading and preparing them."""
    maps, pixels = (np.load(folder / f"{name}.npy", mmap_mode="r")[rows] for name in ("maps", "pixels"))
    given = prepare(torch.from_numpy(maps), boxes, list(torch.from_numpy(pixels)))
    return timed(work, *given, least=0.05)[0]


def _together(
    work: Callable, data: tuple, pool: ProcessPoolExecutor, cores: int, prepare: Callable = _as_it_is
) -> tuple[float, float]:
    """Return wall seconds, and CPU seconds of the busiest process, of as many processes as cores, at once."""
    shares = [list(range(k, len(data[0]), cores)) for k in range(cores)]
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name) / "maps.npy", data[0].numpy())
        np.save(Path(name) / "pixels.npy", torch.stack(data[2]).numpy())
        best, busiest = np.inf, np.inf
        for _ in range(2 * ROUNDS):
            start = time.perf_counter()
            jobs = [pool.submit(_share, work, prepare, Path(name), rows, [data[1][i] for i in rows]) for rows in shares]
            spent = [job.result() for job in jobs]
            best, busiest = min(best, time.perf_counter() - start), min(busiest, max(spent))
    return best, busiest


def _row_of_all(times: tuple[float, float], published: float, count: int, cores: int) -> dict:
    wall, busiest = times
    return {
        "processes": cores,
        "ours_all_processes_cpu_ms_per_map": 1e3 * busiest / count,
        "ratio_all_processes_cpu": published / busiest,
        "ours_all_processes_wall_ms_per_map": 1e3 * wall / count,
    }


def compare(
    name: str, ours: Callable, theirs: Callable, data: tuple, pool: ProcessPoolExecutor | None, cores: int
) -> dict:
    count, kinds, mine, other = len(data[0]), {}, 0.0, 0.0
    for place, kind in enumerate(KINDS):
        chosen = list(range(place, count, len(KINDS)))
        part = (data[0][chosen], [data[1][i] for i in chosen], [data[2][i] for i in chosen])
        seconds, slow = in_turn(ours, theirs, part)
        kinds[f"ratio_one_process_{kind}"] = slow / seconds
        mine, other = mine + seconds, other + slow
    row = {
        "maps": count,
        "published_cpu_ms_per_map": 1e3 * other / count,
        "ours_cpu_ms_per_map": 1e3 * mine / count,
        "ratio_one_process": other / mine,
    }
    if pool is not None:
        row |= _row_of_all(_together(ours, data, pool, cores), other, count, cores)
    row |= kinds
    print(f"{name}:", json.dumps({k: round(v, 3) for k, v in row.items()}, indent=1), flush=True)
    return row


def floor(data: tuple, whole: dict) -> dict:
    """Return the floor, and what it would be against the published way."""
    least = 1e3 * min(timed(floor_of_boxes, *data, least=0)[0] for _ in range(ROUNDS)) / len(data[0])
    row = {"floor_cpu_ms_per_map": least, "ratio_floor": whole["published_cpu_ms_per_map"] / least}
    print("floor:", json.dumps(row, indent=1), flush=True)
    return row


# --- the stream ----------------------------------------------------------------------------------------------------


class Memory:
    """Memory of this process, and of it and all that it started together, looked at five times a second.

    Proportional set size: pages that processes share count once.
    """

    def __enter__(self) -> "Memory":
        self.own = self.all = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        me = os.getpid()
        while not self._over.wait(0.2):
            parents = {int(p.name): _field(p / "status", "PPid") for p in Path("/proc").glob("[0-9]*")}
            family = {me}
            for _ in range(3):  # children, the fork server's children
                family |= {one for one, parent in parents.items() if parent in family}
            sizes = {one: _field(Path(f"/proc/{one}/smaps_rollup"), "Pss") / 2**20 for one in family}
            self.own = max(self.own, sizes[me])
            self.all = max(self.all, sum(sizes.values()))


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def stream(count: int, cores: int) -> dict:
    """Score `count` maps from a file by `salmask.evaluation.evaluate.score`: LE, OM, F1, MaxBoxAccV2, PxAP; seconds and peak memory."""  # noqa: E501
    from salmask.evaluation.evaluate import Work, score

    maps, boxes, _ = inputs(100)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ids = np.array([f"i{k}" for k in range(count)])
        with (root / "maps.npy").open("wb") as file:  # written, not mapped: mapped pages would count as memory
            header = {"descr": "<f2", "fortran_order": False, "shape": (count, SIZE, SIZE)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, count, 100):
                part = maps[: min(100, count - start), 0].numpy().astype(np.float16)
                file.write(np.roll(part, start % SIZE, axis=2).tobytes())
        np.save(root / "maps.ids.npy", ids)
        with (root / "boxes.csv").open("w") as file, (root / "labels.csv").open("w") as labels:
            file.write("image,class,x0,y0,x1,y1\n")
            labels.write("image,label,predicted\n")
            for k, name in enumerate(ids):
                labels.write(f"{name},0,{k % 4 // 3}\n")
                for box in boxes[k % 100].tolist():
                    file.write(f"{name},c," + ",".join(f"{v:g}" for v in box) + "\n")
        before = time.perf_counter()
        with Memory() as memory:
            summary = score(
                root / "maps.npy",
                root / "boxes.csv",
                labels=root / "labels.csv",
                out=root / "out",
                metrics=["le", "om", "f1", "max_box_acc_v2", "pxap:boxes"],
                baselines=(),
                work=Work(cores),
            )
        seconds = time.perf_counter() - before
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    row = {
        "maps": count,
        "seconds": seconds,
        "maps_per_second": count / seconds,
        "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in spent),
        "processes": cores,
        "peak_gib_scoring_process": memory.own,
        "peak_gib_all_processes": memory.all,
        "file_gib": count * SIZE * SIZE * 2 / 2**30,
        "le": summary["maps"]["le"]["mean"],
    }
    print("stream:", json.dumps(row, indent=1), flush=True)
    return row


def ratios(count: int, cores: int, keep: Callable[[str, object], None]) -> None:
    data = inputs(count)
    times = -(-CHUNK * len(KINDS) // count)  # so that each kind fills a chunk
    many = tuple(part * times if isinstance(part, list) else part.repeat(times, 1, 1, 1) for part in data)
    pool = ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_one_thread) if cores > 1 else None
    try:
        keep("le_om_f1_after_the_box", box_scores_alone(many, pool, cores))
        keep("max_box_acc_v2_and_pxap", compare("wsol", ours_wsol, theirs_wsol, data, pool, cores))
        whole = compare("boxes", ours_boxes, theirs_boxes, many, pool, cores)
        keep("le_om_f1", whole | floor(many, whole))
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="maps to compare on")
    parser.add_argument("--maps", type=int, default=0, help="maps to stream from a file")
    parser.add_argument("--only", choices=["ratios", "stream"], help="do only one of the two")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="1: no timing by the clock on the wall"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    _one_thread()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}

    def keep(name: str, value: object) -> None:
        results[name] = value
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")

    keep("machine", {"cores": os.cpu_count(), "python": platform.python_version(), "opencv": cv2.__version__})
    command = " ".join(["python benchmarks/metrics.py", *sys.argv[1:]])
    if args.only != "stream":
        ratios(args.count, args.processes, keep)
        keep("ratios_command", command)
    if args.maps:
        keep("stream", stream(args.maps, args.processes) | {"command": command})


if __name__ == "__main__":
    main()
