"""The bytes of shards, by shard number and offset: from a local directory, or from URLs through a cache."""

from __future__ import annotations

import os
import queue
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from cdt.data.config import DEFAULT_CACHE_GB
from cdt.data.format.damage import BadDataError
from cdt.data.format.header import ShardInfo
from cdt.data.format.index import Index
from cdt.data.read.cache import ShardCache, cache_directory
from cdt.data.read.remote import place_of, read
from cdt.data.urls import PIPE

RANGES_MB = 64


class Files(ABC):
    """The shards of one index."""

    @abstractmethod
    def read(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes. Raises BadDataError if the shard is missing, cannot be read or ends early."""

    def read_into(self, buffer: memoryview, shard: int, offset: int) -> None:
        """As many bytes as the buffer has, like ``read``."""
        buffer[:] = self.read(shard, offset, len(buffer))

    def expect(self, shards: Sequence[int]) -> None:
        """Announces that most of these shards will be read soon, in this order."""
        return


class Descriptors:
    """Open files, the least recently used closed first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: OrderedDict[str, int] = OrderedDict()

    def read_into(self, buffer: memoryview, path: str, offset: int) -> None:
        """Raises BadDataError."""
        try:
            got = os.preadv(self._descriptor(path), [buffer], offset)
        except FileNotFoundError as error:
            raise BadDataError("missing shard", error.strerror or "not found") from error
        except OSError as error:
            raise BadDataError("unreadable shard", error.strerror or "cannot be read") from error
        if got != len(buffer):
            raise BadDataError("truncated shard", f"the shard ends early: {got} of {len(buffer)} bytes")

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Raises BadDataError."""
        payload = bytearray(size)
        self.read_into(memoryview(payload), path, offset)
        return bytes(payload)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def _descriptor(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > self._most:
                os.close(self._open.popitem(last=False)[1])
        return self._open[path]


class LocalFiles(Files):
    """Shards in the index's own directory."""

    def __init__(self, index: Index, max_open: int = 32) -> None:
        self._paths = [str(index.root / info.name) for info in index.shards]
        self._descriptors = Descriptors(max_open)

    def read_into(self, buffer: memoryview, shard: int, offset: int) -> None:
        self._descriptors.read_into(buffer, self._paths[shard], offset)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        return self._descriptors.read(self._paths[shard], offset, size)


class RemoteFiles(Files):
    """Shards at URLs: from the cache if they are there, otherwise by ranges, which are kept in memory for a while.

    Expected shards are fetched into the cache in the background. ``fetched`` counts bytes of ranges.
    """

    def __init__(self, index: Index, base: str, cache_gb: float = DEFAULT_CACHE_GB) -> None:
        self._urls = [place_of(base, info.name) for info in index.shards]
        self._infos = index.shards
        self._cache = ShardCache(cache_directory() / "shards", int(cache_gb * 1e9))
        self._descriptors = Descriptors(32)
        self._found: dict[int, Path] = {}
        self._ranges: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._kept = 0
        self._expected: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.fetched = 0

    def read(self, shard: int, offset: int, size: int) -> bytes:
        if offset + size > self._infos[shard].bytes:
            raise BadDataError("truncated shard", f"the shard ends early, at byte {self._infos[shard].bytes}")
        path = self._found.get(shard) or self._cache.find(self._urls[shard], self._infos[shard])
        if path is None and self._urls[shard].startswith(PIPE):
            path = self._cache.add(self._urls[shard], self._infos[shard])  # a command can only print the whole file
        if path is not None:
            try:
                payload = self._descriptors.read(str(path), offset, size)
                self._found[shard] = path
                return payload
            except BadDataError:
                self._found.pop(shard, None)  # meanwhile deleted from the cache
        return self._range(shard, offset, size)

    def expect(self, shards: Sequence[int]) -> None:
        self._expected.put(list(shards))
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch_expected, name="cdt-read-ahead", daemon=True)
            self._thread.start()

    def _fetch_expected(self) -> None:
        waiting: list[int] = []
        while True:
            while not waiting or not self._expected.empty():
                waiting = self._expected.get()  # only the newest announcement counts
            shard = waiting.pop(0)
            try:
                self._cache.add(self._urls[shard], self._infos[shard])
            except (BadDataError, OSError):
                continue  # the reader will report the reason, sample by sample

    def _range(self, shard: int, offset: int, size: int) -> bytes:
        if (payload := self._ranges.get((shard, offset))) is not None and len(payload) == size:
            self._ranges.move_to_end((shard, offset))
            return payload
        payload = read(self._urls[shard], offset, size)
        self.fetched += size
        self._ranges[shard, offset] = payload
        self._kept += size
        while self._kept > RANGES_MB * 2**20:
            self._kept -= len(self._ranges.popitem(last=False)[1])
        return payload


class JoinedFiles(Files):
    """The shards of the first, then those of the second."""

    def __init__(self, first: Files, second: Files, shards_of_first: int) -> None:
        self._parts, self._shards_of_first = (first, second), shards_of_first

    def read(self, shard: int, offset: int, size: int) -> bytes:
        first, second = self._parts
        if shard < self._shards_of_first:
            return first.read(shard, offset, size)
        return second.read(shard - self._shards_of_first, offset, size)

    def expect(self, shards: Sequence[int]) -> None:
        first, second = self._parts
        first.expect([shard for shard in shards if shard < self._shards_of_first])
        second.expect([shard - self._shards_of_first for shard in shards if shard >= self._shards_of_first])


def open_files(index: Index, cache_gb: float = DEFAULT_CACHE_GB) -> Files:
    if index.parts:
        first, second = (open_files(part, cache_gb) for part in index.parts)
        return JoinedFiles(first, second, len(index.parts[0].shards))
    return LocalFiles(index) if index.base is None else RemoteFiles(index, index.base, cache_gb)


def whole_shard(index: Index, info: ShardInfo) -> Path:
    """A shard on the local disk, fetched if necessary. Raises BadDataError."""
    if index.base is None:
        if not (path := index.root / info.name).is_file():
            raise BadDataError("missing shard", f"no such file: {path}")
        return path
    cache = ShardCache(cache_directory() / "shards", int(DEFAULT_CACHE_GB * 1e9))
    if (path := cache.add(place_of(index.base, info.name), info)) is None:
        raise BadDataError("too large", f"{info.bytes} bytes are more than the cache of {DEFAULT_CACHE_GB:g} GB")
    return path
