"""Pictures in WebDataset shards: tar files whose members go by KEY.jpg, KEY.cls, KEY.json.

    wds:PATTERN      shards by name: {000..127}, {a,b}, *, and {split} for the name of the split
    wds:https://...  the same on a web server, without *: each shard is fetched once into a cache (`remote`)

A shard is read through once, by its headers alone, to find where each picture lies. After that it is a data set like
any other: its number of pictures is counted, not asked for, and any picture can be read by number. So the stream of
training batches, its split over processes and workers, and going on inside a pass are those of `streams`, to the
picture. What is its own is the order of training: pictures are mixed within groups of shards, so that reading stays
near where it was.

Source: Aizman, Maltby & Breuel, 2019 (WebDataset).
"""

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from salmask.data.endings import is_picture
from salmask.data.flat import UNLABELLED
from salmask.data.listed import ReadImage
from salmask.data.numbered import MOST_CLASSES, Numbered
from salmask.data.pictures import read_image
from salmask.data.rasters import Held
from salmask.data.remote import fetched, is_remote, web_address
from salmask.data.sample import SampleTransform

__all__ = ["Shards", "shard_files"]

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # key and ending, as WebDataset splits them
_LABELS = ("cls", "json")
_BLOCK = 512  # bytes of a tar file's header, and what all in it is filled up to
_ZEROS = bytes(_BLOCK)
_PADDING = 2**18  # bytes of zeros that may close a tar file; programs write 1 to 10 KB


def shard_files(pattern: str, split: str) -> list[Path]:
    """Return the shards that a pattern names, sorted. Errors: ValueError for none, and for one that is compressed.

    {split} stands for the split; {000..127} and {a,b} are spelled out; * and ? are those of a shell. Shards on a web
    server are fetched, and lie in the cache.
    """
    pattern = web_address(pattern)
    if is_remote(pattern):
        return _fetched_shards(pattern, split)
    names = [name for one in _braces(pattern.replace("{split}", split)) for name in _matches(one)]
    if not names:
        folder = Path(pattern).parent
        there = sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else []
        raise ValueError(
            f"no shard matches {pattern!r}: expected tar files such as train-{{000..127}}.tar, "
            + (f"got {', '.join(there) or 'nothing'} in {folder}" if folder.is_dir() else f"there is no {folder}")
        )
    for name in names:
        if not Path(name).is_file():
            raise ValueError(f"the shard {name} is missing: expected every shard that {pattern!r} spells out")
    _check_packing(names)
    return [Path(name) for name in dict.fromkeys(names)]


def _fetched_shards(pattern: str, split: str) -> list[Path]:
    if "*" in pattern:
        raise ValueError(f"a web server does not list its files: spell the shards out as {{000..127}}, got {pattern!r}")
    names = list(dict.fromkeys(_braces(pattern.replace("{split}", split))))
    _check_packing(names)
    return fetched(names)


def _check_packing(names: Sequence[str]) -> None:
    for name in names:
        if Path(name).suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
            raise ValueError(f"the shard {name} is compressed: unpack it to .tar, pictures are compressed already")


