"""Folders of pictures and the classes of a network: which folder shows which class, by name.

A network for 1,000 classes and a folder for 20 of them is the usual case. A folder goes by any name of its class: what
the network calls it, one of several names that are set apart by commas, its synset.
"""

from collections.abc import Sequence
from pathlib import Path

from salmask.files import regular_file

__all__ = ["CLASSES", "check_order", "folder_names", "listed_classes", "read_classes"]

CLASSES = "classes.txt"


def folder_names(folders: Sequence[str], aliases: Sequence[Sequence[str]], *, where: Path) -> list[str]:
    """Return a name for every class: that of the folder that shows it, or its first name where no folder does.

    aliases: the names of each class, in the order of the network's outputs.
    Errors: ValueError for folders that name no class, a name that two classes have, and two folders of one class.
    """
    owners: dict[str, set[int]] = {}
    for number, names in enumerate(aliases):
        for name in _spellings(names):
            owners.setdefault(name, set()).add(number)
    unknown = [folder for folder in folders if _plain(folder) not in owners]
    if unknown:
        raise ValueError(
            f"the folders in {where} must be named as the network's classes, such as {aliases[0][0]!r} or "
            f"{aliases[0][-1]!r}; {len(unknown)} of {len(folders)} name none: {', '.join(unknown[:5])}. Rename them, "
            f"list the network's classes in {CLASSES} beside them, or train with --target "
            "predicted, which needs no classes"
        )
    names = [one[0] for one in aliases]
    taken: dict[int, str] = {}
    for folder in folders:
        numbers = owners[_plain(folder)]
        if len(numbers) > 1:
            raise ValueError(f"{where / folder}: {len(numbers)} classes have that name; use their synsets")
        (number,) = numbers
        if number in taken:
            raise ValueError(f"{where} has two folders of one class: {taken[number]} and {folder}")
        taken[number] = names[number] = folder
    return names


def listed_classes(root: Path, count: int) -> list[str] | None:
    """Return the classes that `classes.txt` lists, one a line in the order of the network's outputs; None without it.

    Errors: ValueError for another number of lines than the network has classes, and for a name that stands twice.
    """
    return read_classes(root / CLASSES, count) if (root / CLASSES).is_file() else None


def read_classes(path: Path, count: int) -> list[str]:
    """Return the classes that a file lists, one a line in the order of the network's outputs.

    Errors: FileNotFoundError; ValueError for another number of lines than the network has classes, and for a name that
    stands twice.
    """
    regular_file(path, "a list of classes, one a line")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != count:
        raise ValueError(f"{path} lists {len(names)} classes, the network has {count}: line k is the network's class k")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} lists {twice!r} twice: every class has a line of its own")
    return names


def check_order(names: Sequence[str], aliases: Sequence[Sequence[str]], *, where: Path) -> None:
    """Raise ValueError for a list that gives a class of the network the name of another one.

    names: line k of the list. aliases: the names that the network itself has for each class. Names that it does not
    know, such as those of another language, are taken as they are.
    """
    owners: dict[str, set[int]] = {}
    for number, own in enumerate(aliases):
        for name in _spellings(own):
            owners.setdefault(name, set()).add(number)
    for number, name in enumerate(names):
        others = owners.get(_plain(name), {number})
        if number not in others:
            raise ValueError(
                f"{where}, line {number + 1}: {name!r} is the network's class {min(others) + 1}, and its class "
                f"{number + 1} is {aliases[number][0]!r}: line k names class k, in the order of the outputs; the "
                "network names its classes itself, so that no list is needed"
            )


def _spellings(names: Sequence[str]) -> set[str]:
    return {_plain(part) for name in names for part in (name, *name.split(","))}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
