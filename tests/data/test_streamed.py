"""Data sets of Hugging Face that are streamed: what a fetched one has, in an order of its own, each picture once."""

import io
import itertools
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salmask.classifier import reach
from salmask.data import evaluation_batches, open_data, training_batches
from salmask.data import streamed as module
from salmask.data.layouts import absolute, has_split, label_names
from salmask.data.sample import Batch
from salmask.data.streamed import Streamed, chain
from salmask.data.streams import DataStream, Share, Subset

datasets = pytest.importorskip("datasets")

PER_FILE = (5, 0, 3, 7, 2, 6)
COUNT = sum(PER_FILE)


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, *, labelled: bool = True, bad: int | None = None) -> Path:
    """Write parquet files as the Hub has them, in row groups of two."""
    kinds = {"picture": datasets.Image()}
    kinds |= {"animal": datasets.ClassLabel(names=["cat", "dog", "eel"])} if labelled else {}
    (folder / "data").mkdir(parents=True)
    numbers = iter(range(COUNT))
    for file, count in enumerate(PER_FILE):
        own = list(islice(numbers, count))
        rows = {"picture": [{"bytes": b"\xff\xd8\xff none" if n == bad else jpeg(n), "path": None} for n in own]}
        rows |= {"animal": [n % 3 for n in own]} if labelled else {}
        path = folder / "data" / f"train-{file:05d}-of-{len(PER_FILE):05d}.parquet"
        datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(path, batch_size=2)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(module, "OPEN", 2)
    monkeypatch.setattr(module, "BLOCK", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "hub")


@pytest.fixture
def stream(folder: Path) -> Streamed:
    data = open_data(f"hf-dataset:{folder}:streaming", "train")
    assert isinstance(data, Streamed)
    return data


def test_a_stream_holds_what_the_fetched_data_holds(stream: Streamed, folder: Path) -> None:
    fetched = open_data(f"hf-dataset:{folder}", "train")
    assert (stream.ids, stream.targets, stream.classes) == (fetched.ids, fetched.targets, fetched.classes)
    assert stream.runs.tolist() == [0, 5, 5, 8, 15, 17, 23]
    for row in (0, 4, 5, 22, 3, 16, 15):  # also back, and across files
        assert torch.equal(stream[row].image, fetched[row].image) and stream[row].id == fetched.ids[row]


@pytest.mark.parametrize(("processes", "workers"), list(itertools.product((1, 2, 3), (0, 2))))
def test_processes_and_workers_together_read_every_picture_once(
    stream: Streamed, folder: Path, processes: int, workers: int
) -> None:
    fetched = open_data(f"hf-dataset:{folder}", "train")
    shares = [Share(rank, processes) for rank in range(processes)]
    read = [batch for share in shares for batch in DataStream(stream, 2, workers=workers, share=share)]
    assert Counter(name for batch in read for name in batch.ids) == Counter(stream.ids)
    one = list(islice(training_batches(stream, batch_size=6, seed=3), COUNT))
    assert Counter(name for batch in one for name in batch.ids) == dict.fromkeys(stream.ids, 6)
    for batch in one:
        assert batch.targets.tolist() == [stream.targets[int(name[-8:])] for name in batch.ids]
        assert all(
            torch.equal((image * 255).round().byte(), fetched[int(name[-8:])].image)
            for image, name in zip(batch.images, batch.ids, strict=True)
        )
    for share in shares:
        part = list(islice(training_batches(stream, batch_size=6, seed=3, workers=workers, share=share), COUNT))
        for mine, batch in zip(part, one, strict=True):
            chosen = list(range(share.rank, 6, processes))
            assert mine.ids == [batch.ids[row] for row in chosen] and torch.equal(mine.images, batch.images[chosen])


@pytest.mark.parametrize("start", [1, 3, 8])
def test_training_goes_on_inside_a_pass(stream: Streamed, folder: Path, start: int) -> None:
    def ids(batches: Iterator[Batch]) -> list[list[str]]:
        return [batch.ids for batch in batches]

    whole = ids(islice(training_batches(stream, batch_size=4, seed=0), 10))
    again = open_data(f"hf-dataset:{folder}:streaming", "train")
    assert ids(islice(training_batches(again, batch_size=4, seed=0, start=start), 10 - start)) == whole[start:]
    assert ids(islice(training_batches(stream, batch_size=4, seed=1), 10)) != whole


