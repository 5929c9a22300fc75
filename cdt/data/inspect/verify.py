"""Compares a shard directory with its index. Reads every byte, and trusts none of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cdt.data.format.damage import BadDataError
from cdt.data.format.decode import EXTENSIONS, RAW
from cdt.data.format.header import ShardInfo, read_header
from cdt.data.format.image import check_crc, check_size, image_of
from cdt.data.format.index import Index, located
from cdt.data.format.pack import CLASSES, IMAGES
from cdt.data.format.picture import reason
from cdt.data.format.problems import LISTED, Problems
from cdt.data.format.tar import Member, Tar
from cdt.data.inspect.foreign import key_by_shard
from cdt.data.inspect.scan import SampleError, image_type, label_in_field, label_in_text, spelled
from cdt.data.read.files import whole_shard
from cdt.errors import InputError

DECIMAL = re.compile(r"\d{1,9}")


class Part(NamedTuple):
    """Bytes of a tar, which are read when they are needed: what else lies beside a sample may be large."""

    offset: int
    size: int
    read: Callable[[], bytes]


Members = dict[str, Part]
"""Files of one sample by extension."""


@dataclass
class VerifyReport(Problems):
    """How much was read, and the problems found."""

    shards: int = 0
    samples: int = 0

    @property
    def ok(self) -> bool:
        return not self.counts

    @property
    def problems(self) -> list[str]:
        """One line per problem: the first few of every kind, then the number of further ones."""
        lines = []
        for kind, count in self.counts.items():
            lines += [f"{kind}: {place}" for place in self.places[kind]]
            if count > LISTED:
                lines.append(f"{kind}: {count - LISTED} more")
        return lines


def verify(root: str | Path, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Compare every tar of a shard directory, or of its URL, with its index; ``progress(done, total)`` counts tars.

    Tars are read without the index, and then compared with it: sizes and hashes, samples and their keys, labels,
    attributes and byte offsets; every image is decoded. Nothing is unpacked to disk or executed. Raises InputError if
    there is no index at all; every other problem is in the report.
    """
    place = located(root)
    header = read_header(place)
    report = VerifyReport()
    seen: set[str] = set()
    total = sum(len(info.shards) for info in header.splits.values())
    for split in header.splits:
        try:
            index = Index.load(root, split)
            keys = index.keys()
        except InputError as error:
            report.add("wrong index", str(error))
            continue
        check = _Check(index, header.source, report)
        for info, rows in zip(index.shards, _rows_by_shard(index), strict=True):
            check.shard(info, {keys[row]: row for row in rows.tolist()}, seen)
            report.shards += 1
            if progress:
                progress(report.shards, total)
    known = {shard.name for info in header.splits.values() for shard in info.shards}
    tars = sorted(path.relative_to(place).as_posix() for path in place.glob("**/*.tar"))
    for name in (name for name in tars if name not in known):
        report.add("tar that the index does not know", name)
    return report


def _rows_by_shard(index: Index) -> list[np.ndarray]:
    ends = np.cumsum([info.count for info in index.shards])
    return np.split(np.argsort(index.shard, kind="stable"), ends)[:-1]


