"""The house: how many rooms it has, and that one name means one thing."""

import ast
from collections import defaultdict
from pathlib import Path

import salmask

SOURCE = Path(salmask.__path__[0])
LARGEST = 26


def _names() -> dict[str, list[str]]:
    """Return each public function and class with the modules that define it."""
    homes = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(path.relative_to(SOURCE).as_posix())
    return homes


def test_no_public_function_or_class_is_defined_in_two_modules() -> None:
    twice = {name: homes for name, homes in _names().items() if len(homes) > 1}
    assert not twice


def test_the_top_of_the_package_has_few_files_and_folders() -> None:
    files = [path.name for path in SOURCE.glob("*.py")]
    folders = [path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(files) <= 14, sorted(files)
    assert len(folders) <= 12, sorted(folders)


def test_values_of_any_kind_do_not_grow_in_number() -> None:
    """The aim is fewer than 60: lower the number with every `Any` that goes."""
    count = 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            count += isinstance(node, ast.Name) and node.id == "Any"
    assert count <= LARGEST
