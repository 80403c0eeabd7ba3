"""Pictures in few large files: every picture once, whatever the processes and workers; bad files by name."""

import io
import itertools
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.data import Squash, evaluation_batches, open_data, read_image, training_batches
from salmask.data.numbered import mixed_order
from salmask.data.rasters import Held, is_common
from salmask.data.shards import Shards, shard_files
from salmask.data.streams import DataStream, Share
from salmask.training.run import Loaded

PER_SHARD = (3, 4, 2, 4)
LAYOUTS = list(itertools.product((1, 2, 3), (0, 1, 2)))  # processes, workers


def jpeg(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, files: list[tuple[str, bytes]], **options: object) -> None:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1.5  # not whole: a pax header before each
            archive.addfile(entry, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    numbers = iter(range(sum(PER_SHARD)))
    for shard, count in enumerate(PER_SHARD):
        files = []
        for number in islice(numbers, count):
            files += [(f"{number:04d}.cls", str(number % 3).encode()), (f"{number:04d}.jpg", jpeg(number))]
        write_tar(tmp_path / f"train-{shard:03d}.tar", files)
    return tmp_path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"picture": datasets.Image(), "animal": datasets.ClassLabel(names=["cat", "dog", "eel"])})
    rows = {"picture": [{"bytes": jpeg(n), "path": None} for n in range(13)], "animal": [n % 3 for n in range(13)]}
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(params=["wds", "hf-dataset"])
def spec(request: pytest.FixtureRequest) -> str:
    if request.param == "wds":
        return f"wds:{request.getfixturevalue('shards')}/{{split}}-{{000..003}}.tar"
    return f"hf-dataset:{request.getfixturevalue('table')}"


# Laws of both kinds


@pytest.mark.parametrize(("processes", "workers"), LAYOUTS)
def test_processes_and_workers_together_read_every_picture_once(spec: str, processes: int, workers: int) -> None:
    data = open_data(spec, "train")
    if spec.startswith("hf"):
        data.runs = np.array([0, 5, 9, 13])
    shares = [Share(rank, processes) for rank in range(processes)]
    streams = [DataStream(data, 2, workers=workers, share=share) for share in shares]
    read = [list(stream) for stream in streams]
    assert [len(batches) for batches in read] == [len(stream) for stream in streams]
    assert Counter(name for batches in read for batch in batches for name in batch.ids) == Counter(data.ids)
    # training: batch k of all processes together is batch k of one; 13 batches of 6 are six passes of 13
    one = list(islice(training_batches(data, batch_size=6, seed=3), 13))
    parts = [islice(training_batches(data, batch_size=6, seed=3, workers=workers, share=share), 13) for share in shares]
    together = [list(part) for part in parts]
    for k, batch in enumerate(one):
        rows = [list(range(rank, 6, processes)) for rank in range(processes)]
        for part, chosen in zip(together, rows, strict=True):
            assert part[k].ids == [batch.ids[row] for row in chosen]
            assert torch.equal(part[k].images, batch.images[chosen])
    assert Counter(name for batch in one for name in batch.ids) == dict.fromkeys(data.ids, 6)


@pytest.mark.parametrize("start", [1, 2, 5])
def test_training_goes_on_inside_a_pass(spec: str, start: int) -> None:
    data = open_data(spec, "train")
    whole = list(islice(training_batches(data, batch_size=4, seed=0), 8))
    tail = list(islice(training_batches(data, batch_size=4, seed=0, start=start), 8 - start))
    assert [batch.ids for batch in tail] == [batch.ids for batch in whole[start:]]
    assert [batch.ids for batch in whole] != [
        batch.ids for batch in islice(training_batches(data, batch_size=4, seed=1), 8)
    ]


def test_a_picture_is_what_its_bytes_decode_to(spec: str, tmp_path: Path) -> None:
    data = open_data(spec, "train")
    assert len(data) == 13 and data.targets == [n % 3 for n in range(13)]
    for number in (0, 7, 12):
        (tmp_path / "one.jpg").write_bytes(jpeg(number))
        assert torch.equal(data[number].image, read_image(tmp_path / "one.jpg"))
        assert data[number].id == data.ids[number] and data[number].target == data.targets[number]
    assert len(set(data.ids)) == 13


# Shards


