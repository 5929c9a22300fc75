"""Writes an index for existing WebDataset shards: scanned in parallel, resumable, nothing is copied."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter

from cdt.data.config import DEFAULT_CACHE_GB
from cdt.data.format.damage import BadDataError
from cdt.data.format.header import MAX_VALUES, SAFE_NAME, Header, ShardInfo
from cdt.data.format.index import Row, write_index
from cdt.data.format.problems import MAX_BAD, Problems, check_max_bad
from cdt.data.inspect.places import expand
from cdt.data.inspect.scan import Found, Scan, scan_tar, spelled
from cdt.data.read.cache import ShardCache, cache_directory
from cdt.data.read.remote import size_of
from cdt.data.urls import is_remote
from cdt.errors import InputError, RunError
from cdt.files import open_regular, read_bytes, resolved, written_aside
from cdt.records import parsed
from cdt.spelling import first_few

T = TypeVar("T")
SCAN = TypeAdapter(Scan)
SCAN_VERSION = 2
"""Of the rules by which a shard is scanned: what other rules found is not taken."""
NOTE_BYTES = 1 << 32


def index_shards(
    urls: Sequence[str],
    out: str | Path,
    *,
    split: str = "train",
    class_field: str | None = None,
    resize: int | None = None,
    keys_by_shard: bool = False,
    max_bad: float = MAX_BAD,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Header, list[str]]:
    """Write OUT/index.json and index.arrow for shards that stay where they are; also returns what was left out and why.

    ``urls``: paths or URLs of tars, with braces (``x-{000..099}.tar``), or ``@FILE`` with one per line.
    ``class_field``: the label is this field of ``.json``, not the text of ``.cls``. ``resize``: read images of several
    sizes as squares of this side. ``keys_by_shard``: keys need to be unique only within their shard; the shard's name
    becomes part of them. For local shards outside of OUT, links are made in OUT. Tars scanned before an
    interruption are not scanned again.

    Raises InputError for wrong places, mixed shapes, and if more than ``max_bad`` of the samples are unusable.
    """
    out = Path(out)
    if not SAFE_NAME.fullmatch(split):
        raise InputError(f"--split: {split!r} has other characters than letters, digits, - and _")
    check_max_bad(max_bad)
    if (out / "index.json").exists():
        raise InputError(f"{out} has an index already; remove {out / 'index.json'} to write another")
    places = expand(urls)
    remote = is_remote(places[0])
    if any(is_remote(place) != remote for place in places):
        raise InputError("some shards are local and some are at URLs; index them apart")
    with ThreadPoolExecutor(min(len(places), 2 * (os.cpu_count() or 1))) as pool:
        scans, notes = [], set[Path]()
        for scan, note in pool.map(lambda place: _scanned(place, class_field, remote), places):
            scans.append(scan)
            notes.add(note)
            if progress:
                progress(len(scans), len(places))
    base, names = _remote_names(places) if remote else (None, _local_names(places, out, split))
    if keys_by_shard:
        for scan, name in zip(scans, names, strict=True):
            for sample in scan.samples:
                sample.key = key_by_shard(name, sample.key)
    kept, problems = _without_duplicates(scans, names)
    said = problems.judge(sum(map(len, kept)), max_bad)
    source = {"name": "index", "shards": list(urls), "class_field": class_field, "keys_by_shard": keys_by_shard}
    header, left_out = _write(out, split, base, names, scans, kept, resize, source, places)
    for note in notes:
        note.unlink(missing_ok=True)
    return header, said + left_out


def key_by_shard(shard: str, key: str) -> str:
    """A key that is unique over all shards if ``key`` is within its own."""
    return f"{shard.removesuffix('.tar')}/{key}"


def _stamp(place: str, remote: bool) -> tuple[str, int]:
    """What a shard is recognised by when it is scanned again, and its size in bytes. Raises InputError, RunError."""
    if remote:
        size = _reached(lambda: size_of(place))
        return f"{place} {size}", size
    path = resolved(Path(place))
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise InputError(f"no such file: {place}") from error
    except OSError as error:
        raise InputError(f"{place}: {error.strerror}") from error
    return f"{path} {found.st_size} {found.st_mtime_ns}", found.st_size


def _note(stamp: str, class_field: str | None) -> Path:
    """Where the scan of a shard is stored until the index is written."""
    name = sha256(f"{SCAN_VERSION} {stamp} {class_field}".encode()).hexdigest()[:32]
    return cache_directory() / "scans" / f"{name}.json"


def _scanned(place: str, class_field: str | None, remote: bool) -> tuple[Scan, Path]:
    """A scan stored by an interrupted call, or a new one, which is stored; and where."""
    stamp, size = _stamp(place, remote)
    note = _note(stamp, class_field)
    if stored := _stored(note):
        return stored, note
    scan = scan_tar(_fetched(place, size) if remote else Path(place), place, class_field)
    note.parent.mkdir(parents=True, exist_ok=True)
    # A file with two paths may be scanned by two threads at once.
    with written_aside(note, unique=True) as aside:
        text = json.dumps(asdict(scan)).encode()
        aside.write_bytes(sha256(text).hexdigest().encode() + b"\n" + text)
    return scan, note


def _stored(note: Path) -> Scan | None:
    """A scan that was stored; None if there is none, or a damaged one."""
    try:
        digest, _, text = read_bytes(note, NOTE_BYTES).partition(b"\n")
    except InputError:
        return None
    return parsed(text, SCAN, str(note)) if sha256(text).hexdigest().encode() == digest else None


def _fetched(place: str, size: int) -> Path:
    cache = ShardCache(cache_directory() / "shards", int(DEFAULT_CACHE_GB * 1e9))
    if (path := _reached(lambda: cache.add(place, ShardInfo(place, 0, size, "")))) is None:
        raise InputError(f"{place} has {size} bytes, more than the cache of {DEFAULT_CACHE_GB:g} GB")
    return path


def _reached(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except BadDataError as error:
        raise RunError(f"{error}; what was scanned is kept, the same command continues") from error


def _remote_names(places: list[str]) -> tuple[str, list[str]]:
    """Base URL, and the shards' names below it."""
    hosts = {place.partition("://")[0] + "://" + place.partition("://")[2].partition("/")[0] for place in places}
    if len(hosts) > 1:
        raise InputError(f"the shards lie at {' and '.join(sorted(hosts))}; index them apart")
    host = hosts.pop()
    folder = os.path.commonpath([place.removeprefix(host).rpartition("/")[0] or "/" for place in places])
    base = host + folder.rstrip("/")
    names = [place.removeprefix(f"{base}/") for place in places]
    for place, name in zip(places, names, strict=True):
        if f"{base}/{name}" != place or not {"", ".."}.isdisjoint(name.split("/")):
            raise InputError(f"{place}: a folder of its path is empty or ..; name it without")
    return base, names


