"""Reads untrusted tars: their plain files in order, and a list of everything else.

A damaged header costs only its own file: reading continues at the next valid header.
"""

from __future__ import annotations

import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from webdataset.tariterators import base_plus_ext

from cdt.data.format.names import is_hidden
from cdt.data.format.problems import Problems

BLOCK = tarfile.BLOCKSIZE
WITHOUT_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE
)  # fmt: skip
"""No data follow their headers, whatever size is stated (POSIX pax, "ustar Interchange Format")."""
EXTENDED = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
MAX_PAX = 1 << 20
"""Bytes of an extended header: of what stands before a file's own header, as its long name."""
MAX_FILES = 64
"""Limit of the files of one sample; further ones are ignored."""
SPARSE_HEADER, SPARSE_BLOCK = 482, 504
"""Bytes of GNU tar's headers that say whether a block follows with more of the places of a sparse file's data."""
SIZE = re.compile(rb"[0-9]{1,18}")
SPARSE, SPARSE_NAME = b"GNU.sparse.", b"GNU.sparse.name"


@dataclass(frozen=True)
class Member:
    """A plain file: the bytes [offset, offset + size) of the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Ahead:
    """What extended headers say of the file that follows."""

    name: str | None = None
    size: int | None = None
    """In place of what its header has, which has no room for sizes of 8 GiB and more."""
    refused: str | None = None
    """The kind of problem, if it cannot be read."""


class Tar:
    """The plain files of the tar at ``path``; everything else is added to ``problems``, with the tar's ``name``."""

    def __init__(self, path: Path, name: str, problems: Problems) -> None:
        self._file = path.open("rb")
        self._end = path.stat().st_size
        self._name, self._problems = name, problems
        self._ahead = _Ahead()

    def __enter__(self) -> Tar:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, member: Member) -> bytes:
        return self._read(member.offset, member.size)

    def samples(self) -> Iterator[tuple[str, dict[str, Member]]]:
        """Keys, and files by extension, grouped as webdataset does: consecutive files with the same key."""
        key, files = None, {}
        for member in self.members():
            if any(map(is_hidden, PurePosixPath(member.name).parts)):
                self._problems.add("hidden file", f"{self._name}: {member.name}")
                continue
            base, ext = base_plus_ext(member.name)
            if base is None or ext is None:
                self._problems.add("file without extension", f"{self._name}: {member.name}")
                continue
            if base != key:
                if key is not None:
                    yield key, files
                key, files = base, {}
            if ext.lower() in files:
                self._problems.add("duplicate file", f"{self._name}: {member.name}")
            elif len(files) == MAX_FILES:
                self._problems.add("too many files", f"{self._name}: {member.name}")
            else:
                files[ext.lower()] = member
        if key is not None:
            yield key, files

    def members(self) -> Iterator[Member]:
        place, closed = 0, False
        while place < self._end:
            block = self._read(place, BLOCK)
            if not any(block):
                closed, place = True, self._skip(place, zeros=True)
                continue
            if (header := _header(block)) is None:
                after = self._skip(place, zeros=False)
                self._problems.add("damaged header", f"{self._name}: byte {place}, the next valid one is at {after}")
                self._ahead, place = _Ahead(), after
                continue
            if closed:
                self._problems.add("zeros within the tar", f"{self._name}: before byte {place}")
                closed = False
            data = place + BLOCK
            if header.type not in EXTENDED and self._ahead.size is not None:
                header.size = self._ahead.size
            if header.type in WITHOUT_DATA:
                header.size = 0
            if header.type == tarfile.GNUTYPE_SPARSE:
                data = self._behind_places(block, data)
            if not 0 <= header.size <= self._end - data:
                found = f"{self._name}: {header.name} at byte {place} leads beyond the end"
                self._problems.add("truncated tar", found)
                return
            yield from self._member(header, data)
            place = data + math.ceil(header.size / BLOCK) * BLOCK
        if not closed:
            self._problems.add("truncated tar", f"{self._name}: it ends at byte {self._end} without an end mark")

    def _member(self, header: tarfile.TarInfo, data: int) -> Iterator[Member]:
        if header.type in EXTENDED:
            self._ahead = self._extended(header, data)
            return
        name, refused, self._ahead = self._ahead.name or header.name, self._ahead.refused, _Ahead()
        path = PurePosixPath(name)
        if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK, tarfile.DIRTYPE):
            return
        if refused or header.type == tarfile.GNUTYPE_SPARSE:
            self._problems.add(refused or "refused: sparse file", f"{self._name}: {name}")
        elif header.type not in tarfile.REGULAR_TYPES:
            self._problems.add("refused: no plain file", f"{self._name}: {name}")
        elif not _is_utf8(name):  # replaced bytes would give two files one name
            self._problems.add("refused: name is not UTF-8", f"{self._name}: {name}")
        elif path.is_absolute() or ".." in path.parts:
            self._problems.add("refused: path leads outside", f"{self._name}: {name}")
        else:
            yield Member(name, data, header.size)

    def _extended(self, header: tarfile.TarInfo, data: int) -> _Ahead:
        if header.size > MAX_PAX:
            return _Ahead(refused=f"refused: extended header above {MAX_PAX:,} bytes")
        payload = self._read(data, header.size)
        fields = {b"path": payload} if header.type == tarfile.GNUTYPE_LONGNAME else _pax_fields(payload)
        sparse = any(field.startswith(SPARSE) for field in fields)
        long = fields.get(SPARSE_NAME, fields.get(b"path", b"")).rstrip(b"\0").decode("utf-8", "surrogateescape")
        size = int(fields[b"size"]) if SIZE.fullmatch(fields.get(b"size", b"")) else self._ahead.size
        return _Ahead(long or self._ahead.name, size, "refused: sparse file" if sparse else self._ahead.refused)

    def _behind_places(self, block: bytes, data: int) -> int:
        """Where the data of a sparse file begin: blocks with their places, which its size leaves out, come first."""
        more = block[SPARSE_HEADER]
        while more and data < self._end:
            more = self._read(data, BLOCK).ljust(BLOCK, b"\0")[SPARSE_BLOCK]
            data += BLOCK
        return data

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def _skip(self, place: int, zeros: bool) -> int:
        """The next block that is not zero, or that is a valid header."""
        place += BLOCK
        while place < self._end:
            many = self._read(place, 1 << 20)
            for start in range(0, len(many), BLOCK):
                block = many[start : start + BLOCK]
                if any(block) if zeros else (not any(block) or _header(block) is not None):
                    return place + start
            place += len(many)
        return self._end


def _is_utf8(name: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # pyright: ignore[reportArgumentType]
    except Exception:  # tarfile raises nearly any error for damaged headers
        return None


def _pax_fields(payload: bytes) -> dict[bytes, bytes]:
    """The fields ``LENGTH NAME=VALUE`` of an extended header up to the first that is damaged; of equals the last."""
    fields, place = {}, 0
    while place < len(payload):
        length, _, _ = payload[place : place + len(str(MAX_PAX)) + 1].partition(b" ")
        if not length.isdigit():
            break
        begin, end = place + len(length) + 1, place + int(length)
        equals = payload.find(b"=", begin, end)
        if equals < 0:
            break
        fields[payload[begin:equals]] = payload[equals + 1 : end - 1]
        place = end
    return fields