def test_shards_are_read_as_webdataset_reads_them(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pattern = f"{shards}/train-{{000..003}}.tar"
    theirs = webdataset.WebDataset(pattern, shardshuffle=False)
    expected = [(sample["__key__"], sample["jpg"], int(sample["cls"])) for sample in theirs]
    ours = Shards(pattern, "train")
    assert [(ours.name(n).split("/")[1][:4], ours.held(n).content, ours.targets[n]) for n in range(13)] == expected


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_of_any_format_are_found(tmp_path: Path, kind: int) -> None:
    folder = "d" * 90 + "/" + "e" * (40 if kind == tarfile.USTAR_FORMAT else 140)
    files = [(f"{folder}/a.jpg", jpeg(0)), (f"{folder}/a.json", b'{"label": 2}'), ("ä.jpg", jpeg(1)), ("ä.cls", b"0\n")]
    write_tar(tmp_path / "x.tar", files, format=kind)
    data = Shards(str(tmp_path / "*.tar"), "train")
    assert data.ids == [f"x/{folder}/a.jpg", "x/ä.jpg"] and data.targets == [2, 0]
    assert [data.held(n).content for n in (0, 1)] == [jpeg(0), jpeg(1)]


def test_patterns(shards: Path) -> None:
    names = [path.name for path in shard_files(f"{shards}/{{split}}-{{000..001}}.tar", "train")]
    assert names == ["train-000.tar", "train-001.tar"]
    assert [path.name for path in shard_files(f"{shards}/*-00{{3,1}}.tar", "val")] == ["train-003.tar", "train-001.tar"]
    for pattern, said in {
        f"{shards}/val-*.tar": "no shard matches.*got train-000.tar",
        f"{shards}/nowhere/*.tar": "there is no",
        f"{shards}/train-{{000..009}}.tar": "train-004.tar is missing",
    }.items():
        with pytest.raises(ValueError, match=said):
            open_data(f"wds:{pattern}", "train")


def test_a_cut_shard_is_named_and_what_lies_before_the_cut_is_kept(shards: Path) -> None:
    pattern = f"{shards}/train-*.tar"
    path = shards / "train-001.tar"
    whole = path.read_bytes()
    for cut in (len(whole) // 2, 4 * 2048 + 700):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"train-001.tar is cut"):
            Shards(pattern, "train")
        with pytest.warns(UserWarning, match=r"1 part of the shards .*train-001.tar is cut"):
            kept = Shards(pattern, "train", skip_broken=True)
        assert 9 < len(kept) < 13 and kept[len(kept) - 1].id == "train-003/0012.jpg"
    # cut at the end of a file: only the zeros that close an archive tell
    path.write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    with pytest.raises(ValueError, match="without the zeros"):
        Shards(pattern, "train")


def test_bad_samples_are_named_counted_and_passed_over(shards: Path) -> None:
    files = [("a.jpg", b"\xff\xd8\xff no picture"), ("a.cls", b"1"), ("b.cls", b"1")]
    files += [("c.jpg", jpeg(0)), ("c.png", jpeg(1))]
    write_tar(
        shards / "train-009.tar", [*files, ("d.jpg", jpeg(2)), ("d.cls", b"cat"), ("e.jpg", jpeg(3)), ("e.cls", b"1")]
    )
    pattern = f"{shards}/train-*.tar"
    with pytest.raises(ValueError, match=r"sample 'b' in .*train-009.tar has 0 pictures"):
        Shards(pattern, "train")
    with pytest.warns(UserWarning, match=r"3 parts of the shards .* 15 pictures remain"):
        data = Shards(pattern, "train", skip_broken=True)
    assert data[14].id == "train-009/e.jpg" and data[14].target == 1 and data.runs.tolist() == [0, 3, 7, 9, 13, 15]
    assert sorted(data.order(0, 0)) == list(range(15))
    with pytest.warns(UserWarning, match=r"passed over.*train-009.tar/a.jpg cannot be decoded"):
        batches = list(evaluation_batches(data, batch_size=4))
    assert [name for batch in batches for name in batch.ids] == [*data.ids[:13], "train-009/e.jpg"]
    write_tar(shards / "train-009.tar", files[:1])
    with pytest.raises(ValueError, match="some with and some without"):
        Shards(pattern, "train")
    only = Shards(f"{shards}/train-009.tar", "train")
    with pytest.raises(ValueError, match=r"train-009.tar/a.jpg cannot be decoded"):
        only[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_cannot_be_read_are_passed_over_where_they_are_met(shards: Path, workers: int) -> None:
    """Of 15 pictures in batches of 3, the second of one batch and all of another are broken."""
    bad = {"train-003/0010.jpg", "train-000/0000.jpg", "train-000/0001.jpg", "train-000/0002.jpg"}
    decoded = Counter[str]()

    def read(held: Held) -> torch.Tensor:
        decoded[held.name.rpartition(".tar/")[2]] += 1
        if held.name.rpartition("/")[2] in {name.rpartition("/")[2] for name in bad}:
            raise ValueError(f"{held.name} cannot be decoded")
        return read_image(held)

    data = Shards(f"{shards}/train-*.tar", "train", skip_broken=True, read=read)
    assert not decoded and len(data) == 13
    with pytest.warns(UserWarning) as said:
        batches = list(evaluation_batches(data, batch_size=3, workers=workers))
    texts = [str(one.message) for one in said]
    assert len(texts) == 2 and "0000.jpg cannot be decoded" in texts[0] and texts[1].startswith("4 pictures could not")
    assert [len(batch.ids) for batch in batches] == [0, 3, 3, 2, 1]
    assert [name for batch in batches for name in batch.ids] == [name for name in data.ids if name not in bad]
    assert workers or set(decoded.values()) == {1}
    # in training the next one stands in: every batch is whole, whoever reads it
    with pytest.warns(UserWarning, match="passed over"):
        stream = training_batches(data, batch_size=4, seed=0, workers=workers)
        whole = list(islice(stream, 13))
        stream.close()
    places = [index for seed_turn in range(4) for index in data.order(0, seed_turn)]
    after = {k: next(j % 13 for j in range(k, k + 13) if data.ids[j % 13] not in bad) for k in range(13)}
    assert [name for batch in whole for name in batch.ids] == [data.ids[after[k]] for k in places]
    with pytest.warns(UserWarning, match="passed over"):
        (part,) = islice(training_batches(data, batch_size=4, seed=0, start=5, share=Share(1, 2)), 1)
    assert part.ids == whole[5].ids[1::2] and torch.equal(part.images, whole[5].images[1::2])


def test_no_picture_that_can_be_read_is_an_error(shards: Path) -> None:
    def read(held: Held) -> torch.Tensor:
        raise ValueError(f"{held.name} cannot be decoded")

    data = Shards(f"{shards}/train-*.tar", "train", skip_broken=True, read=read)
    with pytest.raises(ValueError, match=r"none of 13 pictures can be read; the first: .*cannot be decoded"):
        next(training_batches(data, batch_size=4, seed=0))


def test_shards_of_one_name_in_several_folders_have_names_of_their_own(shards: Path) -> None:
    for folder in "ab":
        (shards / folder).mkdir()
        (shards / folder / "000.tar").write_bytes((shards / "train-000.tar").read_bytes())
    data = Shards(f"{shards}/{{a,b}}/000.tar", "train")
    assert data.ids == [f"{folder}/000/000{n}.jpg" for folder in "ab" for n in range(3)]


def test_a_sample_that_comes_twice_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("a.jpg", jpeg(2))])
    with pytest.raises(ValueError, match=r"sample 'a' comes twice in .*x.tar"):
        Shards(str(tmp_path / "x.tar"), "train")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("a.jpg", jpeg(1)), ("a.jpg", jpeg(2))], "sample 'a' in .* has 2 pictures, .* got jpg, jpg"),
        ([("a.jpg", jpeg(1)), ("a.JPG", jpeg(2))], "sample 'a' in .* has 2 pictures"),
        ([("a.jpg", jpeg(1)), ("a.cls", b"1"), ("a.cls", b"2")], "its class once; got cls, cls, jpg"),
        ([("a.jpg", jpeg(1)), ("a.cls", b"9999999999")], "expected the number of a class, got '9999999999'"),
    ],
)
def test_nothing_of_a_sample_is_overwritten_by_what_has_its_name(
    tmp_path: Path, files: list[tuple[str, bytes]], said: str
) -> None:
    write_tar(tmp_path / "x.tar", [("0.jpg", jpeg(0)), ("0.cls", b"0"), *files])
    with pytest.raises(ValueError, match=said):
        Shards(str(tmp_path / "x.tar"), "train")
    with pytest.warns(UserWarning, match=r"1 part of the shards .* 1 pictures remain"):
        assert Shards(str(tmp_path / "x.tar"), "train", skip_broken=True).ids == ["x/0.jpg"]


