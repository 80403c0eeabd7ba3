"""Which networks of timm and torchvision are read rightly without naming a layer.

    python benchmarks/networks.py --out results/networks

The smallest network of every family of timm (a module of `timm.models`) and of torchvision, with random weights, each
in a process of its own; a line of networks.jsonl each, so that a run that was stopped goes on. Asked of each:

reference   the last map: timm's `forward_intermediates`, else `feature_info`; of torchvision the last spatial node of
            the traced network
read        the layer that salmask reads deepest: has it the grid of the reference?
chosen      the layer that is chosen where the network does not describe itself (without `feature_info`): the same grid?
corners     is every map that is read one of timm's own to the bit, or does it change most in the corner in which the
            picture was changed?
maps        Grad-CAM and a new masker give finite maps

What fails is listed with the reason, and needs layers by name.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, fx, nn

from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS
from salmask.explain.learned import Learned
from salmask.masker import Masker

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIDE, CLASSES = 224, 5
ROWS = "networks.jsonl"


def parameters(make: Callable[[], nn.Module]) -> float:
    """Count without making; infinite where a network cannot be made without numbers."""
    try:
        with torch.device("meta"):
            return sum(value.numel() for value in make().parameters())
    except Exception:
        return float("inf")


def smallest() -> Iterator[tuple[str, str]]:
    """Yield (family, SPEC) of the smallest network of each family."""
    families: dict[str, list[tuple[float, str]]] = {}
    for name in timm.list_models():
        family = "timm " + timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        families.setdefault(family, []).append((parameters(lambda name=name: timm.create_model(name)), name))
    for name in torchvision.models.list_models(module=torchvision.models):
        family = "torchvision " + torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]
        size = parameters(lambda name=name: torchvision_network(name))
        families.setdefault(family, []).append((size, name))
    for family, members in families.items():
        yield family, f"{family.partition(' ')[0]}:{min(members)[1]}"


def torchvision_network(name: str) -> nn.Module:
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **more).eval()


def made(spec: str) -> Classifier:
    """Build a network at 224 pixels, or at its own size where it takes no other."""
    torch.manual_seed(0)
    library, _, name = spec.partition(":")
    if library == "torchvision":
        return Classifier(without_zeros(torchvision_network(name)), layers=None, **IMAGENET)
    own = timm.get_pretrained_cfg(name)
    sizes = (own.input_size[-1], SIDE) if own is not None and own.input_size[-1] < SIDE else (SIDE, None)
    try:
        classifier = Classifier.from_timm(name, pretrained=False, num_classes=CLASSES, image_size=sizes[0])
    except ValueError:
        classifier = Classifier.from_timm(name, pretrained=False, num_classes=CLASSES, image_size=sizes[1])
    without_zeros(classifier.network)
    return Classifier(classifier.network, layers=None, image_size=classifier.image_size, **IMAGENET)


def without_zeros(network: nn.Module) -> nn.Module:
    """Draw weights that begin as zeros, such as those of heads, so that the logits hang on the pictures."""
    for value in network.parameters():
        if value.ndim > 1 and not value.any():
            nn.init.normal_(value, 0, 0.02)
    return network


def pictures(classifier: Classifier, count: int = 1) -> Tensor:
    shape = (count, classifier.channels_in, classifier.image_size, classifier.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4


def intermediates(classifier: Classifier, shown: Tensor) -> list[Tensor]:
    """Return timm's own maps (B, C, h, w), from `forward_intermediates`; none without it."""
    network = classifier.network
    if not hasattr(network, "forward_intermediates"):
        return []
    try:
        maps = network.forward_intermediates(classifier._normalised(shown), intermediates_only=True)
    except Exception:
        return []
    last = [m.shape[1] == m.shape[2] != m.shape[3] for m in maps if m.ndim == 4]  # channels last
    return [
        m.permute(0, 3, 1, 2) if turned else m for m, turned in zip((m for m in maps if m.ndim == 4), last, strict=True)
    ]


