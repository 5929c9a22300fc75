"""Two indexes as one, so that code that reads by row does not need to know where a row is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cdt.data.format.index import Index
from cdt.errors import InputError


def joined(first: Index, second: Index) -> Index:
    """The rows of the first, then those of the second.

    Classes, shards and types of files are numbered over both parts: a class of one is never a class of the other.
    Attributes stay with the parts. Raises InputError unless both have images of one shape and type.
    """
    for what, theirs, ours in (("shape", second.shape, first.shape), ("dtype", second.dtype, first.dtype)):
        if theirs != ours:
            raise InputError(f"{second.root}: its images have {what} {theirs}, those of {first.root} {ours}")
    return replace(
        first,
        class_names=first.class_names + second.class_names,
        shards=first.shards + second.shards,
        shard=_counted_on(first.shard, second.shard, len(first.shards)),
        offset=np.concatenate([first.offset, second.offset]),
        size=np.concatenate([first.size, second.size]),
        classes=_counted_on(first.classes, second.classes, len(first.class_names)),
        ext=np.concatenate([first.ext, _recoded(second.ext, second.extensions, first.extensions)]),
        extensions=_united(first.extensions, second.extensions),
        crc=np.concatenate([first.crc, second.crc]),
        resize=first.resize or second.resize,
        attributes={},
        parts=(first, second),
    )


def _counted_on(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([first, second + np.asarray(count, second.dtype)])


def _united(names: list[str], others: list[str]) -> list[str]:
    return names + [name for name in others if name not in names]


def _recoded(codes: np.ndarray, names: list[str], known: list[str]) -> np.ndarray:
    """Positions in ``names`` to positions in both lists united."""
    united = _united(known, names)
    return np.array([united.index(name) for name in names], dtype=codes.dtype)[codes]