@dataclass
class _Check:
    """The check of the shards of one split, made from ``source``."""

    index: Index
    source: dict[str, Any]
    report: VerifyReport
    foreign: bool = field(init=False)

    def __post_init__(self) -> None:
        self.foreign = self.source.get("name") == "index"

    def shard(self, info: ShardInfo, promised: dict[str, int], seen: set[str]) -> None:
        """``promised``: keys of the shard's samples -> rows of the index; ``seen``: keys of all tars before this."""
        report = self.report
        try:
            path = whole_shard(self.index, info)
        except BadDataError as error:
            report.add(error.kind, info.name)
            return
        with path.open("rb") as stream:
            if (size := path.stat().st_size) != info.bytes:
                report.add("wrong size", f"{info.name} has {size} bytes instead of {info.bytes}")
            if hashlib.file_digest(stream, "sha256").hexdigest() != info.sha256:
                report.add("wrong checksum", info.name)
        if len(promised) < info.count:
            report.add("duplicate key", f"{info.name}: {info.count - len(promised)} in the index")
        missing = dict(promised)
        count = 0
        for key, members in self._samples(path, info.name):
            place = f"{info.name}: {key}"
            if self.foreign and key not in promised:
                continue  # cdt index reported why it was left out
            count += 1
            if key in seen:
                report.add("duplicate key", place)
            elif key not in promised:
                report.add("sample that the index does not know", place)
            else:
                self._sample(missing.pop(key), members, place)
            seen.add(key)
        for key in missing:
            report.add("missing sample", f"{info.name}: {key}")
        if count != info.count:
            report.add("wrong count", f"{info.name} holds {count} samples instead of {info.count}")
        report.samples += count

    def _samples(self, path: Path, name: str) -> Iterator[tuple[str, Members]]:
        """Key and files of every sample of a tar; each image of a bundle counts as a sample."""
        with Tar(path, name, Problems() if self.foreign else self.report) as tar:
            for key, files in tar.samples():
                members = {ext: Part(file.offset, file.size, partial(tar.read, file)) for ext, file in files.items()}
                if self.foreign or IMAGES not in members:
                    yield (key_by_shard(name, key) if self.source.get("keys_by_shard") else key), members
                    continue
                try:
                    yield from self._images_of(tar, members)
                except BadDataError as error:
                    self.report.add(error.kind, f"{name}: {key}: {error}")
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    self.report.add("damaged bundle", f"{name}: {key}: {reason(error)}")

    def _images_of(self, tar: Tar, members: Members) -> Iterator[tuple[str, Members]]:
        about = json.loads(_bytes_of(members["json"]))
        keys, attributes = about["keys"], about["attributes"]
        images = members[IMAGES]
        size = math.prod(self.index.shape) * np.dtype(self.index.dtype).itemsize
        first = images.size - size * len(keys)
        labels = _bytes_of(members[CLASSES])
        classes = np.frombuffer(labels, "<i4", offset=len(labels) - 4 * len(keys))
        if first < 0 or any(len(values) != len(keys) for values in attributes.values()):
            raise ValueError("keys, classes, attributes and images are not equally many")
        for number, key in enumerate(map(str, keys)):
            start = images.offset + first + number * size
            about_one = {name: values[number] for name, values in attributes.items()}
            one = Member(key, start, size)
            yield (
                key,
                {
                    RAW: Part(start, size, partial(tar.read, one)),
                    "cls": _written(str(int(classes[number])).encode()),
                    "json": _written(json.dumps(about_one).encode()),
                },
            )

    def _sample(self, row: int, members: Members, place: str) -> None:
        index = self.index
        ext = index.extensions[index.ext[row]]
        images = [found for found in members if image_type(found) in ([RAW] if ext == RAW else EXTENSIONS)]
        if [image_type(found) for found in images] != [ext]:
            found = ", ".join(members)
            self.report.add("wrong files", f"{place} has {found}; expected one image, of type {ext}")
            return
        image = members[images[0]]
        if (image.offset, image.size) != (promise := (int(index.offset[row]), int(index.size[row]))):
            found = f"{place} has {image.size} bytes at {image.offset} instead of {promise[1]} at {promise[0]}"
            self.report.add("wrong offset", found)
        try:
            payload = _bytes_of(image)
            about, text = (_bytes_of(members[ext]) if ext in members else b"" for ext in ("json", "cls"))
        except BadDataError as error:
            self.report.add(error.kind, f"{place}: {error}")
            return
        for check in (lambda: check_crc(int(index.crc[row]), payload), lambda: image_of(index, row, payload)):
            try:
                check()
            except BadDataError as error:
                self.report.add(error.kind, f"{place}: {error}")
        record = self._record(about, place) if "json" in members else {}
        if self.foreign:
            self._foreign_label(row, text, record, place)
        else:
            self._label(row, text.decode("utf-8", "replace"), place)
        promised = {name: values[row] for name, values in index.attributes.items()}
        found = {name: record.get(name) for name in promised}
        if not all(_same(found[name], promised[name]) for name in promised):
            of_index = {name: value.item() for name, value in promised.items()}
            self.report.add("wrong attributes", f"{place}: {found} instead of {of_index}")

    def _record(self, text: bytes, place: str) -> dict[str, Any]:
        try:
            record = json.loads(text)
            if not isinstance(record, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            self.report.add("attributes that cannot be read", f"{place}: {reason(error)}")
            return {}
        return record

    def _foreign_label(self, row: int, text: bytes, record: dict[str, Any], place: str) -> None:
        promise = self.index.class_names[int(self.index.classes[row])]
        class_field = self.source.get("class_field")
        try:
            label = label_in_text(text) if class_field is None else label_in_field(record, str(class_field))
        except SampleError as error:
            self.report.add(error.kind, f"{place}: {error}")
            return
        if (found := spelled(label)) != promise:
            self.report.add("wrong label", f"{place}: {found[:20]!r} instead of {promise!r}")

    def _label(self, row: int, text: str, place: str) -> None:
        promise, names = int(self.index.classes[row]), self.index.class_names
        if not DECIMAL.fullmatch(text):
            self.report.add(
                "missing label" if not text else "wrong label", f"{place}: {text[:20]!r} is no decimal number"
            )
        elif (label := int(text)) >= len(names):
            self.report.add("wrong label", f"{place}: {label} is out of range, there are {len(names)} classes")
        elif label != promise:
            self.report.add("wrong label", f"{place}: {label} instead of {promise}")


def _bytes_of(part: Part) -> bytes:
    """Raises BadDataError if it is larger than what is read of a sample."""
    check_size(part.size)
    return part.read()


def _written(payload: bytes) -> Part:
    """What no file of the tar has as it is."""
    return Part(0, len(payload), lambda: payload)


def _same(found: object, promise: np.generic) -> bool:
    """Whether json's value is that of the index; indexes of earlier versions have float32 of what is in json."""
    if isinstance(found, float) and promise.dtype == np.float32:
        with np.errstate(over="ignore"):
            return bool(np.float32(found) == promise)
    return found == promise.item()
