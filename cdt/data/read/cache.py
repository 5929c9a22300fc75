"""Whole shards from URLs on the local disk: each fetched once for all processes of a machine, within a limit."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cdt.data.format.damage import BadDataError
from cdt.data.format.header import ShardInfo
from cdt.data.read.remote import fetch, place_of, size_of
from cdt.files import written_aside

MAX_FETCHED = 1 << 34
"""Limit of the size of an index's file, in bytes."""


def cache_directory() -> Path:
    """``CDT_CACHE``, or cdt in the user's cache."""
    if place := os.environ.get("CDT_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdt"


class ShardCache:
    """Files named by a digest of URL and content; above ``limit_bytes`` the least recently used are deleted."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory, self._limit = directory, limit_bytes
        directory.mkdir(parents=True, exist_ok=True)

    def find(self, url: str, info: ShardInfo) -> Path | None:
        """The path of a shard in the cache, or None; counts as a use."""
        path = self._path(url, info)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def add(self, url: str, info: ShardInfo) -> Path | None:
        """Fetch a shard unless it is cached or another process fetches it; None for one above the limit.

        A shard without a known hash is fetched again: the file at the URL may have changed.

        Raises BadDataError, also if the file does not match the index.
        """
        if info.bytes > self._limit:
            return None
        partial = self._path(url, info).with_suffix(".partial")
        with partial.with_suffix(".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if info.sha256 and (found := self.find(url, info)):
                return found
            self._make_room(info.bytes)
            try:
                path = self._path(url, replace(info, sha256=self._download(url, info, partial)))
                partial.rename(path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def _download(self, url: str, info: ShardInfo, partial: Path) -> str:
        """The file's hash."""
        digest = hashlib.sha256()
        with partial.open("wb") as file:

            def sink(chunk: bytes) -> None:
                digest.update(chunk)
                file.write(chunk)

            fetch(url, 0, info.bytes, sink)
        if info.sha256 and digest.hexdigest() != info.sha256:
            raise BadDataError("wrong checksum", f"{url} is not the file that was indexed")
        return digest.hexdigest()

    def _make_room(self, needed: int) -> None:
        files = []
        for path in self._directory.glob("*.tar"):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = needed + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, url: str, info: ShardInfo) -> Path:
        name = hashlib.sha256(f"{url} {info.bytes} {info.sha256}".encode()).hexdigest()[:32]
        return self._directory / f"{name}.tar"


def fetch_files(url: str, names: list[str]) -> Path:
    """A local directory with the files ``names`` below a URL, fetched again. Raises BadDataError."""
    directory = cache_directory() / "indexes" / hashlib.sha256(url.encode()).hexdigest()[:32]
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        with written_aside(directory / name, unique=True) as aside, aside.open("wb") as file:
            source = place_of(url, name)
            if (size := size_of(source)) > MAX_FETCHED:
                raise BadDataError("too large", f"{source} has {size:,} bytes; the limit is {MAX_FETCHED:,}")
            fetch(source, 0, size, file.write)
    return directory
