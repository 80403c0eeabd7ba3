"""Three streams beside the frozen network, and class activation maps through either head.

    python results/ca-stream/measure.py DATA OUT [20,10,1 [10,100 [source]]]

DATA: the folder of imagenet-20. Last: how streams begin, `source` or `average`. Goes on where it was stopped. The
gradient maps are measured on every twentieth val picture, then on every tenth, then on all; insertion and deletion of
them on every tenth, and Score-CAM, which takes hundreds of passes, with both on every hundredth.
"""

import csv
import lzma
import sys
from functools import partial
from pathlib import Path

import torch

from salmask import open_data
from salmask.data import Labelled
from salmask.data.streams import Subset
from salmask.evaluation.evaluate import Rules, compare
from salmask.explain import EXPLAINERS
from salmask.explain.attention import RawAttention
from salmask.files import replace_file
from salmask.pooling import Pooled, QueryStream
from salmask.specs import load_metrics
from salmask.training.pooling import Maps, PoolingSettings, fit_stream, load_pooling, save_pooling
from salmask.training.run import Loaded, load_classifier

SPEC, SIZE, SEEDS = f"{Path(__file__).parent}/network.py:network", 160, (0, 1, 2)
RATES, PIECE, EVERY = (0.1, 0.03, 0.01, 0.003, 0.001), 500, 2
DROPS = ("average_drop:ca_stream", "average_gain:ca_stream", "average_increase:ca_stream", "le", "f1")
GRADIENT = ("gradcam", "gradcam_pp")
CURVES = ("insertion:ca_stream", "deletion:ca_stream")


def fresh(loaded: Loaded, seed: int, begin: str = "source") -> Pooled:
    """Return the network with a stream of first weights."""
    generator = torch.Generator().manual_seed(seed)
    stream = QueryStream.for_classifier(loaded.classifier, generator=generator, begin=begin)
    return Pooled(loaded.classifier, stream)


def kept_maps(data: str, out: Path, loaded: Loaded) -> Maps:
    """Compute the maps of the training pictures, or take those of an earlier start."""
    view = loaded.view
    train = open_data(data, "train", transform=view.transform(), classes=loaded.classes, read=loaded.reader())
    train = Subset(train, range(0, len(train), EVERY))
    parts = []
    for start in range(0, len(train), PIECE):
        path = out / f"maps-{start:05d}.pt"
        if not path.exists():
            maps = Maps.of(fresh(loaded, 0), Subset(train, range(start, min(start + PIECE, len(train)))))
            replace_file(path, partial(torch.save, {"maps": maps.maps, "targets": maps.targets}))
        parts.append(torch.load(path, mmap=True))
    stages = zip(*(part["maps"] for part in parts), strict=True)
    return Maps(tuple(torch.cat(own) for own in stages), torch.cat([part["targets"] for part in parts]))


def chosen_rate(maps: Maps, loaded: Loaded, out: Path, begin: str) -> float:
    """Return the learning rate of the best accuracy on every tenth training picture, after 8 passes of the others."""
    path = out / "rates.csv"
    tried = dict(line.split(",") for line in path.read_text().split()) if path.exists() else {}
    held = torch.arange(len(maps)) % 10 == 0
    for lr in RATES:
        if str(lr) not in tried:
            rest = Maps(tuple(own[~held] for own in maps.maps), maps.targets[~held])
            pooled = fit_stream(fresh(loaded, 0, begin), rest, settings=PoolingSettings(epochs=8, lr=lr))
            with torch.no_grad(), pooled.frozen():
                places = held.nonzero().flatten()
                right = [maps.logits(pooled, part).argmax(1) == maps.targets[part] for part in places.split(64)]
            tried[str(lr)] = f"{torch.cat(right).float().mean():.4f}"
            path.write_text("".join(f"{rate},{share}\n" for rate, share in tried.items()))
    return float(max(tried, key=lambda rate: float(tried[rate])))


def streams(data: str, out: Path, loaded: Loaded, begin: str) -> list[Loaded]:
    """Train the streams that are not there yet."""
    found = []
    for seed in SEEDS:
        folder = out / f"stream-{seed}"
        if not (folder / "pooling.json").exists():
            maps = kept_maps(data, out, loaded)
            settings = PoolingSettings(epochs=20, lr=chosen_rate(maps, loaded, out, begin), seed=seed)
            pooled = fit_stream(fresh(loaded, seed, begin), maps, settings=settings)
            save_pooling(folder, pooled, loaded, {"settings": vars(settings), "begin": begin})
        found.append(load_pooling(folder).pooled)
    return found


def decide(heads: dict[str, Loaded], val: Labelled, out: Path) -> None:
    """Write whether each head is right on each val picture (decisions.csv.xz), and say the shares."""
    maps = Maps.of(heads["CA 0"].classifier, val)
    pooled = maps.maps[-1].float().mean((2, 3))
    right = {"GAP": heads["GAP"].classifier.network.classifier(pooled).argmax(1) == maps.targets}
    for name in [name for name in heads if name != "GAP"]:
        head = heads[name].classifier
        with head.frozen():
            right[name] = torch.cat(
                [maps.logits(head, k).argmax(1) == maps.targets[k] for k in torch.arange(len(maps)).split(64)]
            )
    with lzma.open(out / "decisions.csv.xz", "wt", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["image", *right])
        lines.writerows([k, *(int(one[k]) for one in right.values())] for k in range(len(maps)))
    for name, one in right.items():
        less = one.float() - right["GAP"].float()
        spread = 1.96 * less.std() / len(less) ** 0.5
        print(f"{name}: right {one.float().mean():.3f}, minus GAP {less.mean():+.3f} ± {spread:.3f}")


def main(
    data: str, out: Path, gradient_steps: str = "20,10,1", few_steps: str = "10,100", begin: str = "source"
) -> None:
    """Train, measure, and say the accuracies."""
    out.mkdir(parents=True, exist_ok=True)
    loaded = load_classifier(SPEC, image_size=SIZE)
    heads = {
        "GAP": loaded,
        **{f"CA {seed}": one for seed, one in zip(SEEDS, streams(data, out, loaded, begin), strict=True)},
    }
    val = open_data(data, "val", transform=loaded.view.transform(), classes=loaded.classes, read=loaded.reader())
    with torch.no_grad():
        decide(heads, val, out)
    gradient = [(name, maps, head) for maps in GRADIENT for name, head in heads.items()]
    table = {f"{maps}, {name}": (EXPLAINERS[maps](), head) for name, maps, head in gradient}
    raw = {f"attention, {name}": (RawAttention(), head) for name, head in heads.items() if name != "GAP"}
    score = {f"scorecam, {name}": (EXPLAINERS["scorecam"](), head) for name, head in heads.items()}
    curves, few = [int(step) for step in (few_steps.split(",") * 2)[:2]]
    first, *others = [int(step) for step in gradient_steps.split(",")]
    plans = [(first, {**table, **raw}, DROPS, "gradient"), (curves, table, CURVES, "curves")]
    plans += [(few, score, (*DROPS, *CURVES), "scorecam")]
    plans += [(step, {**table, **raw}, DROPS, "gradient") for step in others]
    for step, explainers, metrics, folder in plans:
        compare(
            explainers,
            load_metrics(metrics),
            Subset(val, range(0, len(val), step)),
            rules=Rules(target="label"),
            out=out / folder,
            about={"data": "imagenet-20, val", "classifier": "tf_efficientnet_lite0, 20 classes"},
            batch_size=8,
            pictures=0,
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:6])
