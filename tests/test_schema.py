"""Shapes of JSON files: the first field that does not fit is named, whatever is wrong with the file."""

from pathlib import Path

import pytest

from salmask.schema import Maybe, Several, Within, Word, check_shape, read_json

SHAPE = {
    "size": Within(8, 64),
    "share?": Within(0, 1, whole=False),
    "fit": Word("crop", "pad"),
    "of?": Several(str, 1, 2),
}
GOOD = {"size": 64, "share": 0.5, "fit": "pad", "of": ["a"]}


def test_a_value_of_the_shape_passes() -> None:
    check_shape("file", GOOD, SHAPE, remedy="write it again")
    check_shape("file", {"size": 8, "fit": "crop"}, SHAPE, remedy="write it again")
    check_shape("file", None, Maybe(SHAPE), remedy="write it again")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("size", 64.5, "size: expected a whole number, 8 to 64, got 64.5"),
        ("size", 10**9, "8 to 64, got 1000000000"),
        ("size", True, "got True"),
        ("size", "64", "got '64'"),
        ("share", float("nan"), "share: expected a number, 0 to 1, got nan"),
        ("share", 2, "0 to 1, got 2"),
        ("fit", ["crop"], r"fit: expected 'crop' or 'pad', got \['crop'\]"),
        ("of", [], "of: expected a list of 1 to 2, got 0"),
        ("of", ["a", 1], r"of\[1\]: expected a text, got 1"),
        ("of", None, "of: expected a list, got None"),
    ],
)
def test_the_field_that_does_not_fit_is_named(field: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^file, .*{expected}.*: write it again$"):
        check_shape("file", {**GOOD, field: value}, SHAPE, remedy="write it again")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", '{"size": 8', "9" * 5000])
def test_what_is_no_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*a\.json: expected a JSON file[^\n]*write it again$"):
        read_json(tmp_path / "a.json", SHAPE, remedy="write it again")


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="at most 67108864 bytes"):
        read_json(tmp_path / "a.json", SHAPE, remedy="write it again")
