"""index.arrow: one row per sample, written and read in columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cdt.data.format.unpacked import unpacked_bytes
from cdt.errors import InputError
from cdt.files import written_aside

NAMES = pa.dictionary(pa.int32(), pa.string())
COLUMNS = {
    "split": NAMES,
    "shard": pa.int32(),
    "key": pa.string(),
    "ext": NAMES,
    "offset": pa.int64(),
    "size": pa.int64(),
    "class": pa.int32(),
    "crc": pa.int64(),
}
OPTIONAL = ("crc",)
"""Columns that format 1 does not have."""
ATTRIBUTE = "attr."
ATTRIBUTE_TYPES = (pa.int32(), pa.int64(), pa.float32(), pa.float64())


class Row(NamedTuple):
    """One sample; the fields are the columns of index.arrow in their order. ``shard`` counts within the split."""

    split: str
    shard: int
    key: str
    ext: str
    offset: int
    size: int
    class_index: int
    crc: int = -1
    """CRC-32 of the image's bytes; -1: not known."""


def write_rows(root: Path, rows: Sequence[Row], attributes: Mapping[str, np.ndarray]) -> None:
    """index.arrow, under a temporary name first; ``attributes`` as ``write_index`` takes them."""
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    arrays = {name: pa.array(values, kind) for (name, kind), values in zip(COLUMNS.items(), columns, strict=True)}
    for name, values in attributes.items():
        arrays[ATTRIBUTE + name] = pa.array(_narrowed(values))
    table = pa.table(arrays)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        written_aside(root / "index.arrow") as aside,
        pa.ipc.new_file(str(aside), table.schema, options=options) as file,
    ):
        file.write_table(table)


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Numbers [N] in 32 bits each if that keeps all of them exactly, otherwise in 64."""
    whole = np.issubdtype(values.dtype, np.integer)
    wide = values.astype(np.int64 if whole else np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.int32 if whole else np.float32)
    return narrow if np.array_equal(narrow, wide) else wide


def read_rows(root: Path, wanted: Callable[[str], bool]) -> pa.Table:
    """The columns of index.arrow that are ``wanted``, without empty cells. Raises InputError."""
    path = root / "index.arrow"
    if not path.is_file():
        raise InputError(f"{root} has index.json but no index.arrow: write the shards again")
    try:
        if (needed := unpacked_bytes(path)) > (most := _memory() // 4):
            raise InputError(f"{path} unpacks to {needed:,} bytes, more than a quarter of the memory here ({most:,})")
        with pa.memory_map(str(path)) as source:
            schema = pa.ipc.open_file(source).schema
            if problem := _wrong_schema(schema):
                raise InputError(f"{path} is not a valid index: {problem}")
            fields = [position for position, name in enumerate(schema.names) if wanted(name)]
            table = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields)).read_all()
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are no UTF-8
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    table = table.unify_dictionaries()
    if empty := [name for name in table.column_names if _has_nulls(table[name])]:
        raise InputError(f"{path} is not a valid index: column {empty[0]} has empty cells")
    return table


def _has_nulls(column: pa.ChunkedArray) -> bool:
    words = any(pa.types.is_dictionary(column.type) and chunk.dictionary.null_count for chunk in column.chunks)
    return bool(column.null_count or words)


def _memory() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _wrong_schema(schema: pa.Schema) -> str | None:
    if missing := [name for name in COLUMNS if name not in (*schema.names, *OPTIONAL)]:
        return f"no column {', '.join(missing)}"
    if len(set(schema.names)) < len(schema.names):
        return "two columns have one name"
    for name, kind in zip(schema.names, schema.types, strict=True):
        expected = ATTRIBUTE_TYPES if name.startswith(ATTRIBUTE) else (COLUMNS.get(name, kind),)
        if kind not in expected:
            return f"column {name} is {kind}; expected {' or '.join(map(str, expected))}"
    return None


def codes(table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """A column of names as numbers [N], and the names that these numbers mean."""
    column = table[name].combine_chunks()
    return column.indices.to_numpy(), column.dictionary.to_pylist()


def of_split(table: pa.Table, split: str) -> np.ndarray:
    """Which rows [N] bool belong to a split."""
    numbers, names = codes(table, "split")
    return numbers == (names.index(split) if split in names else -1)
