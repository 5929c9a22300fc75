"""The bytes of shards, by shard number and offset."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict

from cdt.data.bad import BadDataError
from cdt.data.index import Index


class Files(ABC):
    """The shards of one index."""

    @abstractmethod
    def read(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes. Raises BadDataError when the shard is not there, cannot be read or ends early."""


class LocalFiles(Files):
    """Shards on disk, kept open, the least recently used closed first."""

    def __init__(self, index: Index, max_open: int = 32) -> None:
        self._index, self._max_open = index, max_open
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        try:
            payload = os.pread(self._open(shard), size, offset)
        except FileNotFoundError as error:
            raise BadDataError("missing shard", error.strerror or "cannot be read") from error
        except OSError as error:
            raise BadDataError("unreadable shard", error.strerror or "cannot be read") from error
        if len(payload) != size:
            raise BadDataError("truncated shard", f"the shard ends early: {len(payload)} of {size} bytes")
        return payload

    def _open(self, shard: int) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
        else:
            path = self._index.root / self._index.shards[shard].name
            self._descriptors[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._descriptors) > self._max_open:
                os.close(self._descriptors.popitem(last=False)[1])
        return self._descriptors[shard]
