"""Files of an evaluation that a hand or a bad disk changed: one line that names file and field, never a traceback."""

import json
import re

import numpy as np
import pytest

from salmask.files import NUMBER, check_shape
from salmask.rows.read import file_name, read_counts, read_failures, read_meta, read_rows

ROW = {"image": "a.jpg", "explainer": "gradcam", "metric": "le", "value": 0.5}


@pytest.mark.parametrize("name", ["a/b.jpg", "gradcam", "val/cat/001.JPEG", "x=1", "a-b_c"])
def test_plain_names_stay_readable(name):
    assert file_name(name) == name.replace("/", "__")


@pytest.mark.parametrize(
    "name",
    ["pxap:boxes", "FIX, tuned #0", "a b", "ü.jpg", "..", ".", "", "../../x", ".hidden", "C:\\x", "n" * 400, "a\nb"],
)
def test_every_name_becomes_a_file_name_of_any_system(name, tmp_path):
    made = file_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*", made) and len(made) < 200
    (tmp_path / f"{made}.npz").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == [f"{made}.npz"]


def test_names_that_fold_to_one_stay_two():
    names = ["a/b", "a__b", "a:b", "a b", "a_b", "a;b", "a\\b", "x" * 300 + "1", "x" * 300 + "2", "_/a", "//a", "/_a"]
    assert len({file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "change",
    [
        {"value": "high"},
        {"value": True},
        {"value": [1]},
        {"value": float("nan")},
        {"value": float("inf")},
        {"value": 10**400},
        {"image": 3},
        {"explainer": None},
        {"metric": ["le"]},
    ],
)
def test_a_row_of_another_kind_is_named_by_its_line(tmp_path, change):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | change) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: expected image, explainer, metric and a finite number"):
        read_rows(tmp_path)


def test_deep_nesting_is_a_broken_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="line 2: expected one JSON object"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("meta", "field"),
    [
        ("[" * 100_000, "expected a JSON file"),
        ("[]", "expected a table"),
        ({"explainers": ["gradcam"]}, "explainers: expected a table"),
        ({"explainers": {"a": {"truth": "no"}}}, "explainers.a.truth: expected true or false"),
        ({"metrics": {"le": 3}}, "metrics.le: expected a table"),
        ({"metrics": {"le": {"range": "wide"}}}, "metrics.le.range: expected a list"),
        ({"notes": {"a": 1}}, "notes: expected a list"),
        ({"left_out": ["le"]}, "left_out: expected a table"),
        ({"command": 7}, "command: expected a text or null"),
    ],
)
def test_a_meta_of_another_shape_names_its_field(tmp_path, meta, field):
    (tmp_path / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    with pytest.raises(ValueError, match=re.escape(field)) as error:
        read_meta(tmp_path)
    assert str(tmp_path / "meta.json") in str(error.value) and "\n" not in str(error.value)


def test_a_failure_without_its_image_is_named_by_its_line(tmp_path):
    (tmp_path / "failures.jsonl").write_text('{"explainer": "a", "error": "x"}\n')
    with pytest.raises(ValueError, match=r"failures\.jsonl, line 1: expected the entry 'image'"):
        read_failures(tmp_path)


@pytest.mark.parametrize(
    "change", [{"ids": np.array(3)}, {"replicates": np.zeros((2, 2))}, {"score": np.array(["x"])}, {"metric": None}]
)
def test_counts_of_another_shape_are_named(tmp_path, change):
    folder = tmp_path / "counts" / "a"
    folder.mkdir(parents=True)
    entry = {
        "ids": np.array(["x"]),
        "score": np.array(0.5),
        "replicates": np.zeros(4),
        "explainer": np.array("a"),
        "metric": np.array("m"),
    }
    np.savez(folder / "m.npz", **{key: value for key, value in (entry | change).items() if value is not None})
    with pytest.raises(ValueError, match=r"m\.npz: cannot be read as counts"):
        read_counts(tmp_path)


def test_shapes_name_the_field_within_lists_and_tables():
    shape = {"rows": [{"name": str, "place?": NUMBER}]}
    check_shape("f", {"rows": [{"name": "a"}, {"name": "b", "place": None}], "more": 1}, shape, remedy="again")
    with pytest.raises(ValueError, match=r"f, rows\[1\]\.place: expected .*, got 'x': again"):
        check_shape("f", {"rows": [{"name": "a"}, {"name": "b", "place": "x"}]}, shape, remedy="again")
