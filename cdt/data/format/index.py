"""The index of a shard directory: ``index.json`` (what and how many) and ``index.arrow`` (one row per sample).

With the byte offset of every image, any subset of the samples is a list of rows into the same tars.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cdt.data.format.damage import BadDataError
from cdt.data.format.decode import EXTENSIONS, RAW
from cdt.data.format.header import FORMAT, Dtype, Header, ReadOrder, ShardInfo, SplitInfo, is_bounded, read_header
from cdt.data.format.rows import ATTRIBUTE, COLUMNS, Row, codes, of_split, read_rows, write_rows
from cdt.data.read.cache import fetch_files
from cdt.data.urls import is_remote
from cdt.errors import InputError
from cdt.files import write_text


def write_index(
    root: Path,
    rows: Sequence[Row],
    shards: Mapping[str, list[ShardInfo]],
    *,
    attributes: Mapping[str, np.ndarray],
    shape: tuple[int, int, int],
    dtype: Dtype,
    class_names: list[str],
    source: dict[str, Any],
    base: str | None = None,
    resize: bool = False,
) -> Header:
    """Write index.arrow, then index.json, each under a temporary name first; returns the contents of index.json.

    ``shards`` has a list for every split; ``attributes`` are [N] in the order of the rows, integers or floats; they
    are kept exactly, in 32 bits or 64.
    """
    write_rows(root, rows, attributes)
    counts = {split: [0] * len(class_names) for split in shards}
    for row in rows:
        counts[row.split][row.class_index] += 1
    splits = {split: SplitInfo(sum(counts[split]), counts[split], infos) for split, infos in shards.items()}
    header = Header(FORMAT, shape, dtype, class_names, splits, source, "stratified", base, resize, upright=True)
    write_text(root / "index.json", json.dumps(asdict(header), indent=1) + "\n")
    return header


@dataclass(frozen=True, eq=False)
class Index:
    """One split of one shard directory: N samples of K classes, images [C, H, W] of ``dtype``."""

    root: Path
    split: str
    shape: tuple[int, int, int]
    dtype: Dtype
    class_names: list[str]
    shards: list[ShardInfo]
    shard: np.ndarray
    """[N] int32, position in ``shards``."""
    offset: np.ndarray
    """[N] int64, first byte of the image inside its tar."""
    size: np.ndarray
    """[N] int64, bytes of the image."""
    classes: np.ndarray
    """[N] int32, position in ``class_names``."""
    ext: np.ndarray
    """[N] int32, position in ``extensions``."""
    extensions: list[str]
    crc: np.ndarray
    """[N] int64, CRC-32 of the image's bytes; -1 where it is not known."""
    order: ReadOrder = "shuffled"
    base: str | None = None
    """The URL that the shards' names continue; None: they lie in ``root``."""
    resize: bool = False
    """Whether images are cut and scaled to ``shape`` as they are read."""
    upright: bool = False
    """Whether photographs are turned as their EXIF data say."""
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    """[N] integers or floats each."""
    parts: tuple[Index, ...] = ()
    """The two indexes that this one joins, one after the other, if it does."""

    @property
    def bounded(self) -> bool:
        """Whether its images are pixels (``is_bounded``)."""
        return is_bounded(self.dtype)

    @classmethod
    def load(cls, root: str | Path, split: str = "train", allow_pipe: bool = False) -> Index:
        """Load a split in time that does not depend on Python loops over samples.

        ``root`` can be a URL, or a command where those are allowed; the index is then fetched into the cache.

        Raises InputError: no such directory, no index, another format version, an unknown split, missing columns,
        and rows that contradict index.json.
        """
        url = str(root).rstrip("/") if is_remote(root, allow_pipe) else None
        root = located(root, allow_pipe)
        header = read_header(root)
        if url is not None and header.base is not None:
            raise InputError(f"{url}: its index leads to {header.base}; copy the index here and name its directory")
        if split not in header.splits:
            raise InputError(f"{root} has no split {split!r}; it has {', '.join(header.splits) or 'none'}")
        table = read_rows(root, lambda name: name != "key" and (name in COLUMNS or name.startswith(ATTRIBUTE)))
        if table.num_rows != (promised := sum(info.count for info in header.splits.values())):
            raise InputError(f"{root}: index.arrow has {table.num_rows} rows, index.json promises {promised}")
        here = of_split(table, split)
        columns = {name: table[name].to_numpy()[here] for name in table.column_names if name not in ("split", "ext")}
        ext, extensions = codes(table, "ext")
        index = cls(
            root=root,
            split=split,
            shape=header.shape,
            dtype=header.dtype,
            class_names=header.class_names,
            shards=header.splits[split].shards,
            shard=columns["shard"],
            offset=columns["offset"],
            size=columns["size"],
            classes=columns["class"],
            ext=ext[here],
            extensions=extensions,
            crc=columns.get("crc", np.full(int(here.sum()), -1)),
            order=header.order,
            base=url or header.base,
            resize=header.resize,
            upright=header.upright,
            attributes={name.removeprefix(ATTRIBUTE): columns[name] for name in columns if name.startswith(ATTRIBUTE)},
        )
        if problem := next(index._contradictions(header.splits[split]), None):
            raise InputError(f"{root}: split {split}: index.arrow contradicts index.json: {problem}")
        return index

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def count(self) -> int:
        return len(self)

    @property
    def class_counts(self) -> np.ndarray:
        """Samples per class: [K] int64."""
        return np.bincount(self.classes, minlength=len(self.class_names))

    def keys(self, rows: Sequence[int] | None = None) -> list[str]:
        """The keys of all N samples or of some rows, read from index.arrow at each call."""
        if self.parts:
            return self._keys_of_parts(np.arange(self.count) if rows is None else np.array(rows, dtype=np.int64))
        table = read_rows(self.root, lambda name: name in ("split", "key"))
        column = table["key"].filter(pa.array(of_split(table, self.split)))
        return (column if rows is None else column.take(pa.array(rows, pa.int64()))).to_pylist()

    def _keys_of_parts(self, rows: np.ndarray) -> list[str]:
        found = np.empty(len(rows), dtype=object)
        first, second = self.parts
        for part, chosen, start in ((first, rows < first.count, 0), (second, rows >= first.count, first.count)):
            if chosen.any():
                found[chosen] = part.keys((rows[chosen] - start).tolist())
        return found.tolist()

    def part_of(self, row: int) -> Index:
        """The index to which a row belongs: this one, or one of its parts."""
        if not self.parts:
            return self
        first, second = self.parts
        return first if row < first.count else second

    def check_sizes(self, spare: float = 0) -> None:
        """Raise InputError unless exactly the tars in the index exist, each with its size.

        ``spare``: tars with up to this share of the samples may be missing or damaged. Shards at URLs are checked when
        they are read.
        """
        if self.base is not None:
            return
        problems, affected = [], 0
        for info in self.shards:
            path = self.root / info.name
            if not path.is_file():
                problems.append(f"{info.name} is missing")
            elif (size := path.stat().st_size) != info.bytes:
                problems.append(f"{info.name} has {size} bytes instead of {info.bytes}")
            else:
                continue
            affected += info.count
        problems += [f"{name} is not in the index" for name in extra_shards(self.root, self.split, self.shards)]
        if problems and affected >= spare * self.count:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise InputError(f"{self.root} does not match its index: {'; '.join(problems[:5])}{more}")

    def _contradictions(self, info: SplitInfo) -> Iterator[str]:
        # In this order, each check can rely on the previous ones.
        shards, K = len(self.shards), len(self.class_names)
        if len(self) != info.count:
            yield f"{len(self)} rows instead of {info.count}"
        elif not _within(self.shard, shards):
            yield f"shards numbered {self.shard.min()} to {self.shard.max()}, but there are {shards}"
        elif np.bincount(self.shard, minlength=shards).tolist() != [shard.count for shard in self.shards]:
            yield "other numbers of samples per shard"
        elif not _within(self.classes, K):
            yield f"labels from {self.classes.min()} to {self.classes.max()}, but there are {K} classes"
        elif self.class_counts.tolist() != info.class_counts:
            yield "other numbers of samples per class"
        elif unknown := set(self.extensions) - {*EXTENSIONS, RAW}:
            yield f"images of type {', '.join(sorted(unknown))}; allowed are {', '.join(EXTENSIONS)}"
        else:
            room = np.array([shard.bytes for shard in self.shards], np.int64)[self.shard] - self.size
            if outside := int(((self.offset < 0) | (self.size < 1) | (self.offset > room)).sum()):
                yield f"images that lie outside their shards: {outside}"
            pixels = math.prod(self.shape) * np.dtype(self.dtype).itemsize
            if RAW in self.extensions and (self.size[self.ext == self.extensions.index(RAW)] != pixels).any():
                yield f"raw images of other than {pixels} bytes"


def extra_shards(root: Path, split: str, shards: list[ShardInfo]) -> list[str]:
    """Tars in the folder of a split that its index does not name."""
    known = {info.name for info in shards}
    return sorted(name for path in (root / split).glob("*.tar") if (name := f"{split}/{path.name}") not in known)


def located(root: str | Path, allow_pipe: bool = False) -> Path:
    """The directory of an index: ``root``, or for a URL a copy in the cache, fetched again. Raises InputError."""
    if not is_remote(root, allow_pipe):
        return Path(root)
    url = str(root).rstrip("/")
    try:
        return fetch_files(url, ["index.json", "index.arrow"])
    except BadDataError as error:
        raise InputError(f"{url} has no index that can be read ({error}); `cdt index` writes one") from error


def _within(values: np.ndarray, bound: int) -> bool:
    return values.size == 0 or bool(values.min() >= 0 and values.max() < bound)