def test_what_follows_the_end_of_a_shard_is_not_lost_without_a_word(shards: Path) -> None:
    """Two archives in one file, and a download whose file was as long as it should become from the start."""
    first, second = ((shards / f"train-00{n}.tar").read_bytes() for n in (0, 1))
    for number, content in enumerate((first + second, first[:4096] + bytes(2**20))):
        (shards / f"odd-{number}.tar").write_bytes(content)
        with pytest.raises(ValueError, match=rf"odd-{number}.tar is cut .*more follows its end"):
            Shards(f"{shards}/odd-{number}.tar", "train")
    (shards / "long.tar").write_bytes(
        first.rstrip(b"\0") + bytes(-len(first.rstrip(b"\0")) % 512 + 2**17)
    )  # tar -b 256
    assert len(Shards(f"{shards}/long.tar", "train")) == PER_SHARD[0]


def test_links_in_a_shard_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", jpeg(0))])
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"sample 'b' in .*x.tar: b.jpg is a link"):
        Shards(str(tmp_path / "x.tar"), "train")


def test_names_in_any_letters_and_json_of_any_kind(tmp_path: Path) -> None:
    files = [(f"\xe9{n}.{kind}", one) for n in (0, 1) for kind, one in (("jpg", jpeg(n)), ("json", b'"label"'))]
    write_tar(
        tmp_path / "x.tar",
        [*files, ("2.jpg", jpeg(2)), ("2.json", b"5")],
        format=tarfile.GNU_FORMAT,
        encoding="latin-1",
    )
    data = Shards(str(tmp_path / "x.tar"), "train")
    assert data.ids == ["x/\\xe90.jpg", "x/\\xe91.jpg", "x/2.jpg"] and data.targets == [-1] * 3
    assert data.held(1).content == jpeg(1)