def test_no_part_is_opened_twice_in_a_pass(stream: Streamed, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Counter[int]()
    shard = datasets.IterableDataset.shard

    def counted(self: object, num_shards: int, index: int) -> object:
        opened[index] += 1
        return shard(self, num_shards=num_shards, index=index)

    monkeypatch.setattr(datasets.IterableDataset, "shard", counted)
    list(evaluation_batches(stream, batch_size=4))
    assert opened == {0: 1, 2: 1, 3: 1, 4: 1, 5: 1}
    opened.clear()
    list(islice(training_batches(stream, batch_size=COUNT, seed=0), 1))
    assert set(opened) == {0, 2, 3, 4, 5} and opened.total() <= 7  # a short one, and its neighbours, are left once


def test_the_order_is_that_of_parts_in_turns_and_blocks(stream: Streamed) -> None:
    runs = np.array([0, 3, 4, 8])
    drawn = np.random.default_rng([5, 2]).permutation(3)
    turns = [list(range(runs[part], runs[part + 1])) for part in drawn]
    expected = [own[place] for place in range(4) for own in turns[:2] if place < len(own)] + turns[2]
    assert chain(runs, 5, 2).tolist() == expected
    order, rows = stream.order(5, 2), chain(stream.runs, 5, 2)
    assert sorted(order) == list(range(COUNT)) and order.tolist() != rows.tolist()
    for at in range(0, COUNT, 4):
        assert sorted(order[at : at + 4]) == sorted(rows[at : at + 4])


@pytest.mark.parametrize("workers", [0, 2])
def test_some_pictures_of_a_stream_and_those_that_are_broken(tmp_path: Path, workers: int) -> None:
    data = open_data(f"hf-dataset:{write(tmp_path / 'hub', bad=6)}:streaming", "train", skip_broken=True)
    some = Subset(Subset(data, [1, 6, 7, 20], targets=[9, 8, 7, 6]), [0, 1, 3])
    with pytest.warns(UserWarning, match="passed over.*row 6 of train cannot be decoded"):
        (batch,) = evaluation_batches(some, batch_size=4, workers=workers)
    assert batch.ids == ["train/00000001", "train/00000020"] and batch.targets.tolist() == [9, 6]
    with pytest.warns(UserWarning, match="passed over"):
        read = list(islice(training_batches(data, batch_size=COUNT, seed=0, workers=workers), 1))
    assert Counter(read[0].ids) == Counter(data.ids) - Counter(["train/00000006"]) + Counter(["train/00000007"])


def test_without_classes_another_column_or_the_pictures_are_counted(tmp_path: Path) -> None:
    data = open_data(f"hf-dataset:{write(tmp_path / 'hub', labelled=False)}:streaming", "train")
    assert len(data) == COUNT and set(data.targets) == {-1} and data.classes == []


def test_a_repository_of_splits_is_read_by_its_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the Hub: `load_dataset(NAME)`, with the features that a card states, here of a folder."""
    (folder / "data" / "train-00000-of-00006.parquet").rename(folder / "data" / "test-00000-of-00001.parquet")
    kinds = (
        "  - name: picture\n    dtype: image\n  - name: animal\n    dtype:\n      class_label:\n        names:\n"
        "          '0': cat\n          '1': dog\n          '2': eel"
    )
    (folder / "README.md").write_text(f"---\ndataset_info:\n  features:\n{kinds}\n---\n")
    monkeypatch.chdir(folder.parent)
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, *rest, **more: load(name.replace("somebody/", "./"), *rest, **more)
    )
    spec = "hf-dataset:somebody/hub:streaming"
    train, val = open_data(spec, "train"), open_data(spec, "val")
    assert (len(train), len(val)) == (18, 5) and val.classes == ["cat", "dog", "eel"]
    assert label_names("somebody/hub:streaming", "val") == val.classes
    assert has_split(spec, "val") and not has_split(spec, "other")
    assert [name for batch in evaluation_batches(val, batch_size=2) for name in batch.ids] == val.ids
    with pytest.raises(ValueError, match=r"no split 'other': expected one of train, test"):
        open_data(spec, "other")


def test_what_cannot_be_streamed_is_one_clear_line(tmp_path: Path, folder: Path) -> None:
    for spec, said in {
        f"{folder}:streaming,image=photo": r"no column 'photo': its columns are picture \(Image\), animal \(Class",
        f"{folder}:streamed=1": "expected hf-dataset:PATH:.*streaming, got 'streamed'",
        f"{folder}/nowhere:streaming": "no data set",
    }.items():
        with pytest.raises(ValueError, match=said) as error:
            open_data(f"hf-dataset:{spec}", "train")
        assert "\n" not in str(error.value)
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="leave streaming out"):
        open_data(f"hf-dataset:{tmp_path}/saved:streaming", "train")
    with pytest.raises(ValueError, match=r"no columns of pictures.*its columns are a \(Value\)"):
        open_data(f"hf-dataset:{tmp_path}/saved", "train")
    file = folder / "data" / "train-00003-of-00006.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    for streaming in ("", ":streaming"):
        spec = f"hf-dataset:{folder}{streaming}"
        with pytest.raises(ValueError, match=r"the parquet file .*train-00003-of-00006.parquet is cut or none: fetch"):
            open_data(spec, "train")
        with pytest.warns(UserWarning, match=r"1 part of the data set .* is left out, 16 pictures remain"):
            kept = open_data(spec, "train", skip_broken=True)
        read = [label for batch in evaluation_batches(kept, batch_size=5) for label in batch.targets.tolist()]
        assert read == [n % 3 for n in range(COUNT) if not 8 <= n < 15]


def test_a_hub_out_of_reach_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(reach, "reachable", lambda address: False)

    def load(name: str, *rest: object, **more: object) -> None:
        asked.append(reach.constants.HF_HUB_OFFLINE)
        raise ConnectionError("Couldn't reach it\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"no data set 'owner/name': .*\(ConnectionError: Couldn't reach it\)$"):
        open_data("hf-dataset:owner/name:streaming", "train")
    assert asked == [True]


def test_data_that_change_while_they_are_read_are_an_error(stream: Streamed, folder: Path) -> None:
    first = folder / "data" / "train-00000-of-00006.parquet"
    first.write_bytes((folder / "data" / "train-00002-of-00006.parquet").read_bytes())
    with pytest.raises(ValueError, match="has changed: it ends before row 3 of train"):
        list(evaluation_batches(stream, batch_size=2))
    first.write_bytes(b"gone")
    with pytest.raises(ValueError, match=r"row 0 of train cannot be read .*: look at the line and the server"):
        stream[0]


def test_a_spec_means_the_same_in_every_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert absolute("hf-dataset:hub:image=picture,streaming") == f"hf-dataset:{folder}:image=picture,streaming"
    assert absolute("hf-dataset:owner/name:streaming") == "hf-dataset:owner/name:streaming"
