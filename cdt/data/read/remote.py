"""Bytes of files at URLs: http(s) by ranges, s3, gs and hf through fsspec, and the output of commands if allowed.

With timeouts, retries and back-off.
"""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache

import urllib3

from cdt.data.format.damage import BadDataError
from cdt.data.read.http import Web, limit
from cdt.data.read.object_store import SLOWEST, TIMEOUT_S, ObjectStore
from cdt.data.urls import PIPE
from cdt.errors import InputError
from cdt.retry import Retries, reason, retried

CHUNK = 1 << 18
TRIES = 6
"""Consecutive attempts without progress before giving up."""
BACK_OFF_S, LONGEST_BACK_OFF_S = 0.2, 10.0


def place_of(base: str, name: str) -> str:
    """The URL of a file below another URL; for a command, the command that prints this file."""
    if not base.startswith(PIPE):
        return f"{base}/{name}"
    if name.startswith("-"):
        raise BadDataError("missing shard", f"{name!r} would be an option of {base}")
    return base.replace("{}", shlex.quote(name))


class Transport(ABC):
    """One way to read; all its errors except BadDataError are retried."""

    @abstractmethod
    def chunks(self, url: str, offset: int, size: int) -> Iterator[bytes]:
        """The bytes [offset, offset + size) in pieces, fewer if the connection ends early."""

    @abstractmethod
    def size(self, url: str) -> int: ...


class Http(Transport):
    """Range requests over persistent connections."""

    def __init__(self) -> None:
        self._web = Web()

    def chunks(self, url: str, offset: int, size: int) -> Iterator[bytes]:
        answer = self._get(url, offset, size)
        try:
            if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise ConnectionError("the server sends another range than requested")
            skip = offset if answer.status == 200 else 0  # a server without ranges sends the whole file
            limit(answer, TIMEOUT_S, TIMEOUT_S + (skip + size) / SLOWEST)
            while size and (chunk := answer.read1(CHUNK)):
                kept = chunk[skip:][:size]
                skip, size = max(skip - len(chunk), 0), size - len(kept)
                if kept:
                    yield kept
        except urllib3.exceptions.TimeoutError as error:
            answer.close()
            slow = f"nothing came for {TIMEOUT_S:g} s, or less than {SLOWEST:,} bytes per second"
            raise TimeoutError(slow) from error
        except BaseException:
            answer.close()
            raise
        if size or answer.status == 200:
            answer.close()
        answer.release_conn()

    def size(self, url: str) -> int:
        answer = self._get(url, 0, 1)
        answer.close()
        header = "Content-Length" if answer.status == 200 else "Content-Range"
        length = answer.headers.get(header, "").rpartition("/")[2]
        if not (length.isascii() and length.isdigit()):
            raise BadDataError("unreadable shard", f"{url}: the server does not say how long the file is")
        return int(length)

    def _get(self, url: str, offset: int, size: int) -> urllib3.BaseHTTPResponse:
        """Each time from the user's own URL on: what it redirects to may be signed for minutes only."""
        span = f"bytes={offset}-{offset + size - 1}"
        answer = self._web.get(url, {"Range": span, "Accept-Encoding": "identity"}, TIMEOUT_S)
        if answer.status in (200, 206):
            return answer
        answer.close()
        if answer.status == 416:
            raise BadDataError("truncated shard", f"the file at {url} ends before byte {offset}")
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise ConnectionError(f"HTTP status {answer.status}")
        raise BadDataError("missing shard", f"HTTP status {answer.status} for {url}")


class Stored(Transport):
    """Files in object stores."""

    def __init__(self, scheme: str) -> None:
        self._store = ObjectStore(scheme)

    def chunks(self, url: str, offset: int, size: int) -> Iterator[bytes]:
        for start in range(offset, offset + size, 64 * CHUNK):
            end = min(start + 64 * CHUNK, offset + size)
            try:
                chunk = self._store.ask("cat_file", end - start, url, start=start, end=end)
            except (FileNotFoundError, PermissionError) as error:
                raise BadDataError("missing shard", f"{url}: {type(error).__name__}") from error
            if not chunk:
                raise BadDataError("truncated shard", f"the file at {url} ends before byte {start}")
            yield chunk

    def size(self, url: str) -> int:
        try:
            return int(self._store.ask("info", 0, url)["size"])
        except (FileNotFoundError, PermissionError) as error:
            raise BadDataError("missing shard", f"{url}: {type(error).__name__}") from error


