"""Scans one existing tar: its samples with their offsets, and its problems by kind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cdt.data.format.decode import EXTENSIONS, PIL_FORMATS, check_chunks, check_mode, check_pixels, npy_header, reason
from cdt.data.format.tar import Member, Problems, Tar

MAX_IMAGE, MAX_JSON, MAX_LABEL = 1 << 26, 1 << 20, 200
ALIASES = {"jpeg": "jpg"}


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
    attributes: dict[str, float] = field(default_factory=dict)


@dataclass
class Scan:
    """The contents of a tar: samples, problems, size and hash."""

    bytes: int = 0
    sha256: str = ""
    samples: list[Found] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)


def scan_tar(path: Path, name: str, class_field: str | None) -> Scan:
    """Samples and problems of a tar. Raises OSError if it cannot be read at all.

    ``class_field``: the label is this field of ``.json``; None: the text of ``.cls``. Nothing is unpacked.
    """
    with path.open("rb") as file:
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
                scan.samples.append(_found(tar, key, members, class_field))
            except _ProblemError as problem:
                scan.problems.add(problem.kind, f"{place}: {problem}")
    scan.samples = [sample for sample in scan.samples if sample.key not in halves]
    if not scan.samples:
        scan.problems.add("empty shard", name)
    return scan


class _ProblemError(ValueError):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _found(tar: Tar, key: str, members: dict[str, Member], class_field: str | None) -> Found:
    images = [ext for ext in members if image_type(ext) in EXTENSIONS]
    if len(images) != 1:
        kind = "several images" if images else "missing image"
        raise _ProblemError(kind, f"it has {', '.join(members)}; expected one of {', '.join(EXTENSIONS)}")
    member, ext = members[images[0]], image_type(images[0])
    record = _json(tar, members.get("json"))
    label = _label(tar, members.get("cls")) if class_field is None else _field(record, class_field)
    if not 0 < member.size <= MAX_IMAGE:
        raise _ProblemError("too large" if member.size else "damaged image", f"{member.size} bytes")
    payload = tar.read(member)
    try:
        shape, dtype = image_header(payload, ext)
    except Exception as error:  # PIL and numpy raise nearly any error for damaged bytes
        raise _ProblemError("damaged image", reason(error)) from error
    attributes: dict[str, float] = {
        name: value
        for name, value in record.items()
        if name != class_field and name.isprintable() and isinstance(value, int | float) and abs(value) < 2**31
    }
    return Found(key, ext, member.offset, member.size, label, zlib.crc32(payload), shape, dtype, attributes)


def image_type(ext: str) -> str:
    """The type of a file in a tar by its extension: ``left.jpeg`` is a jpg."""
    last = ext.rpartition(".")[2]
    return ALIASES.get(last, last)


def _json(tar: Tar, member: Member | None) -> dict[str, float | str]:
    if member is None:
        return {}
    if member.size > MAX_JSON:
        raise _ProblemError("too large", f"its json has {member.size} bytes")
    try:
        record = json.loads(tar.read(member))
    except (ValueError, RecursionError) as error:
        raise _ProblemError("damaged json", reason(error)) from error
    if not isinstance(record, dict):
        raise _ProblemError("damaged json", "it is no object")
    return record


def _label(tar: Tar, member: Member | None) -> str:
    if member is None:
        raise _ProblemError("missing label", "it has no cls")
    if member.size > MAX_LABEL:
        raise _ProblemError("wrong label", f"its cls has {member.size} bytes")
    try:
        return _printable(tar.read(member).decode().strip(), "cls")
    except UnicodeDecodeError as error:
        raise _ProblemError("wrong label", "its cls is no text") from error


def _field(record: dict[str, float | str], name: str) -> str | int:
    label = record.get(name)
    if isinstance(label, str):
        return _printable(label.strip(), name)
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    raise _ProblemError("missing label", f"its json has no word or number {name!r}")


def _printable(label: str, place: str) -> str:
    if not 0 < len(label) <= MAX_LABEL or not label.isprintable():
        raise _ProblemError("wrong label", f"its {place} is {label[:MAX_LABEL]!r}")
    return label


def image_header(payload: bytes, ext: str) -> tuple[tuple[int, int, int], str]:
    """Shape [C, H, W] and dtype of an image, without its pixels. Raises ValueError and any of PIL's errors."""
    if ext == "npy":
        shape, dtype, _ = npy_header(payload)
        return shape, np.dtype(dtype).name
    with Image.open(io.BytesIO(payload), formats=[PIL_FORMATS[ext]]) as image:
        check_pixels(image.width, image.height)
        check_mode(image)
        if ext == "png":
            check_chunks(payload)
        return (1 if image.mode in ("1", "L") else 3, image.height, image.width), "uint8"


def spelled(label: str | int) -> str:
    """A label as the name of a class: numbers without leading zeros."""
    text = str(label)
    return str(int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else text
