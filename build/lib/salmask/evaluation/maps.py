"""Maps that any tool wrote to a file, read in chunks of bounded memory.

MAPS.npz   ids (N,) str, maps (N, H, W) float; stored (mapped from the disk) or compressed (streamed)
MAPS.npy   maps (N, H, W) float, mapped from the disk; its ids in MAPS.ids.npy or MAPS.ids.txt (one a line)
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float

from salmask.files import regular_file

__all__ = ["Piece", "SavedMaps", "open_maps"]

Stream = IO[bytes] | BufferedIOBase  # typed as the one, a member of a zip file is the other

Block = Float[np.ndarray, "chunk height width"]


@dataclass(frozen=True)
class Piece:
    """Some of the maps: where they lie in a file, or their bytes. chosen: which of them, None: all."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    path: Path | None = None
    offset: int = 0
    data: bytes = b""
    chosen: Sequence[int] | None = None

    def only(self, chosen: Sequence[int]) -> "Piece":
        """Return the piece with these maps alone."""
        return self if len(chosen) == self.shape[0] else replace(self, chosen=chosen)

    def read(self) -> Block:
        """Return the maps, copied into memory; float16 becomes float32."""
        if self.path is None:
            block = np.frombuffer(self.data, self.dtype).reshape(self.shape)
        else:  # mapped anew: what one mapping has touched would be counted as this process's memory
            block = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        wide = np.float64 if self.dtype.itemsize > 4 else np.float32
        return (block if self.chosen is None else block[list(self.chosen)]).astype(wide)


@dataclass(frozen=True)
class SavedMaps:
    """ids of N maps, and where the maps lie: `shape` (N, H, W) and `dtype` at byte `offset` of `path`.

    member: the name within a compressed archive, which can be read from its start only; None if mapped.
    """

    path: Path
    ids: list[str]
    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    member: str | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self, size: int) -> Iterator[tuple[list[str], Block]]:
        """Yield (ids, maps) of `size` maps at a time, copied into memory; float16 becomes float32."""
        for ids, piece in self.pieces(size):
            yield ids, piece.read()

    def pieces(self, size: int) -> Iterator[tuple[list[str], "Piece"]]:
        """Yield (ids, piece) of `size` maps at a time; mapped maps are read only when the piece is."""
        step = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        if self.member is None:
            for start in range(0, len(self), size):
                count = min(size, len(self) - start)
                shape = (count, *self.shape[1:])
                yield (
                    self.ids[start : start + count],
                    Piece(shape, self.dtype, path=self.path, offset=self.offset + start * step),
                )
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            self._bytes(stream, self.offset)
            for start in range(0, len(self), size):
                count = min(size, len(self) - start)
                data = self._bytes(stream, count * step)
                yield self.ids[start : start + count], Piece((count, *self.shape[1:]), self.dtype, data=data)

    def _bytes(self, stream: Stream, count: int) -> bytes:
        try:
            data = stream.read(count)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self.path} is damaged ({error}): write it again") from error
        if len(data) < count:
            raise ValueError(f"{self.path} ends early: expected {len(self)} maps; write it again")
        return data