def _braces(pattern: str) -> list[str]:
    """Return a pattern with its first braces spelled out, and those of what follows."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if ends is not None:
        first, last = int(ends[1]), int(ends[2])
        parts = [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]
    else:
        parts = found[1].split(",")
    return [one for part in parts for one in _braces(pattern[: found.start()] + part + pattern[found.end() :])]


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return [pattern]
    path = Path(pattern)
    return sorted(str(found) for found in Path(path.anchor).glob(str(path.relative_to(path.anchor))))


class _Member(NamedTuple):
    """Where a file lies in its shard."""

    name: str
    offset: int
    size: int
    is_link: bool = False


_Members: TypeAlias = list[tuple[str, _Member | bytes]]
"""Of one sample, by ending: places of pictures, and what lies in the files of classes."""


@dataclass
class _Found:
    """What is found in one shard: pictures, their classes, and in words what is no whole sample."""

    pictures: list[_Member] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Shards(Numbered):
    """The pictures in some shards, in the order in which they lie there.

    A sample is one picture and, where there is one, its class: KEY.cls holds its number, or KEY.json under "label" or
    "cls". `classes` names them in the order of their numbers. Samples without a class are all `UNLABELLED`.
    skip_broken: leave out, with one warning that counts them, what follows a cut in a shard and samples without a
    picture; pictures that cannot be decoded are passed over when they are met (`unreadable`).

    Errors: ValueError naming a shard that is cut, or goes on after its end, a sample with no picture, or two, or a link
    in place of one, and one that comes twice; for samples of which some have no class. A picture that cannot be
    decoded is named when it is read.
    """

    def __init__(
        self,
        pattern: str,
        split: str,
        *,
        transform: SampleTransform | None = None,
        skip_broken: bool = False,
        classes: Sequence[str] | None = None,
        read: ReadImage = read_image,
    ) -> None:
        self.files = shard_files(pattern, split)
        self.titles, self.shards = _titles(self.files), len(self.files)
        found = [_look_through(file) for file in self.files]
        lost = [problem for one in found for problem in one.problems]
        if lost and not skip_broken:
            raise ValueError(f"{lost[0]}: repair it, or leave such out (skip_broken, --skip-broken)")
        counts = [len(one.pictures) for one in found]
        self._shard = np.repeat(np.arange(len(found)), counts)
        self._offset = np.array([member.offset for one in found for member in one.pictures], dtype=np.int64)
        self._size = np.array([member.size for one in found for member in one.pictures], dtype=np.int64)
        self._member = np.array([member.name.encode() for one in found for member in one.pictures] or [b""])
        labels = np.array([label for one in found for label in one.labels], dtype=np.int64)
        super().__init__(
            f"the shards {pattern!r}",
            labels,
            np.concatenate([[0], np.cumsum(counts)]),
            names=None,
            classes=classes,
            transform=transform,
            read=read,
            skip_broken=skip_broken,
            lost=lost,
        )

    def held(self, row: int) -> Held:
        """Return the bytes of a picture, with its place in words."""
        where = f"{self.files[self._shard[row]]}/{self._member[row].decode()}"
        with self.files[self._shard[row]].open("rb", buffering=0) as file:
            file.seek(int(self._offset[row]))
            return Held(where, file.read(int(self._size[row])))

    def name(self, row: int) -> str:
        """Return the id of a picture: its shard and its member."""
        return f"{self.titles[self._shard[row]]}/{self._member[row].decode()}"


def _titles(files: Sequence[Path]) -> list[str]:
    """Return a name of its own for each shard: its stem; where stems recur, its place below the folder of all."""
    stems = [path.stem for path in files]
    if len(set(stems)) == len(stems):
        return stems
    root = os.path.commonpath([path.parent for path in files])
    places = [path.relative_to(root) for path in files]
    bare = [place.with_suffix("").as_posix() for place in places]
    return bare if len(set(bare)) == len(bare) else [place.as_posix() for place in places]


def _look_through(shard: Path) -> _Found:
    """Return what a shard holds; what follows a cut is left out, and said."""
    found, keys = _Found(), set[str]()
    try:
        with shard.open("rb") as file:
            for key, members in _samples(file):
                if key in keys:
                    found.problems.append(f"the sample {key!r} comes twice in {shard}")
                    continue
                keys.add(key)
                _take_in(found, shard, key, members)
    except (tarfile.TarError, ValueError) as error:
        found.problems.append(f"the shard {shard} is cut or no tar file ({error})")
    return found


@cache
def _pictured(ending: str) -> bool:
    """Return whether a file of such an ending is a picture that can be read here."""
    return is_picture(Path(f"x.{ending}"))


def _samples(file: BinaryIO) -> Iterator[tuple[str, _Members]]:
    """Yield key and members of each sample: files of one key that follow one another. Of pictures, their places."""
    key, members = None, _Members()
    for member in _files(file):
        parts = _NAME.match(member.name)
        if parts is None:
            continue
        if key is not None and parts[1] != key:
            yield key, members
            members = []
        key, ending = parts[1], parts[2].lower()
        if _pictured(ending) or (member.is_link and ending in _LABELS):
            members.append((ending, member))
        elif ending in _LABELS:
            file.seek(member.offset)
            members.append((ending, file.read(member.size)))
    if key is not None:
        yield key, members


def _files(file: BinaryIO) -> Iterator[_Member]:
    """Yield the files of a tar archive by their headers; twenty times as fast as `tarfile`, which reads the odd ones.

    Errors: tarfile.ReadError for an archive that ends within a file, or without the zeros that close it, or goes on
    after them: readers of tar files stop there, and what follows would be lost without a word.
    """
    length = file.seek(0, 2)
    at, longer = 0, dict[str, str]()
    while True:
        file.seek(at)
        header = file.read(_BLOCK)
        if header == _ZEROS:
            rest = file.read(_PADDING)
            if len(rest) == _PADDING or rest.strip(b"\0"):
                raise tarfile.ReadError(
                    "more follows its end: archives one after the other, or a download that broke off"
                )
            return
        if len(header) < _BLOCK:
            raise tarfile.ReadError("it ends without the zeros that close a tar file")
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:  # sizes of 8 GB and more, in binary
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        if sum(header[:148]) + 256 + sum(header[156:]) != int(header[148:156].strip(b" \0") or b"0", 8):
            raise tarfile.ReadError(f"no header of a file at byte {at}")
        size = int(longer.pop("size", size))
        start, kind = at + _BLOCK, header[156:157]
        at = start + -(-size // _BLOCK) * _BLOCK
        if size < 0 or at > length:
            raise tarfile.ReadError("it ends within a file")
        if kind in (b"x", b"L"):
            longer |= _longer(file.read(size), kind)
        elif kind in b"\x000127":  # files; links, whose content lies elsewhere
            name = "/".join(_text(part) for part in (header[345:500], header[:100]) if part[:1] != b"\0")
            yield _Member(longer.pop("path", name), start, size, is_link=kind in b"12")
            longer = {}


def _text(field_of_header: bytes) -> str:
    return field_of_header.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _longer(content: bytes, kind: bytes) -> dict[str, str]:
    """Return what a header before a file's own says of it: a name, a size (GNU's long names, POSIX's pax)."""
    if kind == b"L":
        return {"path": _text(content)}
    records = dict[str, str]()
    while content:
        count = int(content.partition(b" ")[0])
        if count < 1:
            raise tarfile.ReadError("a header before a file's own is broken")
        key, _, value = content[:count].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        records[key.decode()] = value.decode("utf-8", "backslashreplace")
        content = content[count:]
    return {key: value for key, value in records.items() if key in ("path", "size")}


