"""Scans one existing tar: its samples with their offsets, and its problems by kind."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdt.data.format.decode import EXTENSIONS, image_header
from cdt.data.format.names import MAX_NAME, MAX_WHOLE, name_problem, number
from cdt.data.format.picture import MAX_PICTURE_BYTES, reason
from cdt.data.format.problems import Problems
from cdt.data.format.tar import Member, Tar
from cdt.errors import InputError
from cdt.spelling import printable

MAX_JSON, MAX_LABEL = 1 << 20, 1000
LARGEST_LABEL = 2**64 - 1
"""Of labels that are numbers in json: those that are hashes have 64 bits."""
ALIASES = {"jpeg": "jpg"}
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
"""By their first bytes: what a file is, and the command that unpacks it."""


@dataclass
class Found:
    """One sample: image and label as stored in the tar."""

    key: str
    ext: str
    offset: int
    size: int
    label: str | int
    crc: int
    shape: tuple[int, int, int]
    dtype: str
    transparent: bool = False
    attributes: dict[str, float] = field(default_factory=dict)


@dataclass
class Scan:
    """The contents of a tar: samples, problems, size and hash."""

    bytes: int = 0
    sha256: str = ""
    samples: list[Found] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    other_fields: Problems = field(default_factory=Problems)
    """Fields of json that are no attributes, by name: how many samples have them, and what they hold there."""


def scan_tar(path: Path, name: str, class_field: str | None) -> Scan:
    """Samples and problems of a tar. Raises OSError if it cannot be read at all, InputError if it is compressed.

    ``class_field``: the label is this field of ``.json``; None: the text of ``.cls``. Nothing is unpacked.
    """
    with path.open("rb") as file:
        _check_not_compressed(file.peek(8), name)
        scan = Scan(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
    with Tar(path, name, scan.problems) as tar:
        closed: set[str] = set()
        halves: set[str] = set()
        for key, members in tar.samples():
            place = f"{name}: {key}"
            if key in closed:
                scan.problems.add("half sample", f"{place} is split: other samples are in between")
                halves.add(key)
                continue
            closed.add(key)
            try:
                scan.samples.append(_found(tar, key, members, class_field, scan.other_fields))
            except SampleError as problem:
                scan.problems.add(problem.kind, f"{place}: {problem}{_hint(members)}")
    scan.samples = [sample for sample in scan.samples if sample.key not in halves]
    if not scan.samples:
        scan.problems.add("empty shard", name)
    return scan


class SampleError(ValueError):
    """Why a sample cannot be used."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _check_not_compressed(start: bytes, name: str) -> None:
    """Samples are read by their byte offsets, so a compressed tar cannot be used."""
    for magic, (what, unpack) in COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{name} is compressed ({what}), and samples are read at their places: `{unpack}` it first"
            )


def _hint(members: dict[str, Member]) -> str:
    dotted = next((member.name for ext, member in members.items() if "." in ext), None)
    return f"; note that a key ends at the first dot of a name, as in {dotted}" if dotted else ""


def _found(tar: Tar, key: str, members: dict[str, Member], class_field: str | None, other_fields: Problems) -> Found:
    images = [ext for ext in members if image_type(ext) in EXTENSIONS]
    if len(images) != 1:
        kind = "several images" if images else "missing image"
        raise SampleError(kind, f"it has {', '.join(members)}; expected one of {', '.join(EXTENSIONS)}")
    member, ext = members[images[0]], image_type(images[0])
    record = _json(tar, members.get("json"))
    label = _label(tar, members.get("cls")) if class_field is None else label_in_field(record, class_field)
    if not 0 < member.size <= MAX_PICTURE_BYTES:
        raise SampleError("too large" if member.size else "damaged image", f"{member.size} bytes")
    payload = tar.read(member)
    try:
        shape, dtype, transparent = image_header(payload, ext)
    except ValueError as error:
        raise SampleError("damaged image", reason(error)) from error
    attributes: dict[str, float] = {}
    for name, value in record.items():
        if name == class_field:
            continue
        if (problem := _no_attribute(name, value)) is None:
            attributes[name] = value
        else:
            other_fields.add(printable(name[:MAX_NAME]), f"{key} {problem}")
    crc = zlib.crc32(payload)
    return Found(key, ext, member.offset, member.size, label, crc, shape, dtype, transparent, attributes)


def _no_attribute(name: str, value: object) -> str | None:
    """Why a field is no attribute; None if it is one."""
    if problem := name_problem(name):
        return f"has a field whose name {problem}"
    if not isinstance(value, int | float):
        return "has no number there"
    kept = abs(value) <= MAX_WHOLE if isinstance(value, int) else math.isfinite(value)
    return None if kept else f"has {value if isinstance(value, float) else 'a whole number beyond 2^53'}"


def image_type(ext: str) -> str:
    """The type of a file in a tar by its extension: ``left.jpeg`` is a jpg."""
    last = ext.rpartition(".")[2]
    return ALIASES.get(last, last)


def _json(tar: Tar, member: Member | None) -> dict[str, Any]:
    if member is None:
        return {}
    if member.size > MAX_JSON:
        raise SampleError("too large", f"its json has {member.size} bytes")
    try:
        record = json.loads(tar.read(member), parse_float=number)
    except (ValueError, RecursionError) as error:
        raise SampleError("damaged json", reason(error)) from error
    if not isinstance(record, dict):
        raise SampleError("damaged json", "it is no object")
    return record


def _label(tar: Tar, member: Member | None) -> str:
    if member is None:
        raise SampleError("missing label", "it has no cls")
    if member.size > MAX_LABEL:
        raise SampleError("wrong label", f"its cls has {member.size} bytes")
    return label_in_text(tar.read(member))


def label_in_text(payload: bytes) -> str:
    """The label that a .cls holds. Raises SampleError."""
    try:
        return _printable(payload.decode("utf-8-sig").strip(), "cls")
    except UnicodeDecodeError as error:
        raise SampleError("wrong label", "its cls is no text") from error


def label_in_field(record: dict[str, Any], name: str) -> str | int:
    """The label that this field of a .json holds. Raises SampleError."""
    label = record.get(name)
    if isinstance(label, str):
        return _printable(label.strip(), name)
    if isinstance(label, int) and not isinstance(label, bool):
        if not -LARGEST_LABEL <= label <= LARGEST_LABEL:
            raise SampleError("wrong label", f"its {name} is out of range: a whole number of more than 64 bits")
        return label
    if isinstance(label, float) and label.is_integer() and abs(label) <= MAX_WHOLE:
        return int(label)
    raise SampleError("missing label", f"its json has no word or whole number {name!r}")


def _printable(label: str, place: str) -> str:
    if problem := name_problem(label):
        raise SampleError("wrong label", f"its {place} is {label[:MAX_NAME]!r}, which {problem}")
    return label


def spelled(label: str | int) -> str:
    """A label as the name of a class: numbers in digits 0 to 9, without leading zeros."""
    text = str(label)
    return str(int(text)) if text.isdecimal() and len(text) < 10 else text
