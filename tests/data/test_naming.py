"""Which folder shows which class, by any of its names."""

from pathlib import Path

import pytest

from salmask.data.naming import check_order, folder_names, listed_classes

ALIASES = [("tench, Tinca tinca", "n01"), ("crane (n02)", "n02"), ("crane (n03)", "n03"), ("tabby, tabby cat", "n04")]
ROOT = Path("data/train")


@pytest.mark.parametrize("folder", ["n04", "tabby, tabby cat", "tabby", "Tabby Cat", "tabby_cat"])
def test_a_folder_goes_by_any_name_of_its_class(folder) -> None:
    names = folder_names([folder, "n01"], ALIASES, where=ROOT)
    assert names == ["n01", "crane (n02)", "crane (n03)", folder]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["cats", "n01"],
            "must be named as the network's classes, such as 'tench, Tinca tinca' or 'n01'; 1 of 2",
        ),
        (["a", "b"], r"2 of 2 name none: a, b\. Rename them, list .* classes\.txt .* --target predicted"),
        (["n04", "tabby"], "two folders of one class: n04 and tabby"),
    ],
)
def test_folders_that_name_no_class_or_one_twice_are_refused(folders, message) -> None:
    with pytest.raises(ValueError, match=message):
        folder_names(folders, ALIASES, where=ROOT)


def test_a_name_of_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="2 classes have that name; use their synsets"):
        folder_names(["crane"], [("crane", "n02"), ("crane, bird", "n03")], where=ROOT)


def test_a_list_of_classes_is_read_in_its_order(tmp_path) -> None:
    assert listed_classes(tmp_path, 3) is None
    (tmp_path / "classes.txt").write_text("zebra\nant\n\nbee\n")
    assert listed_classes(tmp_path, 3) == ["zebra", "ant", "bee"]
    with pytest.raises(ValueError, match="lists 3 classes, the network has 4: line k is the network's class k"):
        listed_classes(tmp_path, 4)
    (tmp_path / "classes.txt").write_text("ant\nbee\nant\n")
    with pytest.raises(ValueError, match="lists 'ant' twice"):
        listed_classes(tmp_path, 3)


def test_a_list_in_another_order_than_the_network_s_own_names_is_refused() -> None:
    where = Path("names.txt")
    check_order(["n01", "crane", "crane", "Tabby_Cat"], ALIASES, where=where)
    check_order(["Schleie", "n02", "Kranich", "Katze"], ALIASES, where=where)  # names that the network does not know
    for names, message in {
        ("n01", "n03", "n02", "n04"): "names.txt, line 2: 'n03' is the network's class 3, and its class 2 is 'crane",
        ("tabby", "b", "c", "d"): "line 1: 'tabby' is the network's class 4, and its class 1 is 'tench, Tinca tinca'",
    }.items():
        with pytest.raises(ValueError, match=message):
            check_order(names, ALIASES, where=where)
