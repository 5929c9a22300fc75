"""Does a shard directory hold what its index promises? Reads every byte, and trusts none of them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from webdataset.tariterators import base_plus_ext

from cdt.data.decode import EXTENSIONS, RAW, decode, reason
from cdt.data.header import read_header
from cdt.data.index import Index
from cdt.data.pack import CLASSES, IMAGES
from cdt.errors import InputError

LISTED = 5
"""Problems of one kind that are told one by one; the others are counted."""
DECIMAL = re.compile(rb"\d{1,9}")
Members = dict[str, tuple[int, bytes]]
"""Files of one sample by extension: offset in the tar, payload."""


@dataclass
class VerifyReport:
    """How much was read, and what is wrong with it: the number of problems by kind, and where the first few are."""

    shards: int = 0
    samples: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    places: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def ok(self) -> bool:
        return not self.counts

    @property
    def problems(self) -> list[str]:
        """One line each; of every kind the first few, then how many more."""
        lines = []
        for kind, count in self.counts.items():
            lines += [f"{kind}: {place}" for place in self.places[kind]]
            if count > LISTED:
                lines.append(f"{kind}: {count - LISTED} more")
        return lines

    def add(self, kind: str, place: str) -> None:
        """Count a problem. Names in tars may hold anything, a terminal's control sequences too: those are not told."""
        self.counts[kind] += 1
        if self.counts[kind] <= LISTED:
            self.places[kind].append("".join(letter if letter.isprintable() else "?" for letter in place))


