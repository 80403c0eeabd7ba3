"""All that a report is made from, as one file: `rows.tar.xz`, the same bytes from the same files.

    rows.jsonl, meta.json, failures.jsonl, study.json, checks.json, connectivity.json, counts/, training/, checks/

Pictures stay beside it. An archive is read as a folder is (`unpacked`), and no rows are added to one.
"""

import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from salmask.files import replace_file
from salmask.rows.read import ARCHIVE, COUNTS, FAILURES, META, ROWS

__all__ = ["pack", "unpacked"]

_FILES, _FOLDERS = (
    (ROWS, META, FAILURES, "study.json", "checks.json", "connectivity.json"),
    (COUNTS, "training", "checks"),
)
_MOST = 1 << 32  # bytes that an archive may unpack to


def pack(folder: Path) -> Path:
    """Write the archive of a folder of rows, and remove what it holds; return its path. Pack again after adding rows.

    Errors: ValueError where there are no rows, or no whole ones.
    """
    folder = Path(folder)
    if not (folder / ROWS).exists():
        raise ValueError(f"expected {ROWS} in {folder}, found none: name the --out of evaluate, score or study")
    if journals := sorted((folder / COUNTS).glob("*/*.journal")):
        raise ValueError(f"{journals[0]} is of a run that has not ended: let it end before its rows are packed")
    paths = [folder / name for name in _FILES if (folder / name).is_file()]
    paths += [path for name in _FOLDERS for path in sorted((folder / name).rglob("*")) if path.is_file()]

    def write(draft: Path) -> None:
        with (
            lzma.open(draft, "wb", preset=9 | lzma.PRESET_EXTREME) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in paths:
                content = path.read_bytes()
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())  # no time, no owner: the same bytes
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, BytesIO(content))

    replace_file(folder / ARCHIVE, write)
    for path in paths:
        path.unlink()
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder / ARCHIVE


@contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """Yield the folder itself where it has rows or no archive, else a temporary one with what its archive holds.

    Errors: ValueError naming an archive that cannot be unpacked.
    """
    archive = folder / ARCHIVE
    if (folder / ROWS).exists() or not archive.exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as root:
        try:
            with tarfile.open(archive, "r:xz") as tar:
                size = 0
                for member in tar:
                    size += member.size
                    if size > _MOST:
                        raise tarfile.TarError(f"it would unpack to more than {_MOST >> 30} GiB")
                    tar.extract(member, root, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise ValueError(f"{archive}: cannot be unpacked ({error}): evaluate again") from error
        yield Path(root)
