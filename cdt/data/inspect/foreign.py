"""Writes an index for existing WebDataset shards: scanned in parallel, resumable, nothing is copied."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np

from cdt.data.config import DEFAULT_CACHE_GB
from cdt.data.format.damage import BadDataError
from cdt.data.format.header import MAX_VALUES, SAFE_NAME, Header, ShardInfo
from cdt.data.format.index import Row, write_index
from cdt.data.format.tar import Problems
from cdt.data.inspect.places import expand
from cdt.data.inspect.scan import Found, Scan, scan_tar, spelled
from cdt.data.read.cache import ShardCache, cache_directory
from cdt.data.read.remote import size_of
from cdt.data.urls import is_remote
from cdt.errors import InputError, RunError
from cdt.files import written_aside

T = TypeVar("T")


def index_shards(
    urls: Sequence[str],
    out: str | Path,
    *,
    split: str = "train",
    class_field: str | None = None,
    resize: int | None = None,
    max_bad: float = 0.001,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Header, list[str]]:
    """Write OUT/index.json and index.arrow for shards that stay where they are; also returns what was left out and why.

    ``urls``: paths or URLs of tars, with braces (``x-{000..099}.tar``), or ``@FILE`` with one per line.
    ``class_field``: the label is this field of ``.json``, not the text of ``.cls``. ``resize``: read images of several
    sizes as squares of this side. For local shards outside of OUT, links are made in OUT. Tars scanned before an
    interruption are not scanned again.

    Raises InputError for wrong places, mixed shapes, and if more than ``max_bad`` of the samples are unusable.
    """
    out = Path(out)
    if not SAFE_NAME.fullmatch(split):
        raise InputError(f"--split: {split!r} has other characters than letters, digits, - and _")
    if not 0 <= max_bad <= 1:
        raise InputError(f"--max-bad: {max_bad} is no share; expected 0 to 1")
    if (out / "index.json").exists():
        raise InputError(f"{out} has an index already; remove {out / 'index.json'} to write another")
    places = expand(urls)
    remote = is_remote(places[0])
    if any(is_remote(place) != remote for place in places):
        raise InputError("some shards are local and some are at URLs; index them apart")
    notes = out / ".scan"
    notes.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(len(places), 2 * (os.cpu_count() or 1))) as pool:
        scans = []
        for scan in pool.map(lambda place: _scanned(place, notes, class_field, remote), places):
            scans.append(scan)
            if progress:
                progress(len(scans), len(places))
    base, names = _names(places, out, split, remote)
    kept, problems = _without_duplicates(scans, names)
    said = _judged(problems, sum(map(len, kept)), max_bad)
    source = {"name": "index", "shards": list(urls), "class_field": class_field}
    header = _write(out, split, base, names, scans, kept, resize, source)
    shutil.rmtree(notes)
    return header, said


def _scanned(place: str, notes: Path, class_field: str | None, remote: bool) -> Scan:
    """A scan stored by an interrupted call, or a new one, which is stored."""
    path = Path(place)
    if remote:
        stamp = f"{place} {(size := _reached(lambda: size_of(place)))}"
    elif path.is_file():
        size = path.stat().st_size
        stamp = f"{path.resolve()} {size} {path.stat().st_mtime_ns}"
    else:
        raise InputError(f"no such file: {path}")
    note = notes / f"{sha256(f'{stamp} {class_field}'.encode()).hexdigest()[:32]}.json"
    if note.is_file():
        raw = json.loads(note.read_text())
        samples = [Found(**sample | {"shape": tuple(sample["shape"])}) for sample in raw["samples"]]
        return Scan(raw["bytes"], raw["sha256"], samples, Problems(**raw["problems"]))
    scan = scan_tar(_fetched(place, size) if remote else path, place, class_field)
    # A file with two paths may be scanned by two threads at once.
    with written_aside(note, unique=True) as aside:
        aside.write_text(json.dumps(asdict(scan)))
    return scan


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


def _names(places: list[str], out: Path, split: str, remote: bool) -> tuple[str | None, list[str]]:
    """Base URL and names below it; of local shards the names in OUT, which get links to those in other places."""
    if remote:
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
    root = out.resolve()
    paths = [Path(place).resolve() for place in places]
    if (repeated := Counter(paths).most_common(1)[0])[1] > 1:
        raise InputError(f"{repeated[0]} is named {repeated[1]} times, by different paths")
    if all(path.is_relative_to(root) for path in paths):
        return None, [path.relative_to(root).as_posix() for path in paths]
    (out / split).mkdir(exist_ok=True)
    names = [f"{split}/{number:06d}.tar" for number in range(len(paths))]
    if taken := next((name for name in names if (out / name).exists() and not (out / name).is_symlink()), None):
        raise InputError(f"{out / taken} is where a link would be; choose another OUT, or shards in {out} alone")
    for name, path in zip(names, paths, strict=True):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(path)
    return None, names


def _without_duplicates(scans: list[Scan], names: list[str]) -> tuple[list[list[Found]], Problems]:
    """The samples of each shard without those that repeat an earlier key, and all problems."""
    seen: set[str] = set()
    kept = []
    problems = Problems()
    for scan, name in zip(scans, names, strict=True):
        problems.update(scan.problems)
        fresh = [sample for sample in scan.samples if sample.key not in seen]
        for key in sorted({sample.key for sample in scan.samples} & seen):
            problems.add("duplicate key", f"{name}: {key}")
        seen |= {sample.key for sample in fresh}
        kept.append(fresh)
    return kept, problems


def _judged(problems: Problems, good: int, max_bad: float) -> list[str]:
    """One line for each kind of problem. Raises InputError if there are too many."""
    places = problems.places
    lines = [f"{kind}: {count}, as {'; '.join(places[kind][:3])}" for kind, count in problems.counts.items()]
    if not good:
        raise InputError("\n  ".join(["no sample can be used:", *lines]))
    bad = sum(problems.counts.values()) - problems.counts.get("empty shard", 0)
    if bad > max_bad * (good + bad):
        first = f"{bad} problems beside {good:,} usable samples are more than --max-bad {max_bad:g} allows:"
        raise InputError("\n  ".join([first, *lines]))
    return lines


def _write(
    out: Path,
    split: str,
    base: str | None,
    names: list[str],
    scans: list[Scan],
    kept: list[list[Found]],
    resize: int | None,
    source: dict[str, object],
) -> Header:
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
    common = set.intersection(*(set(sample.attributes) for sample in samples))
    attributes = {name: np.array([sample.attributes[name] for sample in samples]) for name in sorted(common)}
    return write_index(
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


def _class_names(samples: list[Found]) -> list[str]:
    """0, 1, ... up to the largest if all labels are numbers; otherwise the labels in order."""
    labels = {spelled(sample.label) for sample in samples}
    if not all(label.isascii() and label.isdigit() for label in labels):
        return sorted(labels)
    largest = max(map(int, labels))
    if largest >= max(10_000, 10 * len(samples)):
        raise InputError(f"a label is {largest}, but there are {len(labels)} classes; expected 0, 1, 2, ...")
    return [str(number) for number in range(largest + 1)]


def _shape(samples: list[Found], resize: int | None) -> tuple[int, int, int]:
    shapes = Counter((sample.dtype, *sample.shape) for sample in samples)
    if len({shape[0] for shape in shapes}) > 1:
        raise InputError("some images are uint8 and some float32")
    if resize is not None:
        return max(shape[1] for shape in shapes), resize, resize
    if len(shapes) > 1:
        (one, _), (other, count) = shapes.most_common(2)
        sides = [" x ".join(map(str, shape[1:])) for shape in (one, other)]
        raise InputError(
            f"images of {len(shapes)} shapes (channels x height x width), as {sides[0]} and {sides[1]} ({count}); "
            "--resize N reads all as squares of N pixels"
        )
    return samples[0].shape
