"""Appending: what a killed run leaves behind is never counted twice, and what is written is whole."""

import os

import numpy as np
import pytest

from salmask.files import replace_file
from salmask.rows import write
from salmask.rows.read import file_name, read_counts
from salmask.rows.write import Writer


def total(counts: np.ndarray) -> float:
    return float(counts.sum())


def test_counts_without_their_rows_are_counted_once(tmp_path):
    """A run that is killed between an explainer's first counts and their rows."""
    killed = Writer(tmp_path, ["le"], {"hits": total})
    killed.add("a", "1.jpg", {"le": 0.0}, {"hits": np.array([7])})
    killed._rows.clear()  # the counts are flushed, the rows are not
    killed.flush()
    with Writer(tmp_path, ["le"], {"hits": total}) as again:
        assert not again.has("a", "1.jpg")
        for image, count in (("1.jpg", 1), ("2.jpg", 2)):
            again.add("a", image, {"le": 0.0}, {"hits": np.array([count])})
            again.flush()
    assert read_counts(tmp_path)["a"]["hits"]["score"] == 3


def test_counts_go_on_in_the_type_that_they_began_in(tmp_path):
    first = Writer(tmp_path, ["le"], {"hits": total})
    first.add("a", "1.jpg", {"le": 0.0}, {"hits": np.array([70_000], dtype=np.int32)})
    first.flush()
    with Writer(tmp_path, ["le"], {"hits": total}) as again:
        again.add("a", "2.jpg", {"le": 0.0}, {"hits": np.array([5], dtype=np.uint16)})
    assert read_counts(tmp_path)["a"]["hits"]["score"] == 70_005


@pytest.mark.parametrize("content", [b"[]\n", b'{"shape": "x"}\n', b"", b'{"shape": [1]'])
def test_a_journal_of_another_kind_is_named(tmp_path, content):
    first = Writer(tmp_path, ["le"], {"pxap:boxes": total})
    first.add("a", "1.jpg", {"le": 0.0}, {"pxap:boxes": np.array([1])})
    first.flush()
    journal = tmp_path / "counts" / "a" / f"{file_name('pxap:boxes')}.journal"
    journal.write_bytes(content)
    with pytest.raises(ValueError, match="expected counts of 1 images"):
        Writer(tmp_path, ["le"], {"pxap:boxes": total})


def test_a_finished_file_is_never_half_of_one(tmp_path, monkeypatch):
    """The counts of an earlier run stay as they are where a later one is killed while it writes its own."""
    with Writer(tmp_path, ["le"], {"hits": total}) as writer:
        writer.add("a", "1.jpg", {"le": 0.0}, {"hits": np.array([1])})

    def killed(path, save):
        def half(draft):
            save(draft)
            draft.write_bytes(draft.read_bytes()[:20])
            raise KeyboardInterrupt

        replace_file(path, half)

    monkeypatch.setattr(write, "replace_file", killed)
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path, ["le"], {"hits": total}) as writer:
        writer.add("a", "2.jpg", {"le": 0.0}, {"hits": np.array([1])})
    assert read_counts(tmp_path)["a"]["hits"]["score"] == 1


def test_rows_that_are_a_pipe_or_a_folder_are_named(tmp_path):
    for make in (os.mkfifo, os.mkdir):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder / "rows.jsonl")
        with pytest.raises(ValueError, match=r"rows\.jsonl is .*: expected rows, a JSON object a line"):
            Writer(folder, ["le"], {})