def verify(root: str | Path, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Compare every tar of a shard directory with its index; ``progress(done, total)`` counts tars.

    Tars are read by themselves, without the index, and then compared with it: sizes and hashes, samples and their keys,
    labels, attributes and byte offsets; every image is decoded. Nothing is unpacked to disk or executed. Raises
    InputError where there is no index at all; everything else that is wrong stands in the report.
    """
    root = Path(root)
    header = read_header(root)
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
        for number, rows in enumerate(_rows_by_shard(index)):
            _verify_shard(index, number, {keys[row]: row for row in rows}, seen, report)
            report.shards += 1
            if progress:
                progress(report.shards, total)
    known = {shard.name for info in header.splits.values() for shard in info.shards}
    tars = sorted(path.relative_to(root).as_posix() for path in root.glob("**/*.tar"))
    for name in (name for name in tars if name not in known):
        report.add("tar that the index does not know", name)
    return report


def _rows_by_shard(index: Index) -> list[np.ndarray]:
    counts = [info.count for info in index.shards]
    return np.split(np.argsort(index.shard, kind="stable"), np.cumsum(counts)[:-1])


def _verify_shard(index: Index, number: int, promised: dict[str, int], seen: set[str], report: VerifyReport) -> None:
    """``promised``: keys of the shard's samples -> rows of the index; ``seen``: keys of all tars before this one."""
    info = index.shards[number]
    path = index.root / info.name
    if not path.is_file():
        report.add("missing shard", info.name)
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
    for key, members in unbundled(read_samples(path, info.name, report), info.name, index, report):
        count += 1
        place = f"{info.name}: {key}"
        if key in seen:
            report.add("duplicate key", place)
        elif key not in promised:
            report.add("sample that the index does not know", place)
        else:
            _verify_sample(index, missing.pop(key), members, place, report)
        seen.add(key)
    for key in missing:
        report.add("missing sample", f"{info.name}: {key}")
    if count != info.count:
        report.add("wrong count", f"{info.name} holds {count} samples instead of {info.count}")
    report.samples += count


def read_samples(path: Path, name: str, report: VerifyReport) -> Iterator[tuple[str, Members]]:
    """Key and members of the samples of one tar in their order, grouped as webdataset groups them."""
    key, members = None, {}
    for file, offset, payload in _read_files(path, name, report):
        base, ext = base_plus_ext(file)
        if base is None or ext is None:
            report.add("file without extension", f"{name}: {file}")
            continue
        if base != key:
            if key is not None:
                yield key, members
            key, members = base, {}
        if ext.lower() in members:
            report.add("duplicate file", f"{name}: {file}")
        members[ext.lower()] = (offset, payload)
    if key is not None:
        yield key, members


def unbundled(
    samples: Iterable[tuple[str, Members]], name: str, index: Index, report: VerifyReport
) -> Iterator[tuple[str, Members]]:
    """Bundles of many images as if each of these were a sample of its own; all else as it is."""
    for key, members in samples:
        if IMAGES not in members:
            yield key, members
            continue
        try:
            yield from _images_of(members, index)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            report.add("damaged bundle", f"{name}: {key}: {reason(error)}")


def _images_of(members: Members, index: Index) -> Iterator[tuple[str, Members]]:
    about = json.loads(members["json"][1])
    keys, attributes = about["keys"], about["attributes"]
    offset, payload = members[IMAGES]
    size = math.prod(index.shape) * np.dtype(index.dtype).itemsize
    first = len(payload) - size * len(keys)
    classes = np.load(io.BytesIO(members[CLASSES][1]), allow_pickle=False)
    if first < 0 or classes.shape != (len(keys),) or any(len(values) != len(keys) for values in attributes.values()):
        raise ValueError("keys, classes, attributes and images are not equally many")
    for number, key in enumerate(keys):
        start = first + number * size
        about_one = {name: values[number] for name, values in attributes.items()}
        yield (
            key,
            {
                RAW: (offset + start, payload[start : start + size]),
                "cls": (0, str(int(classes[number])).encode()),
                "json": (0, json.dumps(about_one).encode()),
            },
        )


def _read_files(path: Path, name: str, report: VerifyReport) -> Iterator[tuple[str, int, bytes]]:
    """Name, offset and bytes of every plain file in a tar; what else is there is reported and not read."""
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            end = path.stat().st_size
            for member in tar:
                file = PurePosixPath(member.name)
                if not 0 <= member.size <= end - member.offset_data:
                    raise tarfile.ReadError(f"{member.name} leads beyond the end")
                if not member.isreg() or member.sparse is not None:
                    report.add("refused: no plain file", f"{name}: {member.name}")
                elif file.is_absolute() or ".." in file.parts:
                    report.add("refused: path leads outside", f"{name}: {member.name}")
                else:
                    stream.seek(member.offset_data)
                    yield member.name, member.offset_data, stream.read(member.size)
            # tarfile takes a damaged header for the end of the tar; the true end is a block of zeros.
            stream.seek(tar.offset)
            if any(stream.read(tarfile.BLOCKSIZE)):
                report.add("damaged tar", f"{name}: no valid header at byte {tar.offset}, nothing after it was read")
    except Exception as error:  # of damaged headers tarfile raises nearly anything
        report.add("damaged tar", f"{name}: {reason(error)}")


def _verify_sample(index: Index, row: int, members: Members, place: str, report: VerifyReport) -> None:
    ext = index.extensions[index.ext[row]]
    images = [found for found in members if found in (*EXTENSIONS, RAW)]
    if images != [ext]:
        report.add("wrong files", f"{place} has {', '.join(members)}; expected one image, of type {ext}")
        return
    offset, payload = members[ext]
    if (offset, len(payload)) != (promise := (int(index.offset[row]), int(index.size[row]))):
        report.add(
            "wrong offset", f"{place} has {len(payload)} bytes at {offset} instead of {promise[1]} at {promise[0]}"
        )
    _verify_image(index, payload, ext, place, report)
    _verify_label(index, row, members.get("cls", (0, b""))[1], place, report)
    _verify_attributes(index, row, members.get("json", (0, b"{}"))[1], place, report)


def _verify_image(index: Index, payload: bytes, ext: str, place: str, report: VerifyReport) -> None:
    try:
        image = np.frombuffer(payload, index.dtype).reshape(index.shape) if ext == RAW else decode(payload, ext)
    except ValueError as error:
        report.add("image that cannot be read", f"{place}: {error}")
        return
    if image.shape != index.shape or image.dtype != index.dtype:
        found, expected = f"{image.dtype} {list(image.shape)}", f"{index.dtype} {list(index.shape)}"
        report.add("wrong shape or type", f"{place} is {found} instead of {expected}")
    elif not np.isfinite(image).all():
        report.add("image with values that are not finite", place)


def _verify_label(index: Index, row: int, text: bytes, place: str, report: VerifyReport) -> None:
    if not DECIMAL.fullmatch(text):
        report.add("missing label" if not text else "wrong label", f"{place}: {text[:20]!r} is no decimal number")
    elif (label := int(text)) >= (classes := len(index.class_names)):
        report.add("wrong label", f"{place}: {label} is out of range, there are {classes} classes")
    elif label != (promise := index.classes[row]):
        report.add("wrong label", f"{place}: {label} instead of {promise}")


def _verify_attributes(index: Index, row: int, text: bytes, place: str, report: VerifyReport) -> None:
    try:
        found = json.loads(text)
        found = {name: found.get(name) for name in index.attributes}
    except (ValueError, RecursionError, AttributeError) as error:
        report.add("attributes that cannot be read", f"{place}: {reason(error)}")
        return
    promise = {name: values[row].item() for name, values in index.attributes.items()}
    if not all(_same(found[name], promise[name]) for name in promise):
        report.add("wrong attributes", f"{place}: {found} instead of {promise}")


def _same(found: object, promise: float) -> bool:
    # The index has float32, JSON what was written there.
    return found == promise or (isinstance(found, float) and math.isclose(found, promise, rel_tol=1e-6))