def test_shards_that_differ_in_their_ending_alone_have_names_of_their_own(shards: Path) -> None:
    (shards / "train-000.wds").write_bytes((shards / "train-001.tar").read_bytes())
    data = Shards(f"{shards}/train-000.{{tar,wds}}", "train")
    assert len(set(data.ids)) == len(data) == 7 and data.ids[3] == "train-000.wds/0003.jpg"


def test_more_processes_than_shards_are_refused(shards: Path) -> None:
    data = open_data(f"wds:{shards}/train-00[01].tar", "train")
    with pytest.raises(ValueError, match="3 processes for 2 shards"):
        training_batches(data, batch_size=6, seed=0, share=Share(0, 3))
    with pytest.raises(ValueError, match=r"at least one device and one node \(--devices, --nodes\)"):
        Share(0, 0).check(6, data)
    with pytest.raises(ValueError, match="batch of 5 pictures"):
        training_batches(data, batch_size=5, seed=0, share=Share(0, 2))


def test_pictures_are_mixed_within_groups_of_runs_that_are_drawn() -> None:
    runs = np.array([0, 4, 5, 9, 14, 20])
    homes = np.searchsorted(runs, np.arange(20), side="right") - 1
    seen = set()
    for turn in range(30):
        order = mixed_order(runs, 7, turn, together=2)
        assert sorted(order) == list(range(20))
        assert np.array_equal(order, mixed_order(runs, 7, turn, together=2))
        groups = [tuple(dict.fromkeys(homes[order]))[at : at + 2] for at in (0, 2, 4)]
        start = 0
        for group in map(set, groups):
            count = sum(runs[run + 1] - runs[run] for run in group)
            assert set(homes[order[start : start + count]]) == group
            start += count
        seen.add(tuple(order))
    assert len(seen) == 30


def test_classes_by_number_are_the_classifiers(shards: Path, small_net: torch.nn.Module) -> None:
    from salmask import Classifier
    from salmask.data.sight import Sight

    classifier = Classifier(small_net, mean=(0, 0, 0), std=(1, 1, 1), layers=None, image_size=16)
    loaded = Loaded(classifier, "", Sight(16))
    spec = f"wds:{shards}/train-*.tar"
    assert loaded.folders(spec, "train") == ["0", "1", "2", "3"]
    assert open_data(spec, "train", classes=loaded.folders(spec, "train")).classes == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="classes run to 2, expected numbers below 2"):
        open_data(spec, "train", classes=["a", "b"])


def test_other_kinds_of_pictures_pass_through_a_file(tmp_path: Path) -> None:
    deep = np.arange(48, dtype=np.uint16).reshape(4, 4, 3) * 1000
    import cv2

    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    held = Held("shard/deep.png", (tmp_path / "deep.png").read_bytes())
    assert not is_common(held, held.open())
    assert torch.equal(read_image(held), read_image(tmp_path / "deep.png"))
    with pytest.raises(ValueError, match=r"^shard/x.tif cannot be decoded") as error:
        read_image(Held("shard/x.tif", b"II*\0 nothing"))
    assert "/tmp" not in str(error.value)


