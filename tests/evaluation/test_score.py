import json
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metric_cases import random_case
from salmask.classifier import Classifier
from salmask.evaluation.evaluate import score as score_with_baselines
from salmask.evaluation.maps import open_maps
from salmask.evaluation.saved import Scoring, Work
from salmask.evaluation.truth import read_labels
from salmask.explain.controls import BASELINES
from salmask.metrics import METRICS, Case
from salmask.rows.read import file_name
from salmask.types import in_colour

score = partial(score_with_baselines, baselines=())
BOX_METRICS = ["le", "f1", "max_box_acc_v2", "pxap:boxes", "mask_mean"]


def write_boxes(path: Path, case: Case, *, ids: list[str] | None = None) -> Path:
    lines = ["image,class,x0,y0,x1,y1"]
    for name, boxes in zip(ids or case.ids, case.boxes, strict=True):
        lines += [f"{name},c," + ",".join(f"{v:g}" for v in box) for box in boxes.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Case, Path, Path]:
    case = random_case(count=6)
    np.savez(tmp_path / "maps.npz", ids=np.array(case.ids), maps=case.masks[:, 0].numpy())
    return case, tmp_path / "maps.npz", write_boxes(tmp_path / "boxes.csv", case)


def rows_of(folder: Path, explainer: str = "maps") -> dict[tuple[str, str], float]:
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {line["explainer"] for line in lines} <= {"maps", *BASELINES}
    return {(line["image"], line["metric"]): line["value"] for line in lines if line["explainer"] == explainer}


# --- reading ---------------------------------------------------------------------------------------------------