def _local_names(places: list[str], out: Path, split: str) -> list[str]:
    """Names in OUT: those of the shards, or of the links that will be made to shards in other places."""
    root = resolved(out)
    paths = [resolved(Path(place)) for place in places]
    if (repeated := Counter(paths).most_common(1)[0])[1] > 1:
        raise InputError(f"{repeated[0]} is named {repeated[1]} times, by different paths")
    if all(path.is_relative_to(root) for path in paths):
        return [path.relative_to(root).as_posix() for path in paths]
    names = [f"{split}/{number:06d}.tar" for number in range(len(paths))]
    if taken := next((name for name in names if (out / name).exists() and not (out / name).is_symlink()), None):
        raise InputError(f"{out / taken} is where a link would be; choose another OUT, or shards in {out} alone")
    return names


def _link(out: Path, names: list[str], places: list[str]) -> None:
    """Makes links in OUT to local shards in other places."""
    for old in {(out / name).parent for name in names}:
        for path in old.glob("*.tar"):
            if path.is_symlink() and path.relative_to(out).as_posix() not in names:
                path.unlink()  # of an index that was removed, or not finished
    for name, place in zip(names, places, strict=True):
        path = out / name
        if path.resolve() != Path(place).resolve():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(Path(place).resolve())


def _without_duplicates(scans: list[Scan], names: list[str]) -> tuple[list[list[Found]], Problems]:
    """The samples of each shard without those that repeat an earlier key, and all problems."""
    seen: set[str] = set()
    kept = []
    problems = Problems()
    for scan, name in zip(scans, names, strict=True):
        problems.update(scan.problems)
        fresh = [sample for sample in scan.samples if sample.key not in seen]
        for key in sorted({sample.key for sample in scan.samples} & seen):
            problems.add("duplicate key", f"{name}: {key} (--keys-by-shard makes keys unique)")
        seen |= {sample.key for sample in fresh}
        kept.append(fresh)
    return kept, problems