# Tables


def test_names_of_classes_are_matched(table: Path) -> None:
    assert open_data(f"hf-dataset:{table}", "train").classes == ["cat", "dog", "eel"]
    other = open_data(f"hf-dataset:{table}", "train", classes=["eel", "emu", "cat", "dog"], transform=Squash(8))
    assert other.targets[:3] == [2, 3, 0] == [other[n].target for n in range(3)]
    with pytest.raises(ValueError, match="lacks: dog, eel"):
        open_data(f"hf-dataset:{table}", "train", classes=["cat"])


def test_parquet_and_splits(table: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.load_from_disk(str(table))
    folder = tmp_path / "parquet"
    folder.mkdir()
    whole.select(range(5)).to_parquet(folder / "train-00000-of-00001.parquet")
    whole.select(range(5, 13)).to_parquet(folder / "validation-00000-of-00001.parquet")
    train, val = (open_data(f"hf-dataset:{folder}:image=picture,label=animal", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (5, 8) and val.targets == [n % 3 for n in range(5, 13)]
    assert torch.equal(val[0].image, open_data(f"hf-dataset:{table}", "val")[5].image)
    with pytest.raises(ValueError, match="no split 'extra': expected one of train, validation"):
        open_data(f"hf-dataset:{folder}", "extra")


def test_bad_tables_are_named(table: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    plain = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    plain.save_to_disk(tmp_path / "plain")
    for spec, said in {
        f"hf-dataset:{tmp_path / 'plain'}": r"no columns of pictures .*its columns are text \(Value\), label \(Value\)",
        f"hf-dataset:{table}:image=photo": "no column 'photo': its columns are picture",
        f"hf-dataset:{table}:photo=x": "expected hf-dataset:PATH:image=COLUMN",
        f"hf-dataset:{tmp_path}": "expected what save_to_disk wrote",
    }.items():
        with pytest.raises(ValueError, match=said):
            open_data(spec, "train")


def test_a_row_without_a_picture_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": jpeg(0), "path": None}, None, {"bytes": b"\xff\xd8\xff", "path": None}]}
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "x")
    data = open_data(f"hf-dataset:{tmp_path / 'x'}", "train")
    assert data.targets == [-1, -1, -1] and data.classes == []
    with pytest.raises(ValueError, match="row 1 of train has no picture"):
        data[1]
    with pytest.raises(ValueError, match="row 2 of train cannot be decoded"):
        data[2]
    with pytest.warns(UserWarning, match=r"row 1 of train has no picture"):
        batches = list(
            evaluation_batches(open_data(f"hf-dataset:{tmp_path / 'x'}", "train", skip_broken=True), batch_size=2)
        )
    assert [batch.ids for batch in batches] == [["train/00000000"], []]


def test_a_table_says_where_a_picture_or_a_class_is_missing_and_nothing_else(tmp_path: Path, capfd) -> None:
    """Of `datasets` no line gets among those of a command, whose own progress bars stay as they were."""
    datasets = pytest.importorskip("datasets")
    picture = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    kinds = datasets.Features({"image": picture, "label": datasets.Value("string")})
    pictures = [{"bytes": jpeg(0), "path": None}, {"bytes": None, "path": None}, {"bytes": b"", "path": None}]
    file = tmp_path / "x.parquet"
    plain = datasets.Dataset.from_dict({"image": pictures, "label": list("aba")}, features=kinds)
    plain.cast_column("image", datasets.Image()).to_parquet(file)
    capfd.readouterr()
    for spec in (f"hf-dataset:{file}", f"hf-dataset:{file}:streaming"):
        with pytest.warns(UserWarning, match="'label' holds no whole numbers, and the pictures have no class"):
            data = open_data(spec, "train")
        assert len(data) == 3 and data.targets == [-1] * 3
        with pytest.raises(ValueError, match="row 1 of train has no picture"):
            data[1]
        with pytest.raises(ValueError, match="row 2 of train cannot be decoded"):
            data[2]
    with pytest.raises(ValueError, match=r"in every row, got .*class_encode_column"):
        open_data(f"hf-dataset:{file}:label=label", "train")
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()


def test_pictures_of_a_share_reach_evaluation(spec: str) -> None:
    data = open_data(spec, "train", transform=Squash(8))
    batches = list(evaluation_batches(data, batch_size=5, share=Share(1, 2)))
    assert [len(batch.ids) for batch in batches] == [5] and batches[0].ids == data.ids[5:10]
