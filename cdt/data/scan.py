"""One tar of others, read without trust: its samples with their places, and whatever is wrong with it by kind.

A damaged header costs the sample that it belongs to, not all that follow: the scan goes on at the next valid one.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from webdataset.tariterators import base_plus_ext

from cdt.data.decode import EXTENSIONS, PIL_FORMATS, check_chunks, check_pixels, npy_header, reason

BLOCK = tarfile.BLOCKSIZE
MAX_IMAGE, MAX_JSON, MAX_LABEL, MAX_PAX = 1 << 26, 1 << 20, 200, 1 << 16
ALIASES = {"jpeg": "jpg"}
PAX_FIELD = re.compile(rb"(\d{1,6}) ([^=]{1,100})=")


@dataclass
class Found:
    """One sample: image and label, as they stand in the tar."""

    key: str
    ext: str
    offset: int
    size: int
    label: str | int
    crc: int
    shape: tuple[int, int, int]
    dtype: str
    attributes: dict[str, float] = field(default_factory=dict)


@dataclass
class Scan:
    """What a tar holds: samples, problems as (kind, place), size and hash."""

    bytes: int = 0
    sha256: str = ""
    samples: list[Found] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def problem(self, kind: str, place: str) -> None:
        self.problems.append((kind, "".join(letter if letter.isprintable() else "?" for letter in place)))


@dataclass(frozen=True)
class Member:
    name: str
    offset: int
    size: int


class TarScan:
    """The plain files of a tar in their order; ``scan`` takes note of all else."""

    def __init__(self, path: Path, name: str, scan: Scan) -> None:
        self._file = path.open("rb")
        self._end = path.stat().st_size
        self._name, self._scan = name, scan
        self._long_name: str | None = None

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def members(self) -> Iterator[Member]:
        place, closed = 0, False
        while place < self._end:
            block = self.read(place, BLOCK)
            if not any(block):
                closed, place = True, self._skip(place, zeros=True)
                continue
            if (header := _header(block)) is None:
                after = self._skip(place, zeros=False)
                self._scan.problem("damaged header", f"{self._name}: byte {place}, the next valid one is at {after}")
                self._long_name, place = None, after
                continue
            if closed:
                self._scan.problem("zeros within the tar", f"{self._name}: before byte {place}")
                closed = False
            data = place + BLOCK
            if not 0 <= header.size <= self._end - data:
                self._scan.problem("truncated tar", f"{self._name}: {header.name} at byte {place} leads beyond the end")
                return
            yield from self._member(header, data)
            place = data + math.ceil(header.size / BLOCK) * BLOCK
        if not closed:
            self._scan.problem("truncated tar", f"{self._name}: it ends at byte {self._end} without an end mark")

    def _member(self, header: tarfile.TarInfo, data: int) -> Iterator[Member]:
        if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            payload = self.read(data, min(header.size, MAX_PAX))
            long = _pax_path(payload) if header.type == tarfile.XHDTYPE else payload
            self._long_name = long.rstrip(b"\0").decode("utf-8", "replace") if long else self._long_name
            return
        name, self._long_name = self._long_name or header.name, None
        path = PurePosixPath(name)
        if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK, tarfile.DIRTYPE):
            return
        if header.type not in tarfile.REGULAR_TYPES or header.type == tarfile.GNUTYPE_SPARSE:
            self._scan.problem("refused: no plain file", f"{self._name}: {name}")
        elif path.is_absolute() or ".." in path.parts:
            self._scan.problem("refused: path leads outside", f"{self._name}: {name}")
        else:
            yield Member(name, data, header.size)

    def _skip(self, place: int, zeros: bool) -> int:
        """The next block that is not zero, or that is a valid header."""
        place += BLOCK
        while place < self._end:
            many = self.read(place, 1 << 20)
            for start in range(0, len(many), BLOCK):
                block = many[start : start + BLOCK]
                if any(block) if zeros else (not any(block) or _header(block) is not None):
                    return place + start
            place += len(many)
        return self._end

    def close(self) -> None:
        self._file.close()


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # pyright: ignore[reportArgumentType]
    except Exception:  # of damaged headers tarfile raises nearly anything
        return None


def _pax_path(payload: bytes) -> bytes | None:
    """The path in an extended header, if it has one."""
    place = 0
    while found := PAX_FIELD.match(payload, place):
        end = place + int(found[1])
        if found[2] == b"path":
            return payload[found.end() : end - 1]
        if end <= place:
            return None
        place = end
    return None


def scan_tar(path: Path, name: str, class_field: str | None) -> Scan:
    """Samples and problems of a tar. Raises OSError where it cannot be read at all.

    ``class_field``: the label is this field of ``.json``, or of None the text of ``.cls``. Nothing is unpacked.
    """
    with path.open("rb") as file:
        scan = Scan(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
    tar = TarScan(path, name, scan)
    try:
        closed: set[str] = set()
        for key, members in _samples(tar, name, scan):
            place = f"{name}: {key}"
            if key in closed:
                scan.problem("half sample", f"{place} stands there in parts, with others between")
                scan.samples = [sample for sample in scan.samples if sample.key != key]
                continue
            closed.add(key)
            try:
                scan.samples.append(_found(tar, key, members, class_field))
            except _ProblemError as problem:
                scan.problem(problem.kind, f"{place}: {problem}")
    finally:
        tar.close()
    if not scan.samples:
        scan.problem("empty shard", name)
    return scan


def _samples(tar: TarScan, name: str, scan: Scan) -> Iterator[tuple[str, dict[str, Member]]]:
    """Members by extension, grouped as webdataset does: as long as the key stays."""
    key, members = None, {}
    for member in tar.members():
        base, ext = base_plus_ext(member.name)
        if base is None or ext is None:
            scan.problem("file without extension", f"{name}: {member.name}")
            continue
        if base != key:
            if key is not None:
                yield key, members
            key, members = base, {}
        if ext.lower() in members:
            scan.problem("duplicate file", f"{name}: {member.name}")
        members.setdefault(ext.lower(), member)
    if key is not None:
        yield key, members


class _ProblemError(ValueError):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _found(tar: TarScan, key: str, members: dict[str, Member], class_field: str | None) -> Found:
    images = [ext for ext in members if _image_type(ext) in EXTENSIONS]
    if len(images) != 1:
        kind = "several images" if images else "missing image"
        raise _ProblemError(kind, f"it has {', '.join(members)}; expected one of {', '.join(EXTENSIONS)}")
    member, ext = members[images[0]], _image_type(images[0])
    record = _json(tar, members.get("json"))
    if class_field is None:
        label = _label(tar, members.get("cls"))
    elif not isinstance(label := record.get(class_field), str | int) or isinstance(label, bool):
        raise _ProblemError("missing label", f"its json has no word or number {class_field!r}")
    if not 0 < member.size <= MAX_IMAGE:
        raise _ProblemError("too large" if member.size else "damaged image", f"{member.size} bytes")
    payload = tar.read(member.offset, member.size)
    try:
        shape, dtype = image_header(payload, ext)
    except Exception as error:  # of damaged bytes PIL and numpy raise nearly anything
        raise _ProblemError("damaged image", reason(error)) from error
    attributes: dict[str, float] = {
        name: value
        for name, value in record.items()
        if name != class_field and isinstance(value, int | float) and abs(value) < 2**31
    }
    return Found(key, ext, member.offset, member.size, label, zlib.crc32(payload), shape, dtype, attributes)


def _image_type(ext: str) -> str:
    last = ext.rpartition(".")[2]
    return ALIASES.get(last, last)


def _json(tar: TarScan, member: Member | None) -> dict[str, float | str]:
    if member is None:
        return {}
    if member.size > MAX_JSON:
        raise _ProblemError("too large", f"its json has {member.size} bytes")
    try:
        record = json.loads(tar.read(member.offset, member.size))
    except (ValueError, RecursionError) as error:
        raise _ProblemError("damaged json", reason(error)) from error
    if not isinstance(record, dict):
        raise _ProblemError("damaged json", "it is no object")
    return record


def _label(tar: TarScan, member: Member | None) -> str:
    if member is None:
        raise _ProblemError("missing label", "it has no cls")
    try:
        label = tar.read(member.offset, min(member.size, MAX_LABEL)).decode().strip()
    except UnicodeDecodeError as error:
        raise _ProblemError("wrong label", "its cls is no text") from error
    if not label or not label.isprintable():
        raise _ProblemError("wrong label", f"its cls is {label!r}")
    return label


def image_header(payload: bytes, ext: str) -> tuple[tuple[int, int, int], str]:
    """Shape [C, H, W] and dtype of an image, without its pixels. Raises ValueError and whatever PIL does."""
    if ext == "npy":
        shape, dtype, _ = npy_header(payload)
        return shape, np.dtype(dtype).name
    with Image.open(io.BytesIO(payload), formats=[PIL_FORMATS[ext]]) as image:
        check_pixels(image.width, image.height)
        if ext == "png":
            check_chunks(payload)
        return (1 if image.mode in ("1", "L") else 3, image.height, image.width), "uint8"