def _write(
    out: Path,
    split: str,
    base: str | None,
    names: list[str],
    scans: list[Scan],
    kept: list[list[Found]],
    resize: int | None,
    source: dict[str, object],
    places: list[str],
) -> tuple[Header, list[str]]:
    """The header, and notes about what was left out or converted."""
    samples = [sample for shard in kept for sample in shard]
    class_names = _class_names(samples)
    position = {name: number for number, name in enumerate(class_names)}
    shape = _shape(samples, resize)
    if math.prod(shape) > MAX_VALUES:
        raise InputError(f"--resize: images of shape {list(shape)} have more than {MAX_VALUES:,} values")
    rows = [
        Row(split, number, s.key, s.ext, s.offset, s.size, position[spelled(s.label)], s.crc)
        for number, shard in enumerate(kept)
        for s in shard
    ]
    infos = [
        ShardInfo(name, len(shard), scan.bytes, scan.sha256)
        for name, shard, scan in zip(names, kept, scans, strict=True)
    ]
    attributes, notes = _attributes(samples, scans)
    notes += _merged(samples)
    if shape[0] == 3 and (greys := sum(sample.shape[0] == 1 for sample in samples)):
        notes.append(f"grey images that get three equal channels, as others are coloured: {greys}")
    if transparent := sum(sample.transparent for sample in samples):
        notes.append(f"images with transparency, which becomes white: {transparent}")
    out.mkdir(parents=True, exist_ok=True)
    if base is None:
        _link(out, names, places)
    header = write_index(
        out,
        rows,
        {split: infos},
        attributes=attributes,
        shape=shape,
        dtype="float32" if samples[0].dtype == "float32" else "uint8",
        class_names=class_names,
        source=source,
        base=base,
        resize=resize is not None,
    )
    return header, notes


def _attributes(samples: list[Found], scans: list[Scan]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those that all samples have, and notes about the other fields of json."""
    having = Counter(name for sample in samples for name in sample.attributes)
    others = Problems()
    for scan in scans:
        others.update(scan.other_fields)
    notes = []
    for name in sorted(name for name, count in having.items() if count < len(samples)):
        example = f", as {others.places[name][0]}" if name in others.places else ""
        lacking = len(samples) - having[name]
        notes.append(f"attribute {name} is left out: {lacking} of {len(samples)} samples have no number there{example}")
    if words := sorted(name for name in others.counts if name not in having):
        notes.append(f"fields of json that are left out, as they are no numbers: {first_few(words)}")
    whole = sorted(name for name, count in having.items() if count == len(samples))
    return {name: np.array([sample.attributes[name] for sample in samples]) for name in whole}, notes


def _merged(samples: list[Found]) -> list[str]:
    """A note about numbers that are written in several ways, and are one class."""
    written: dict[str, set[str]] = {}
    for sample in samples:
        written.setdefault(spelled(sample.label), set()).add(str(sample.label))
    merged = [f"{name} as {' and '.join(sorted(ways))}" for name, ways in sorted(written.items()) if len(ways) > 1]
    return [f"classes whose number is written in several ways: {len(merged)}: {first_few(merged)}"] if merged else []


def _class_names(samples: list[Found]) -> list[str]:
    """0, 1, ... up to the largest if all labels are numbers; otherwise the labels in order."""
    labels = {spelled(sample.label) for sample in samples}
    if not all(label.isascii() and label.isdigit() and label == spelled(int(label)) for label in labels):
        return sorted(labels)
    largest = max(map(int, labels))
    if largest >= max(10_000, 10 * len(samples)):
        raise InputError(f"a label is {largest}, but there are {len(labels)} classes; expected 0, 1, 2, ...")
    return [str(number) for number in range(largest + 1)]


def _shape(samples: list[Found], resize: int | None) -> tuple[int, int, int]:
    shapes = Counter((sample.dtype, *sample.shape) for sample in samples)
    if len({shape[0] for shape in shapes}) > 1:
        raise InputError("some images are uint8 and some float32")
    channels = {shape[1] for shape in shapes}
    if resize is not None and samples[0].dtype != "uint8":
        raise InputError("--resize: float32 arrays are read as they are; only uint8 images are resized")
    if resize is not None and (len(channels) == 1 or channels == {1, 3}):
        return max(channels), resize, resize
    if channels == {1, 3} and len({shape[2:] for shape in shapes}) == 1:
        return 3, *samples[0].shape[1:]
    if len(shapes) > 1:
        (one, _), (other, count) = shapes.most_common(2)
        sides = [" x ".join(map(str, shape[1:])) for shape in (one, other)]
        raise InputError(
            f"images of {len(shapes)} shapes (channels x height x width), as {sides[0]} and {sides[1]} ({count}); "
            "--resize N reads all as squares of N pixels"
        )
    return samples[0].shape