def test_stored_compressed_and_plain_files_give_the_same_chunks(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((7, 5, 6)).astype(np.float32)
    ids = np.array([f"i{k}" for k in range(7)])
    np.savez(tmp_path / "a.npz", maps=maps, ids=ids)
    np.savez_compressed(tmp_path / "b.npz", ids=ids, maps=maps)
    np.save(tmp_path / "c.npy", maps)
    (tmp_path / "c.ids.txt").write_text("\n".join(ids) + "\n")
    np.save(tmp_path / "d.npy", maps[:, None])
    np.save(tmp_path / "d.ids.npy", ids)
    for name in ("a.npz", "b.npz", "c.npy", "d.npy"):
        found = open_maps(tmp_path / name)
        chunks = list(found.chunks(3))
        assert [len(names) for names, _ in chunks] == [3, 3, 1]
        assert [n for names, _ in chunks for n in names] == ids.tolist()
        assert np.array_equal(np.concatenate([block for _, block in chunks]), maps), name


def test_half_precision_becomes_single_and_double_stays(tmp_path: Path) -> None:
    for dtype, expected in ((np.float16, np.float32), (np.float64, np.float64)):
        np.savez(tmp_path / "m.npz", ids=np.array(["a"]), maps=np.full((1, 2, 2), 0.5, dtype))
        (_, block), *_ = open_maps(tmp_path / "m.npz").chunks(8)
        assert block.dtype == expected


def test_reading_takes_the_memory_of_one_chunk(tmp_path: Path) -> None:
    maps = np.zeros((64, 100, 100), np.float32)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "m.npz", ids=np.arange(64).astype(str), maps=maps)
        tracemalloc.start()
        for _ids, _block in open_maps(tmp_path / "m.npz").chunks(4):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.4 * maps.nbytes


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"maps": np.zeros((2, 3, 3))}, "ids and maps"),
        ({"ids": np.array(["a"]), "maps": np.zeros((2, 3, 3))}, "1 ids and 2 maps"),
        ({"ids": np.array(["a", "a"]), "maps": np.zeros((2, 3, 3))}, "'a' comes twice"),
        ({"ids": np.array([1, 2]), "maps": np.zeros((2, 3, 3))}, "strings"),
        ({"ids": np.array(["a", "b"]), "maps": np.zeros((2, 3, 3), np.uint8)}, "float type"),
        ({"ids": np.array(["a", "b"]), "maps": np.zeros((2, 3, 3, 3))}, r"\(N, H, W\)"),
        ({"ids": np.array(["a", "b"], dtype=object), "maps": np.zeros((2, 3, 3))}, "."),
    ],
)
def test_files_that_hold_no_maps_are_refused(tmp_path: Path, arrays: dict, words: str) -> None:
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        open_maps(tmp_path / "m.npz")


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_maps(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz"):
        open_maps(tmp_path / "text.npz")
    np.save(tmp_path / "m.npy", np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match=r"m\.ids\.npy or m\.ids\.txt"):
        open_maps(tmp_path / "m.npy")
    (tmp_path / "m.ids.txt").write_text("a\nb\nc\n")
    data = (tmp_path / "m.npy").read_bytes()
    (tmp_path / "m.npy").write_bytes(data[:-8])
    with pytest.raises(ValueError, match="ends early"):
        open_maps(tmp_path / "m.npy")


# --- scoring ---------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_functions(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    summary = score(maps, boxes, out=tmp_path / "out", metrics=BOX_METRICS)
    found = rows_of(tmp_path / "out")
    for name in BOX_METRICS:
        metric = METRICS[name]
        values = metric(case).numpy()
        if metric.set_level:
            files = list((tmp_path / "out" / "counts").glob("maps/*.npz"))
            counts = [np.load(f)["counts"] for f in files if str(np.load(f)["metric"]) == name]
            assert np.array_equal(counts[0], values)
            assert summary["maps"][name]["mean"] == pytest.approx(metric.compute(values))
        else:
            assert [found[image, name] for image in case.ids] == pytest.approx(values.tolist(), rel=1e-6)
    assert [found[image, "degenerate"] for image in case.ids] == [0] * 6
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["metrics"]["le"]["protocol"]["box_rule"] == "above_mean"
    assert (tmp_path / "out" / "index.html").exists()


def test_default_metrics_are_the_plain_names_that_the_truth_allows(saved, tmp_path: Path) -> None:
    _, maps, boxes = saved
    summary = score(maps, boxes, out=tmp_path / "out")["maps"]
    assert {"le", "f1", "f1_mean", "max_box_acc", "max_box_acc_v2", "energy_inside", "mask_tv"} <= set(summary)
    assert not {"om", "pxap", "insertion", "sm"} & set(summary)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["left_out"]["om"] == "it needs correct, not given"


def test_chunks_and_processes_change_nothing(saved, tmp_path: Path, monkeypatch) -> None:
    _, maps, boxes = saved
    score(maps, boxes, out=tmp_path / "whole", metrics=BOX_METRICS)
    monkeypatch.setattr("salmask.evaluation.saved.CHUNK", 2)
    score(maps, boxes, out=tmp_path / "parts", metrics=BOX_METRICS)
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert list(whole.values()) == pytest.approx(list(parts.values()), rel=1e-6)


def test_a_stopped_run_goes_on(saved, tmp_path: Path, monkeypatch) -> None:
    _, maps, boxes = saved
    monkeypatch.setattr("salmask.evaluation.saved.CHUNK", 2)

    def stop(results):
        for k, one in enumerate(results):
            if k == 3:  # two chunks of the maps and one of the baseline are written
                raise KeyboardInterrupt
            yield one

    with pytest.raises(KeyboardInterrupt):
        score(maps, boxes, out=tmp_path / "out", metrics=BOX_METRICS, baselines=["full"], work=Work(progress=stop))
    assert len({image for image, _ in rows_of(tmp_path / "out")}) == 4
    score(maps, boxes, out=tmp_path / "out", metrics=BOX_METRICS, baselines=["full"])
    score(maps, boxes, out=tmp_path / "fresh", metrics=BOX_METRICS, baselines=["full"])
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "fresh")