def reference(classifier: Classifier) -> tuple[str, tuple[int, int] | None]:
    """Return who says it, and the grid of the last map."""
    network, side = classifier.network, classifier.image_size
    entered = classifier._normalised(pictures(classifier))
    with torch.no_grad(), classifier.frozen():
        if maps := intermediates(classifier, pictures(classifier)):
            return "forward_intermediates", (int(maps[-1].shape[2]), int(maps[-1].shape[3]))
        if described := getattr(network, "feature_info", None):
            cells = -(-side // described[-1]["reduction"])
            return "feature_info", (cells, cells)
        return traced(network, entered)


class _Grids(fx.Interpreter):
    """Remember the grid of the last node that is a map."""

    last: tuple[int, int] | None = None

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if isinstance(value, Tensor) and value.ndim == 4:
            rows, columns = value.shape[2:] if value.shape[2] == value.shape[3] else value.shape[1:3]
            if rows == columns > 1:
                self.last = (rows, columns)
        return value


def traced(network: nn.Module, entered: Tensor) -> tuple[str, tuple[int, int] | None]:
    try:
        grids = _Grids(fx.symbolic_trace(network))
        grids.run(entered)
    except Exception:
        return "nobody", None
    return "trace", grids.last


def near(one: tuple[int, int], other: tuple[int, int] | None) -> bool:
    """Return whether two grids are one up to the rounding of odd sizes."""
    return other is None or all(abs(a - b) <= 1 for a, b in zip(one, other, strict=True))


def corner_of(one: Tensor, other: Tensor) -> tuple[int, int] | None:
    """Return the quarter in which two maps differ most, (0, 0) for top left; None for maps of a row or a column."""
    moved = (one - other).abs().mean(1)[0]
    if min(moved.shape) < 2:
        return None
    halves = [moved.shape[axis] // 2 for axis in (0, 1)]
    parts = {
        (i, j): moved[
            slice(-halves[0], None) if i else slice(halves[0]), slice(-halves[1], None) if j else slice(halves[1])
        ]
        for i in (0, 1)
        for j in (0, 1)
    }
    return max(parts, key=lambda at: float(parts[at].mean()))


def in_corners(classifier: Classifier) -> list[str]:
    """Return the layers that change most elsewhere than in the corner where the picture was changed.

    A map that is one of timm's own to the bit needs no such test, which random weights may fail: every place of a deep
    map sees the whole picture.
    """
    side, wrong = classifier.image_size, set()
    quarter, plain = side // 4, pictures(classifier)
    with torch.no_grad(), classifier.frozen():
        before, own = classifier.features(plain).maps, intermediates(classifier, plain)
        same = {
            name
            for name, read in zip(classifier.layers, before, strict=True)
            if any(read.shape == one.shape and torch.allclose(read, one, atol=1e-4) for one in own)
        }
        for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
            rows, columns = (slice(side - quarter, side) if far else slice(quarter) for far in corner)
            changed = plain.clone()
            changed[:, :, rows, columns] = 1 - changed[:, :, rows, columns].round()
            for name, one, other in zip(classifier.layers, before, classifier.features(changed).maps, strict=True):
                if name not in same and corner_of(one, other) not in (None, corner):
                    wrong.add(name)
    return sorted(wrong)


def chosen(spec: str) -> tuple[str, tuple[int, int]]:
    """Return the deepest layer, and its grid, where the network says nothing of itself."""
    classifier = made(spec)
    network = classifier.network
    vars(network).pop("feature_info", None)
    alone = Classifier(network, layers=None, image_size=classifier.image_size, **IMAGENET)
    last = alone.describe()[-1]
    return last.name, last.shape[1:]


def asked(spec: str) -> dict[str, object]:
    """Return what one network shows; "wrong" says what is not as it must be."""
    classifier = made(spec)
    said, grid = reference(classifier)
    last = classifier.describe()[-1]
    row: dict[str, object] = {
        "size": classifier.image_size,
        "reference": said,
        "grid": grid,
        "read": last.name,
        "read_grid": last.shape[1:],
    }
    wrong = []
    if not near(last.shape[1:], grid):
        wrong.append(f"reads {last.name} of {last.shape[1:]}, the last map is {grid}")
    if elsewhere := in_corners(classifier):
        wrong.append(f"corners are elsewhere in {', '.join(elsewhere)}")
    for explainer in (EXPLAINERS["gradcam"](), Learned(Masker.for_classifier(classifier))):
        if not explainer(classifier, pictures(classifier)).masks.isfinite().all():
            wrong.append("maps that are not finite")
    try:
        name, alone = chosen(spec)
        row |= {"chosen": name, "chosen_grid": alone}
        if not near(alone, grid):
            wrong.append(f"without a description chooses {name} of {alone}, the last map is {grid}")
    except ValueError as error:
        row["chosen"] = f"refused: {error}"
    return row | {"wrong": "; ".join(wrong)}


def one_row(family: str, spec: str) -> dict[str, object]:
    start, row = time.perf_counter(), {}
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            row = asked(spec)
        if row["wrong"] and any("give prefix= and grid=" in str(one.message) for one in told):
            row["wrong"] = f"told of, give grid=: {row['wrong']}"
    except Exception as error:
        row = {"wrong": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
    return {"family": family, "network": spec, **row, "seconds": round(time.perf_counter() - start, 1)}


def table(rows: list[dict[str, object]]) -> str:
    """Return the table of a README."""
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}"
    lines = [
        "| family | network | px | last map, by | read | without a description | what is wrong |",
        "|" + "---|" * 7,
    ]
    for row in sorted(rows, key=lambda row: str(row["family"])):
        grid = "x".join(map(str, row.get("grid") or ())) or "?"
        cells = [
            row["family"],
            str(row["network"]).partition(":")[2],
            row.get("size", ""),
            f"{grid}, {row.get('reference', '')}",
            f"{row.get('read', '')} {'x'.join(map(str, row.get('read_grid', ())))}",
            f"{str(row.get('chosen', ''))[:60]} {'x'.join(map(str, row.get('chosen_grid', ())))}",
            row["wrong"],
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    counts = [
        f"{library}: {sum(not row['wrong'] for row in own)} of {len(own)} families"
        for library in ("timm", "torchvision")
        if (own := [row for row in rows if str(row["family"]).startswith(library + " ")])
    ]
    return f"{'; '.join(counts)} ({versions})\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/networks"))
    parser.add_argument("--only", default="", help="families that hold this")
    parser.add_argument("--list", action="store_true", help="print families and networks alone")
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "SPEC"), help="one network, in this process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows_at = given.out / ROWS
    given.out.mkdir(parents=True, exist_ok=True)
    if given.one:
        with rows_at.open("a") as file:
            file.write(json.dumps(one_row(*given.one)) + "\n")
        return
    pairs = [pair for pair in smallest() if given.only in pair[0]]
    if given.list:
        print("\n".join("\t".join(pair) for pair in pairs))
        return
    there = {json.loads(line)["family"] for line in rows_at.read_text().splitlines()} if rows_at.exists() else set()
    for family, spec in pairs:
        if family not in there:
            subprocess.run([sys.executable, __file__, "--out", str(given.out), "--one", family, spec], check=False)
    rows = {row["family"]: row for row in map(json.loads, rows_at.read_text().splitlines())}
    (given.out / "table.md").write_text(table([*rows.values()]))
    print(table([*rows.values()]))


if __name__ == "__main__":
    main()
