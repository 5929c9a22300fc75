"""How much memory an Arrow file needs, computed before it is unpacked: a megabyte of zstd can hold a terabyte of zeros.

The metadata are parsed here, because Arrow's library unpacks a column when it opens it. Names are those of the format:
https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format, and flatbuffers' internals.
"""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = b"ARROW1"
_BLOCK, _BUFFER = struct.Struct("<qi4xq"), struct.Struct("<qq")
_MOST_BUFFERS = 1_000_000


def unpacked_bytes(path: Path) -> int:
    """Bytes of all columns and dictionaries of an Arrow IPC file once they are unpacked. Raises ValueError."""
    with path.open("rb") as file:
        try:
            file.seek(-10, 2)
            size, magic = struct.unpack("<i6s", file.read(10))
            file.seek(-10 - size, 2)
            footer = _Table.root(file.read(size))
            if magic != _MAGIC:
                raise ValueError("it is no Arrow file")
            total = buffers = 0
            for place, metadata_size, _ in [*footer.structs(2, _BLOCK), *footer.structs(3, _BLOCK)]:
                file.seek(place)
                metadata = file.read(metadata_size)
                prefix = 8 if metadata[:4] == b"\xff" * 4 else 4
                batch = _Table.root(metadata[prefix:]).table(2)
                # A dictionary is a batch of one column in a table around it; a batch has its length there.
                batch = batch.table(1) if _Table.root(metadata[prefix:]).byte(1) == 2 else batch
                compressed = batch.field(3) is not None
                for offset, length in batch.structs(2, _BUFFER):
                    buffers += 1
                    if compressed and length > 8:
                        file.seek(place + metadata_size + offset)
                        (unpacked,) = struct.unpack("<q", file.read(8))
                        length = max(unpacked, length - 8)
                    total += max(length, 0)
                if buffers > _MOST_BUFFERS:
                    raise ValueError(f"it has more than {_MOST_BUFFERS} buffers")
        except (struct.error, OSError, OverflowError) as error:
            raise ValueError("its metadata are damaged") from error
    return total


class _Table:
    """A table of flatbuffers: a position in its bytes that points to the list of its fields' positions."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def field(self, number: int) -> int | None:
        fields = self._place - self._read("<i", self._place)
        if 4 + 2 * number >= self._read("<H", fields):
            return None
        offset = self._read("<H", fields + 4 + 2 * number)
        return self._place + offset if offset else None

    def table(self, number: int) -> _Table:
        place = self._required(number)
        return _Table(self._data, place + self._read("<I", place))

    def byte(self, number: int) -> int:
        return self._read("<B", self._required(number))

    def structs(self, number: int, kind: struct.Struct) -> list[tuple[int, ...]]:
        """A vector of structs; [] if it is missing."""
        if (place := self.field(number)) is None:
            return []
        place += self._read("<I", place)
        count = self._read("<I", place)
        return list(kind.iter_unpack(self._data[place + 4 :][: count * kind.size]))

    def _required(self, number: int) -> int:
        if (place := self.field(number)) is None:
            raise ValueError("its metadata lack a field")
        return place

    def _read(self, kind: str, place: int) -> int:
        if place < 0:
            raise ValueError("its metadata lead outside")
        return struct.unpack_from(kind, self._data, place)[0]