def test_boxes_are_scaled_from_their_picture(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    lines = ["image,class,x0,y0,x1,y1,width,height"]
    for name, found in zip(case.ids, case.boxes, strict=True):
        lines += [
            f"{name},c," + ",".join(f"{v:g}" for v in (box * torch.tensor([2, 4, 2, 4])).tolist()) + ",64,128"
            for box in found
        ]
    (tmp_path / "large.csv").write_text("\n".join(lines) + "\n")
    score(maps, boxes, out=tmp_path / "a", metrics=["f1", "le"])
    score(maps, tmp_path / "large.csv", out=tmp_path / "b", metrics=["f1", "le"])
    assert rows_of(tmp_path / "a") == pytest.approx(rows_of(tmp_path / "b"), rel=1e-6)


def test_a_folder_of_xml_files_gives_the_scores_of_the_table(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    height, width = case.masks.shape[-2:]
    for name, own in zip(case.ids, case.boxes, strict=True):
        things = "".join(
            f"<object><name>c</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1 in (2 * own).tolist()
        )
        path = tmp_path / "xml" / Path(name).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<a><size><width>{2 * width}</width><height>{2 * height}</height></size>{things}</a>")
    score(maps, boxes, out=tmp_path / "table", metrics=BOX_METRICS)
    score(maps, tmp_path / "xml", out=tmp_path / "files", metrics=BOX_METRICS)
    assert rows_of(tmp_path / "table") == rows_of(tmp_path / "files")
    path.unlink()
    with pytest.raises(ValueError, match="without boxes"):
        score(maps, tmp_path / "xml", out=tmp_path / "less", metrics=BOX_METRICS)


def test_pixel_masks_of_another_size_are_brought_to_the_maps(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    stored = {0: 0, 1: 255, 255: 128}
    for name, pixels in zip(case.ids, case.pixels, strict=True):
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        large = np.vectorize(stored.get)(pixels.numpy()).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        Image.fromarray(large).save(path)
    score(maps, boxes, out=tmp_path / "out", masks_dir=tmp_path / "masks", metrics=["energy_inside:pixels", "pxap"])
    found = rows_of(tmp_path / "out")
    expected = METRICS["energy_inside:pixels"](case).tolist()
    assert [found[name, "energy_inside:pixels"] for name in case.ids] == pytest.approx(expected, rel=1e-5)


def test_boxes_of_the_pictures_are_placed_on_the_maps(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["image,label", *(f"{n},{t}" for n, t in zip(case.ids, case.targets, strict=True))]))
    pictures = dict(zip(case.ids, case.images, strict=True))
    head, *lines = boxes.read_text().splitlines()
    halved = [[*line.split(",")[:2], *(str(float(v) / 2) for v in line.split(",")[2:])] for line in lines]
    (tmp_path / "half.csv").write_text("\n".join([head, *map(",".join, halved)]))
    scoring = Scoring(
        case.classifier, lambda ids: torch.stack([pictures[one] for one in ids]), place=lambda one, found: 2 * found
    )
    score(maps, tmp_path / "half.csv", out=tmp_path / "out", labels=labels, scoring=scoring, metrics=["f1"])
    found = rows_of(tmp_path / "out")
    assert [found[one, "f1"] for one in case.ids] == pytest.approx(METRICS["f1"](case).tolist(), rel=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_another_number_of_channels_are_drawn_in_colour(channels, tmp_path: Path) -> None:
    layers = [torch.nn.Conv2d(channels, 4, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    options = {"mean": [0.5] * channels, "std": [0.25] * channels, "layers": ["0"], "image_size": 24}
    classifier = Classifier(torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)), **options)
    ids, pictures = ["a", "b", "c"], torch.rand(3, channels, 24, 24)
    np.savez(tmp_path / "m.npz", ids=np.array(ids), maps=np.full((3, 24, 24), 0.5, np.float32))
    (tmp_path / "boxes.csv").write_text("image,class,x0,y0,x1,y1\n" + "".join(f"{one},x,2,2,12,12\n" for one in ids))
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"{one},0\n" for one in ids))
    scoring = Scoring(classifier, lambda names: pictures[[ids.index(one) for one in names]])
    files = tmp_path / "m.npz", tmp_path / "boxes.csv"
    score(*files, out=tmp_path / "out", labels=tmp_path / "labels.csv", scoring=scoring, metrics=["f1"], baselines=[])
    strip = np.asarray(Image.open(tmp_path / "out" / "pictures" / "m" / "a.png").convert("RGB")) / 255
    whole = strip[:, : strip.shape[1] // 4].mean((0, 1))
    assert whole == pytest.approx(in_colour(pictures[:1])[0].mean((1, 2)).numpy(), abs=0.03)


def test_pictures_are_filled_with_the_mean_colour_of_the_scoring_classifier(saved, tmp_path: Path) -> None:
    """The empty map keeps nothing, so that its kept picture is the fill: black for this classifier, not ImageNet's."""
    case, maps, boxes = saved
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["image,label", *(f"{n},{t}" for n, t in zip(case.ids, case.targets, strict=True))]))
    pictures = dict(zip(case.ids, case.images, strict=True))
    scoring = Scoring(case.classifier, lambda ids: torch.stack([pictures[one] for one in ids]))
    score(maps, boxes, out=tmp_path / "out", labels=labels, scoring=scoring, metrics=["f1"], baselines=["empty"])
    shown = np.asarray(Image.open(tmp_path / "out" / "pictures" / "empty" / f"{file_name(case.ids[0])}.png"))
    kept = shown[shown.shape[0] // 2, shown.shape[1] * 5 // 8]
    assert kept.tolist() == [0, 0, 0]


def test_labels_give_the_overall_metric_and_a_classifier_the_rest(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    labels = tmp_path / "labels.csv"
    lines = [
        f"{n},{t},{int(t) if c else int(t) + 1}" for n, t, c in zip(case.ids, case.targets, case.correct, strict=True)
    ]
    labels.write_text("\n".join(["image,label,predicted", *lines]) + "\n")
    pictures = dict(zip(case.ids, case.images, strict=True))
    scoring = Scoring(case.classifier, lambda ids: torch.stack([pictures[one] for one in ids]))
    score(maps, boxes, out=tmp_path / "out", labels=labels, scoring=scoring, metrics=["om", "sm"])
    shown = tmp_path / "out" / "pictures" / "maps"
    assert {path.name for path in shown.glob("*.png")} == {f"{file_name(image)}.png" for image in case.ids}
    assert (tmp_path / "out" / "grid.jpg").is_file()
    found = rows_of(tmp_path / "out")
    for name in ("om", "sm"):
        assert [found[image, name] for image in case.ids] == pytest.approx(METRICS[name](case).tolist(), rel=1e-5)
    with pytest.raises(ValueError, match="which class"):
        score(maps, boxes, out=tmp_path / "none", scoring=scoring, metrics=["sm"])
    labels.write_text("\n".join(["image,label", *(f"{n},7" for n in case.ids)]) + "\n")
    with pytest.raises(ValueError, match="class index"):
        score(maps, boxes, out=tmp_path / "far", labels=labels, scoring=scoring, metrics=["sm"])


def test_the_predicted_class_can_be_explained(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["image,label,predicted", *(f"{n},0,{i % 3}" for i, n in enumerate(case.ids))]) + "\n")
    pictures = dict(zip(case.ids, case.images, strict=True))
    scoring = Scoring(case.classifier, lambda ids: torch.stack([pictures[one] for one in ids]))
    for target, classes in (("label", torch.zeros(6, dtype=torch.long)), ("predicted", torch.arange(6) % 3)):
        out = tmp_path / target
        score(maps, boxes, out=out, labels=labels, scoring=replace(scoring, target=target), metrics=["sm", "om"])
        expected = METRICS["sm"](replace(case, targets=classes, memo={})).tolist()
        found = rows_of(out)
        assert [found[image, "sm"] for image in case.ids] == pytest.approx(expected, rel=1e-5)
        assert [found[image, "om"] for image in case.ids][1] == 1  # classified wrong, whatever is explained
        assert json.loads((out / "meta.json").read_text())["target"] == target
        assert f"<dd>{target}</dd>" in (out / "index.html").read_text()
    with pytest.raises(ValueError, match="target must be label or predicted; got 'best'"):
        replace(scoring, target="best")
    labels.write_text("\n".join(["image,label,predicted", *(f"{n},0,9" for n in case.ids)]) + "\n")
    with pytest.raises(ValueError, match=r"predicted class of 'a/0' must be a class index in \[0, 2\]"):
        score(maps, boxes, out=tmp_path / "no", labels=labels, scoring=replace(scoring, target="predicted"))
    labels.write_text("\n".join(["image,label", *(f"{n},0" for n in case.ids)]) + "\n")
    with pytest.raises(ValueError, match="column predicted"):
        score(maps, boxes, out=tmp_path / "no", labels=labels, scoring=replace(scoring, target="predicted"))
    assert not (tmp_path / "no").exists()


def write_gaze(folder: Path, case: Case) -> Path:
    """One half of the gaze maps as numbers, the other as 16-bit pictures."""
    for i, (name, gaze) in enumerate(zip(case.ids, case.gaze[:, 0].numpy(), strict=True)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if i % 2:
            Image.fromarray((gaze / gaze.max() * 65535).astype(np.uint16)).save(folder / f"{name}.png")
        else:
            np.save(folder / f"{name}.npy", gaze)
    return folder


def test_gaze_maps_give_the_scores_of_human_attention(saved, tmp_path: Path, monkeypatch) -> None:
    """The centre bias of an image is the mean gaze of the others, each of mass 1; in chunks as at once."""
    case, maps, _ = saved
    monkeypatch.setattr("salmask.evaluation.saved.CHUNK", 4)
    names = ["ncc", "sncc", "sauc:exact", "sauc", "gaze_auc"]
    score(maps, out=tmp_path / "out", gaze=write_gaze(tmp_path / "gaze", case), metrics=names)
    density = case.gaze / case.gaze.sum((1, 2, 3), keepdim=True)
    centre = torch.stack([density[[k for k in range(6) if k != i]].mean(0) for i in range(6)])
    whole = replace(case, gaze=density, centre=centre, memo={})
    found = rows_of(tmp_path / "out")
    for name in names[:3]:
        assert [found[image, name] for image in case.ids] == pytest.approx(METRICS[name](whole).tolist(), abs=2e-4)
    assert "sncc" in (tmp_path / "out" / "index.html").read_text()


def test_gaze_that_cannot_be_is_refused(saved, tmp_path: Path) -> None:
    case, maps, _ = saved
    with pytest.raises(ValueError, match="no folder of gaze maps"):
        score(maps, out=tmp_path / "out", gaze=tmp_path / "gaze")
    gaze = write_gaze(tmp_path / "gaze", case)
    for values, words in (
        (np.zeros((32, 32)), "not empty"),
        (np.full((32, 32), -1.0), ">= 0"),
        (np.ones(4), r"\(4,\)"),
    ):
        np.save(gaze / "a/2.npy", values)
        with pytest.raises(ValueError, match=rf"a/2.npy must be .*{words}"):
            score(maps, out=tmp_path / "out", gaze=gaze)
    (gaze / "a/2.npy").write_bytes(b"no numbers")
    with pytest.raises(ValueError, match=r"a/2\.npy cannot be read"):
        score(maps, out=tmp_path / "out", gaze=gaze)
    (gaze / "a/2.npy").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 ids without a gaze map .*'a/2'"):
        score(maps, out=tmp_path / "out", gaze=gaze)
    assert not (tmp_path / "out").exists()


def test_one_gaze_map_has_no_centre_bias(saved, tmp_path: Path) -> None:
    case, _, _ = saved
    np.savez(tmp_path / "one.npz", ids=np.array(case.ids[:1]), maps=case.masks[:1, 0].numpy())
    summary = score(tmp_path / "one.npz", out=tmp_path / "out", gaze=write_gaze(tmp_path / "gaze", case))
    assert "ncc" in summary["one"] and "sncc" not in summary["one"]
    with pytest.raises(ValueError, match="from two images on"):
        score(tmp_path / "one.npz", out=tmp_path / "no", gaze=tmp_path / "gaze", metrics=["sncc"])


def test_gaze_of_another_size_keeps_its_place(saved, tmp_path: Path) -> None:
    case, maps, _ = saved
    for name in case.ids:
        (tmp_path / "gaze" / name).parent.mkdir(parents=True, exist_ok=True)
        fine = np.zeros((64, 64))
        fine[8:16, 32:64] = 3
        np.save(tmp_path / "gaze" / f"{name}.npy", fine)
    score(maps, out=tmp_path / "out", gaze=tmp_path / "gaze", metrics=["ncc"])
    coarse = torch.zeros(6, 1, 32, 32)
    coarse[..., 4:8, 16:32] = 1
    expected = METRICS["ncc"](replace(case, gaze=coarse, memo={})).tolist()
    assert [rows_of(tmp_path / "out")[image, "ncc"] for image in case.ids] == pytest.approx(expected, abs=1e-5)


def test_the_page_says_what_was_scored(saved, tmp_path: Path) -> None:
    _, maps, boxes = saved
    out = tmp_path / "out"
    about = {"classifier": "timm:some", "command": "salmask score maps.npz", "version": "1.2"}
    score_with_baselines(maps, boxes, out=out, metrics=["energy_inside", "f1"], work=Work(about=about))
    page = (out / "index.html").read_text()
    for words in ("maps.npz: 6 maps, 32 wide and 32 high", "timm:some", "salmask score maps.npz", "range: 0 to 1"):
        assert words in page, words
    assert "1: map is constant, empty or full" in page
    meta = json.loads((out / "meta.json").read_text())["metrics"]
    assert all(meta[name]["protocol"] for name in ("energy_inside", "f1", "degenerate"))
    tau = json.loads((out / "agreement.json").read_text())
    assert tau["metrics"] == ["energy_inside", "f1"] and tau["kendall_tau"][0][0] == tau["kendall_tau"][1][1] == 1
    assert tau["kendall_tau"][0][1] == tau["kendall_tau"][1][0]
    alone = score(maps, boxes, out=tmp_path / "alone", metrics=["energy_inside", "f1"])
    assert set(alone) == {"maps"} and not (tmp_path / "alone" / "agreement.json").exists()
    assert "leads with" not in (tmp_path / "alone" / "index.html").read_text()  # there is no other to lead


def test_normalising_is_explicit(saved, tmp_path: Path) -> None:
    case, _, boxes = saved
    np.savez(tmp_path / "wide.npz", ids=np.array(case.ids), maps=case.masks[:, 0].numpy() * 8 - 3)
    with pytest.raises(ValueError, match=r"\[0, 1\].*--normalize"):
        score(tmp_path / "wide.npz", boxes, out=tmp_path / "out", metrics=["le"])
    for how in ("minmax", "max", "rank"):
        score(tmp_path / "wide.npz", boxes, out=tmp_path / how, metrics=["le"], normalize=how)
        assert json.loads((tmp_path / how / "meta.json").read_text())["explainers"]["wide"]["normalize"] == how
    with pytest.raises(ValueError, match="normalize must be one of"):
        score(tmp_path / "wide.npz", boxes, out=tmp_path / "out", normalize="softmax")


@pytest.mark.parametrize("how", ["none", "minmax", "rank"])
def test_maps_that_are_not_finite_are_refused(saved, tmp_path: Path, how: str) -> None:
    case, _, boxes = saved
    broken = case.masks[:, 0].numpy().copy()
    broken[4, 3, 3] = np.nan
    np.savez(tmp_path / "nan.npz", ids=np.array(case.ids), maps=broken)
    with pytest.raises(ValueError, match=r"'a/4'.*NaN"):
        score(tmp_path / "nan.npz", boxes, out=tmp_path / "out", metrics=["le"], normalize=how)


def test_ids_and_truth_must_match(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    lines = boxes.read_text().splitlines()
    short = tmp_path / "short.csv"
    short.write_text("\n".join(line for line in lines if not line.startswith("a/3")) + "\n")
    with pytest.raises(ValueError, match=r"1 ids \('a/3'\) without boxes"):
        score(maps, short, out=tmp_path / "out")
    short.write_text("\n".join([*lines, "zzz,c,0,0,4,4"]) + "\n")
    with pytest.raises(ValueError, match=r"boxes without a map for 1 ids \('zzz'\)"):
        score(maps, short, out=tmp_path / "out")
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match=r"6 ids .* without a mask"):
        score(maps, boxes, out=tmp_path / "out", masks_dir=tmp_path / "masks")
    assert not (tmp_path / "out").exists()
    assert case.ids[3] == "a/3"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a/0,c,5,5,5,9", "no area"),
        ("a/0,c,40,40,60,60", "outside of its map"),
        ("a/0,c,nan,0,4,4", "number"),
        ("a/0,c,x,0,4,4", "number"),
    ],
)
def test_boxes_that_cannot_be_are_refused(saved, tmp_path: Path, line: str, words: str) -> None:
    _, maps, boxes = saved
    boxes.write_text(boxes.read_text() + line + "\n")
    with pytest.raises(ValueError, match=words):
        score(maps, boxes, out=tmp_path / "out", metrics=["le"])