class Pipe(Transport):
    """The output of a command, which must print a whole file; it runs without a shell."""

    def chunks(self, url: str, offset: int, size: int) -> Iterator[bytes]:
        for chunk in self._output(url):
            if kept := chunk[offset:][:size]:
                yield kept
            offset, size = max(offset - len(chunk), 0), size - len(kept)
            if not size:
                return
        raise BadDataError("truncated shard", f"{url} prints less than was promised")

    def size(self, url: str) -> int:
        return sum(map(len, self._output(url)))

    def _output(self, url: str) -> Iterator[bytes]:
        with tempfile.TemporaryFile() as said:
            try:
                command = shlex.split(url.removeprefix(PIPE))
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
            except (OSError, ValueError) as error:
                raise BadDataError("unreadable shard", f"{url}: {error}") from error
            with process:
                assert process.stdout is not None
                try:
                    while select.select([process.stdout], [], [], TIMEOUT_S)[0]:
                        if not (chunk := os.read(process.stdout.fileno(), CHUNK)):
                            break
                        yield chunk
                    else:
                        raise TimeoutError(f"nothing came for {TIMEOUT_S:g} seconds")
                except BaseException:
                    process.kill()
                    raise
                if process.wait():
                    said.seek(0)
                    last = said.read(4096).decode(errors="replace").strip().rpartition("\n")[2]
                    raise ConnectionError(f"exit status {process.returncode}: {last}")


@cache
def _transport(scheme: str, process: int) -> Transport:
    # Connections do not survive a fork, so each process has its own.
    if scheme == PIPE:
        return Pipe()
    return Http() if scheme in ("http", "https") else Stored(scheme)


def transport(url: str) -> Transport:
    return _transport(PIPE if url.startswith(PIPE) else url.partition("://")[0], os.getpid())


def fetch(url: str, offset: int, size: int, sink: Callable[[bytes], object]) -> None:
    """Passes ``size`` bytes from ``offset`` to ``sink``; after a failure it continues where it stopped.

    Raises BadDataError if the file is missing or shorter, after ``TRIES`` consecutive attempts without progress, and
    if all attempts together are slower than ``SLOWEST``.
    """
    got, retries, began = 0, _retries(), time.monotonic()
    in_all_s = TRIES * TIMEOUT_S + size / SLOWEST
    while got < size:
        before, problem = got, "the connection ended early"
        try:
            for chunk in transport(url).chunks(url, offset + got, size - got):
                sink(chunk)
                got += len(chunk)
        except (BadDataError, InputError):
            raise
        except Exception as error:  # the libraries raise nearly any error for a failing network
            problem = reason(error)
        if got > before:
            retries.progressed()
        if got < size and not retries.again():
            raise _unreadable(url, f"{retries.tries} tries failed, the last one: {problem}")
        if got < size and (took := time.monotonic() - began) > in_all_s:
            raise _unreadable(url, f"only {got:,} of {size:,} bytes came in {took:.0f} s, the last problem: {problem}")


def read(url: str, offset: int, size: int) -> bytes:
    """Like ``fetch``, in memory."""
    parts: list[bytes] = []
    fetch(url, offset, size, parts.append)
    return b"".join(parts)


def size_of(url: str) -> int:
    """Bytes of a file. Raises BadDataError."""
    return retried(
        lambda: transport(url).size(url), _retries(), lambda text: _unreadable(url, text), (BadDataError, InputError)
    )


def _retries() -> Retries:
    return Retries(TRIES, BACK_OFF_S, LONGEST_BACK_OFF_S)


def _unreadable(url: str, text: str) -> BadDataError:
    return BadDataError("unreadable shard", f"{url}: {text}")
