"""index.json: the contents of a shard directory: how many samples of each class and split, and in which tars."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from cdt.data.format.names import NOT_UTF8, name_problem
from cdt.data.urls import REMOTE
from cdt.errors import InputError

FORMAT: Literal[2] = 2
"""The format that is written. Format 1 is also read; it has no checksums of samples and only one order."""
READABLE = (1, FORMAT)
SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""Keys and names of splits: short enough for one tar header, and never a path."""
Dtype = Literal["uint8", "float32"]
ReadOrder = Literal["shuffled", "stratified"]
"""The order of the base stream. ``shuffled``: samples shuffled within blocks of shards (format 1 and early indexes of
format 2). ``stratified``: in addition, each class at even distances (all new indexes)."""
MAX_INDEX_BYTES = 1 << 26
MAX_VALUES = 1 << 26


def is_bounded(dtype: str) -> bool:
    """Whether images of this type are pixels: uint8, read as [-1, 1]. Latents (float32) are read as they are.

    Samples of bounded data are clipped to [-1, 1]: while they are drawn, and when they are stored.
    """
    return dtype == "uint8"


@dataclass(frozen=True)
class ShardInfo:
    """One tar: ``name`` is its path below the root, ``count`` its samples, ``bytes`` its size."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """One split as index.json states it."""

    count: int
    class_counts: list[int]
    shards: list[ShardInfo]


@dataclass(frozen=True)
class Header:
    """The contents of index.json; ``source`` records how the data were made."""

    format: Literal[1, 2]
    shape: tuple[int, int, int]
    dtype: Dtype
    class_names: list[str]
    splits: dict[str, SplitInfo]
    source: dict[str, Any]
    order: ReadOrder = "shuffled"
    base: str | None = None
    """The URL before the shards' names; None: the directory of the index."""
    resize: bool = False
    """Whether images are cut and scaled to ``shape`` as they are read."""
    upright: bool = False
    """Whether photographs are turned as their EXIF data say. Indexes of earlier versions leave them as they lie."""


def read_header(root: Path) -> Header:
    """Reads index.json and checks that it is consistent. Raises InputError: no directory, no index, another format,
    contradictions."""
    path = root / "index.json"
    if not root.is_dir():
        raise InputError(f"no such directory: {root}")
    if not path.is_file():
        if any(root.glob("*.tar")):
            raise InputError(f"{root} has shards but no index.json: `cdt index '{root}'/*.tar '{root}'` writes it")
        raise InputError(f"{root} has no index.json: it was not written by `cdt shard` or `cdt index`")
    if (size := path.stat().st_size) > MAX_INDEX_BYTES:
        raise InputError(f"{path} has {size} bytes, more than the limit of {MAX_INDEX_BYTES}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = raw.get("format") if isinstance(raw, dict) else None
        if found not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise InputError(f"{path} has format {found!r}; this version of cdt reads formats {known}")
        header = TypeAdapter(Header).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is not a valid index: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a valid index: {error}") from error
    if problem := next(_contradictions(header), None):
        raise InputError(f"{path} is not a valid index: {problem}")
    return header


def _contradictions(header: Header) -> Iterator[str]:
    if min(header.shape) < 1:
        yield f"shape {list(header.shape)} has an empty side"
    if math.prod(header.shape) > MAX_VALUES:
        yield f"shape {list(header.shape)} has more than {MAX_VALUES} values"
    if header.base is not None and not header.base.startswith(REMOTE):
        yield f"its base {header.base!r} is none of {', '.join(REMOTE)}"
    if nameless := next((name for name in header.class_names if name_problem(name) == NOT_UTF8), None):
        yield f"the class {nameless!r} {NOT_UTF8}"
    if len(set(header.class_names)) < len(header.class_names):
        yield "class_names are not unique"
    for split, info in header.splits.items():
        if not SAFE_NAME.fullmatch(split):
            yield f"split name {split!r} has other characters than letters, digits, - and _"
        if len(info.class_counts) != len(header.class_names) or sum(info.class_counts) != info.count:
            yield f"split {split}: class_counts are not {info.count} samples of {len(header.class_names)} classes"
        yield from (f"split {split}: {problem}" for problem in _wrong_shards(info))


def _wrong_shards(info: SplitInfo) -> Iterator[str]:
    if sum(shard.count for shard in info.shards) != info.count:
        yield f"the shards' counts do not add up to {info.count} samples"
    if any(not 0 <= number < 2**62 for shard in info.shards for number in (shard.count, shard.bytes)):
        yield "a shard has a negative or an absurd number of samples or bytes"
    for name in (shard.name for shard in info.shards):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield f"shard {name!r} lies outside the directory"
        if "\0" in name:
            yield f"the name of shard {name!r} has a zero byte"
    if len({shard.name for shard in info.shards}) < len(info.shards):
        yield "a shard is there twice"