def open_maps(path: str | Path) -> SavedMaps:
    """Open MAPS.npz or MAPS.npy. No map is read yet.

    Errors: FileNotFoundError; ValueError for a file of another kind or cut short, arrays that are missing or of
    another shape or type, ids that are not one per map, an id that comes twice.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected MAPS.npz (ids, maps) or MAPS.npy")
    regular_file(path, "MAPS.npz (ids, maps) or MAPS.npy")
    try:
        maps = _open_npz(path) if zipfile.is_zipfile(path) else _open_npy(path)
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as maps ({error}): expected MAPS.npz with ids and maps") from error
    _check(maps)
    return maps


def _open_npz(path: Path) -> SavedMaps:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if not {"ids.npy", "maps.npy"} <= names:
            raise ValueError(f"{path}: expected the arrays ids and maps, got {sorted(n[:-4] for n in names)}")
        with archive.open("ids.npy") as stream:
            ids = _names(stream, path)
        info = archive.getinfo("maps.npy")
        with archive.open(info) as stream:
            shape, dtype = _header(stream, path)
            header = stream.tell()
    if info.compress_type != zipfile.ZIP_STORED:
        return SavedMaps(path, ids, shape, dtype, header, member="maps.npy")
    return SavedMaps(path, ids, shape, dtype, _start(path, info) + header)


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where a stored member's bytes begin: behind its local header, whose extra field may be its own."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2").tolist()
    return info.header_offset + 30 + name + extra


def _open_npy(path: Path) -> SavedMaps:
    with path.open("rb") as stream:
        shape, dtype = _header(stream, path)
        offset = stream.tell()
    arrays, lines = path.with_suffix(".ids.npy"), path.with_suffix(".ids.txt")
    if arrays.exists():
        with arrays.open("rb") as stream:
            ids = _names(stream, arrays)
    elif lines.exists():
        ids = lines.read_text(encoding="utf-8").splitlines()
    else:
        raise ValueError(f"{path}: expected the ids of its maps in {arrays.name} or {lines.name}, found neither")
    return SavedMaps(path, ids, shape, dtype, offset)


def _header(stream: Stream, path: Path) -> tuple[tuple[int, int, int], np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError as error:
        raise ValueError(f"{path} holds no numpy array ({error}): write it with numpy.savez or numpy.save") from error
    if len(shape) == 4 and shape[1] == 1:
        shape = (shape[0], *shape[2:])
    if len(shape) == 3 and not shape[0]:
        raise ValueError(f"{path} holds no map: expected maps (N, H, W), got {shape}")
    if len(shape) != 3 or 0 in shape or fortran:
        raise ValueError(f"{path}: expected maps (N, H, W) in C order, got {shape}{' in Fortran order' * fortran}")
    if dtype.kind != "f":
        raise ValueError(f"{path}: expected maps of a float type in [0, 1], got {dtype}: convert and scale them")
    return shape, dtype


def _names(stream: Stream, path: Path) -> list[str]:
    try:
        start = stream.tell()
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
        if kind.itemsize > 4 * _LONGEST or int(np.prod(shape)) * kind.itemsize > 2**31:
            raise ValueError(f"{shape} of {kind}, of more than {_LONGEST} characters or 2 GiB")
        stream.seek(start)
        ids = np.lib.format.read_array(stream, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: expected ids as an array of strings, got something else ({error})") from error
    if ids.dtype.kind not in "US" or ids.ndim != 1:
        raise ValueError(f"{path}: expected ids as strings (N,), got {ids.dtype} {ids.shape}")
    return [str(name) for name in (np.char.decode(ids) if ids.dtype.kind == "S" else ids)]


_LARGEST = 2**26  # pixels of a map: a file of a few megabytes may promise one that fills the memory
_LONGEST = 4096  # characters of an id


def _check(maps: SavedMaps) -> None:
    height, width = maps.shape[1:]
    if height * width > _LARGEST:
        raise ValueError(
            f"{maps.path}: expected maps of at most {_LARGEST} pixels, got {width}x{height}; write them smaller, as "
            "scores bring boxes and pixel truth to the size of the maps"
        )
    if len(maps.ids) != len(maps):
        raise ValueError(f"{maps.path}: expected one id per map, got {len(maps.ids)} ids and {len(maps)} maps")
    seen: set[str] = set()
    for name in maps.ids:
        if name in seen:
            raise ValueError(f"{maps.path}: the id {name!r} comes twice; give every map its own")
        seen.add(name)
    need = maps.offset + int(np.prod(maps.shape)) * maps.dtype.itemsize
    if maps.member is None and maps.path.stat().st_size < need:
        raise ValueError(f"{maps.path} ends early: expected {len(maps)} maps; write it again")