def _take_in(found: _Found, shard: Path, key: str, members: _Members) -> None:
    """Add a sample to what is found in a shard."""
    endings = sorted(ending for ending, _ in members)
    pictures = [member for ending, member in members if isinstance(member, _Member) and _pictured(ending)]
    if links := [member.name for _, member in members if isinstance(member, _Member) and member.is_link]:
        found.problems.append(f"the sample {key!r} in {shard}: {links[0]} is a link, expected the file itself")
        return
    if len(pictures) != 1 or len(set(endings)) != len(endings):
        names = ", ".join(endings) or "nothing that is read here"
        found.problems.append(
            f"the sample {key!r} in {shard} has {len(pictures)} pictures, expected one, and its class once; got {names}"
        )
        return
    try:
        label = _label({ending: text for ending, text in members if isinstance(text, bytes)})
    except ValueError as error:
        found.problems.append(f"the sample {key!r} in {shard}: {error}")
        return
    found.pictures.append(pictures[0])
    found.labels.append(label)


def _label(texts: Mapping[str, bytes]) -> int:
    """Return the class of a sample, `UNLABELLED` where it says none. Errors: ValueError for what is no number."""
    value: object = None
    if "cls" in texts:
        value = texts["cls"].decode(errors="replace").strip()
    elif isinstance(facts := json.loads(texts.get("json", b"null")), dict):
        value = next((facts[name] for name in ("label", "cls") if name in facts), None)
    if value is None:
        return UNLABELLED
    if isinstance(value, bool) or not str(value).isdecimal() or len(str(value)) > len(str(MOST_CLASSES)):
        raise ValueError(f"expected the number of a class, got {str(value)[:40]!r}")
    return int(str(value))
