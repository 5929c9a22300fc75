"""From a source of images to WebDataset shards and their index; the same input and seed give the same bytes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import math
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cdt.data.format.damage import BadDataError
from cdt.data.format.header import MAX_VALUES, SAFE_NAME, Header, ShardInfo
from cdt.data.format.index import Row, write_index
from cdt.data.format.pack import PACK_BELOW, Sample, bundled, by_size, encoded, packed, resized
from cdt.data.format.problems import MAX_BAD, Problems, check_max_bad
from cdt.data.sources import Record, Source
from cdt.data.write.select import choose
from cdt.errors import CdtError, InputError, RunError, refusal
from cdt.files import resolved, written_aside

MEGABYTE = 1_000_000
Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """What was written: the directory, its index.json, and notes about the source for the user."""

    root: Path
    header: Header
    notes: list[str]


def shard(
    source: Source,
    out: str | Path,
    *,
    keep: Mapping[str, float] | None = None,
    only: Sequence[str] = (),
    drop: Sequence[str] = (),
    resize: int | None = None,
    split: Mapping[str, float] | None = None,
    seed: int = 0,
    shard_mb: float = 64,
    pack: bool | None = False,
    max_bad: float = MAX_BAD,
    progress: Progress | None = None,
) -> Summary:
    """Write ``OUT/<split>/000000.tar``, ..., index.arrow and index.json; ``out`` appears when it is complete.

    ``keep``: the fraction of its samples that a class keeps in the split "train". ``only``, ``drop``: classes by name;
    class indices stay those of the source. ``resize``: pixels of the shorter side, then the central square is taken.
    ``split``: fractions by which each class of the split "train" is divided. ``shard_mb``: the size in 10^6 bytes that
    no tar exceeds, unless one sample does; one tar at a time is held in memory. ``pack``: many images in one array,
    for tiny ones; None: if they have less than ``PACK_BELOW`` bytes. ``max_bad``: the share of unusable samples up to
    which they are left out, counted and named in the notes. ``progress(done, total)`` per sample.

    Raises InputError for wrong options, more unusable samples, images of mixed shapes, and an ``out`` that is not
    empty; RunError if writing fails. Nothing is left behind in either case.
    """
    out = resolved(Path(out))
    check_new(out)
    check_max_bad(max_bad)
    source.problems.judge(len(source), max_bad)
    _check_numbers(resize, seed, shard_mb)
    _check_keys(source)
    keep, split = dict(keep or {}), dict(split or {})
    chosen = choose(
        source.classes, source.splits, source.class_names, keep=keep, only=only, drop=drop, split=split, seed=seed
    )
    positions = np.concatenate(list(chosen.values()))
    shape = _common_shape(source, positions, resize)
    options = {"keep": keep, "only": list(only), "drop": list(drop), "resize": resize, "split": split}
    if pack is None:
        pack = math.prod(shape) * np.dtype(source.dtype).itemsize < PACK_BELOW

    def read(position: int) -> Record:
        record = source[position]
        image = record.image if resize is None else resized(record.image, resize)
        if image.shape != shape or image.dtype != source.dtype:
            found = f"{image.dtype} {list(image.shape)} instead of {source.dtype} {list(shape)}"
            raise BadDataError("wrong shape or type", f"it was read as {found}: did it change meanwhile?")
        return record._replace(image=image)

    shards: dict[str, list[ShardInfo]] = {name: [] for name in chosen}
    rows: list[Row] = []
    kept: list[int] = []
    problems = Problems()
    problems.update(source.problems)
    done = itertools.count(1)

    def count() -> None:
        if progress:
            progress(next(done), len(positions))

    bytes_per_sample = 0.0
    try:
        with written_aside(out, unique=True) as root:
            root.mkdir(parents=True)
            for name in chosen:
                (root / name).mkdir()
                encode: Callable[[int], Any] = read if pack else lambda position: encoded(read(position))
                results: Iterator[Any] = _in_threads(_attempt(encode), chosen[name].tolist())
                numbered = zip(chosen[name].tolist(), results, strict=True)
                usable: Iterator[Any] = _usable(_counted(numbered, count), source, kept, problems)
                samples: Iterator[Sample] = bundled(usable, f"bundle-{name}") if pack else usable
                for group in by_size(samples, int(shard_mb * MEGABYTE)):
                    tar, images = packed(group)
                    bytes_per_sample = len(tar) / len(images)
                    number = len(shards[name])
                    shards[name].append(_write_tar(root, f"{name}/{number:06d}.tar", tar, len(images)))
                    rows += [Row(name, number, *image) for image in images]
            left_out = problems.judge(len(kept), max_bad)
            header = write_index(
                root,
                rows,
                shards,
                attributes={name: values[kept] for name, values in source.attributes.items()},
                shape=shape,
                dtype=source.dtype,
                class_names=source.class_names,
                source=source.origin | options | {"seed": seed, "shard_mb": shard_mb},
            )
    except OSError as error:
        raise _write_error(error, out, needed=bytes_per_sample * len(positions)) from error
    return Summary(out, header, [*source.notes, *left_out])


def _write_tar(root: Path, name: str, tar: memoryview, count: int) -> ShardInfo:
    (root / name).write_bytes(tar)
    return ShardInfo(name, count, len(tar), hashlib.sha256(tar).hexdigest())


def _attempt(encode: Callable[[int], T]) -> Callable[[int], T | BadDataError]:
    def attempt(position: int) -> T | BadDataError:
        try:
            return encode(position)
        except BadDataError as error:
            return error

    return attempt


def _usable(
    results: Iterable[tuple[int, T | BadDataError]], source: Source, kept: list[int], problems: Problems
) -> Iterator[T]:
    """Those that could be read, their positions in ``kept``; the others are added to ``problems``."""
    for position, result in results:
        if isinstance(result, BadDataError):
            problems.add(result.kind, f"{source.path(position)}: {result}")
        else:
            kept.append(position)
            yield result


def _in_threads(encode: Callable[[int], T], positions: Iterable[int]) -> Iterator[T]:
    """Samples in the order of the positions, some read ahead (Pillow works without the interpreter's lock)."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        for position in positions:
            waiting.append(pool.submit(encode, position))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _counted(results: Iterable[T], count: Callable[[], None]) -> Iterator[T]:
    for result in results:
        yield result
        count()


def check_new(out: Path) -> None:
    """Raises InputError unless ``out`` does not exist or is an empty directory."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty directory; name a new one")


def _check_numbers(resize: int | None, seed: int, shard_mb: float) -> None:
    if resize is not None and resize < 1:
        raise InputError(f"--resize: {resize} is no number of pixels; expected 1 or more")
    if seed < 0:
        raise InputError(f"--seed: {seed} is negative; expected 0 or more")
    if not 0 < shard_mb < math.inf:
        raise InputError(f"--shard-mb: {shard_mb} is no size; expected more than 0")


def _check_keys(source: Source) -> None:
    key, count = Counter(source.keys).most_common(1)[0] if source.keys else ("", 0)
    if count > 1:
        raise InputError(f"the key {key!r} is there {count} times; keys must be unique over the data set")
    if unsafe := next((key for key in source.keys if not SAFE_NAME.fullmatch(key)), None):
        raise InputError(f"the key {unsafe!r} is not 1 to 80 letters, digits, - and _")


def _common_shape(source: Source, positions: np.ndarray, resize: int | None) -> tuple[int, int, int]:
    """The shape [C, H, W] that all images have, or will have once they are resized."""
    shapes = source.shapes[positions]
    if resize is not None:
        shapes = np.concatenate([shapes[:, :1], np.full((len(shapes), 2), resize)], axis=1)
    others = np.flatnonzero((shapes != shapes[0]).any(axis=1))
    if len(others):
        one, other = int(positions[0]), int(positions[others[0]])
        sides = [" x ".join(map(str, source.shapes[position])) for position in (one, other)]
        remedy = "" if resize else f"; --resize N makes squares of all (the shortest side has {shapes[:, 1:].min()})"
        raise InputError(
            f"images of mixed shapes (channels x height x width): {source.path(one)} has {sides[0]}, "
            f"{source.path(other)} has {sides[1]}, and {len(others)} of {len(shapes)} differ from the first{remedy}"
        )
    channels, height, width = map(int, shapes[0])
    if min(channels, height, width) < 1:
        raise InputError(f"images of shape {[channels, height, width]} have no pixels")
    if channels * height * width > MAX_VALUES:
        raise InputError(
            f"images of shape {[channels, height, width]} have more than {MAX_VALUES:,} values; --resize N"
        )
    return channels, height, width


def _write_error(error: OSError, out: Path, needed: float) -> CdtError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return refusal(error, f"cannot write {out}; nothing was left behind")
    place = next(folder for folder in out.parents if folder.is_dir())
    free = shutil.disk_usage(place).free / MEGABYTE
    wanted = f"about {needed / MEGABYTE:,.1f} MB are needed, " if needed else ""
    return RunError(f"the disk is full: {wanted}{free:,.1f} MB are free at {place}; nothing was left behind")