def test_boxes_may_reach_over_the_edge(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    boxes.write_text("image,class,x0,y0,x1,y1\n" + "".join(f"{n},c,-10,-4,20,50\n" for n in case.ids))
    score(maps, boxes, out=tmp_path / "out", metrics=["f1"])
    box = torch.tensor([[-10.0, -4, 20, 50]])
    expected = METRICS["f1"](Case(case.masks, case.targets, case.ids, boxes=[box] * 6)).tolist()
    assert list(rows_of(tmp_path / "out").values())[::2] == pytest.approx(expected, rel=1e-6)


def test_metrics_and_labels_that_cannot_be_are_refused(saved, tmp_path: Path) -> None:
    _, maps, boxes = saved
    with pytest.raises(ValueError, match=r"unknown metric 'le:other': expected one of le, le:as_released"):
        score(maps, boxes, out=tmp_path / "out", metrics=["le:other"])
    with pytest.raises(ValueError, match=r"unknown metric 'sensitivity-n': expected one of sensitivity_n"):
        score(maps, boxes, out=tmp_path / "out", metrics=["sensitivity-n"])
    with pytest.raises(ValueError, match="'om' needs correct"):
        score(maps, boxes, out=tmp_path / "out", metrics=["om"])
    with pytest.raises(ValueError, match="processes"):
        score(maps, boxes, out=tmp_path / "out", work=Work(processes=0))
    labels = tmp_path / "labels.csv"
    for text, words in (
        ("image,class\na,1", "header"),
        ("image,label\na,-1", "line 2"),
        ("image,label\na,1\na,2", "twice"),
    ):
        labels.write_text(text + "\n")
        with pytest.raises(ValueError, match=words):
            read_labels(labels)


def test_empty_masks_are_scored_and_counted(saved, tmp_path: Path) -> None:
    case, _, boxes = saved
    maps = case.masks[:, 0].numpy().copy()
    maps[2] = 0
    np.savez(tmp_path / "maps.npz", ids=np.array(case.ids), maps=maps)
    score(tmp_path / "maps.npz", boxes, out=tmp_path / "out", metrics=["le", "f1", "energy_inside"])
    found = rows_of(tmp_path / "out")
    assert [found["a/2", name] for name in ("le", "f1", "energy_inside", "degenerate")] == [1, 0, 0, 1]


def test_other_settings_in_one_folder_are_refused(saved, tmp_path: Path) -> None:
    _, maps, boxes = saved
    score(maps, boxes, out=tmp_path / "out", metrics=["le"])
    with pytest.raises(ValueError, match="another setting"):
        score(maps, boxes, out=tmp_path / "out", metrics=["f1"])


def test_two_processes_give_the_rows_of_one(saved, tmp_path: Path, monkeypatch) -> None:
    _, maps, boxes = saved
    monkeypatch.setattr("salmask.evaluation.saved.CHUNK", 2)
    score(maps, boxes, out=tmp_path / "one", metrics=BOX_METRICS)
    score(maps, boxes, out=tmp_path / "two", metrics=BOX_METRICS, work=Work(processes=2))
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


def test_baselines_stand_beside_the_maps_and_count_as_classified_right(saved, tmp_path: Path) -> None:
    case, maps, boxes = saved
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label,predicted\n" + "".join(f"{name},1,0\n" for name in case.ids))
    summary = score_with_baselines(
        maps, boxes, out=tmp_path / "out", labels=labels, metrics=["le", "om", "mask_mean"], seed=3
    )
    assert list(summary) == ["maps", *BASELINES]
    assert {summary[name]["mask_mean"]["n"] for name in summary} == {6}
    assert summary["full"]["mask_mean"]["mean"] == 1 and summary["empty"]["mask_mean"]["mean"] == 0
    assert summary["full"]["degenerate"]["mean"] == 1 and summary["random"]["degenerate"]["mean"] == 0
    assert summary["maps"]["om"]["mean"] == 1  # never classified right
    for name in BASELINES:
        assert summary[name]["om"]["mean"] == summary[name]["le"]["mean"]


def test_a_baseline_must_be_known_and_not_the_name_of_the_maps(saved, tmp_path: Path) -> None:
    _, maps, boxes = saved
    with pytest.raises(ValueError, match="baselines must be among"):
        score_with_baselines(maps, boxes, out=tmp_path / "out", baselines=["fulll"])
    with pytest.raises(ValueError, match="not the maps' own name"):
        score_with_baselines(maps.rename(tmp_path / "full.npz"), boxes, out=tmp_path / "out")
