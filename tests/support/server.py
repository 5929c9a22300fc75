"""A real HTTP server on the loopback address, which fails as it is told to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """``faults`` are used up, one by a request: ``drop``, ``half``, ``stall``, ``drip``, ``shift`` (another range),
    ``mute`` (no length), ``slow`` (headers without end), ``chunks`` (the length of a chunk without end), ``trickle``
    (ranges byte by byte from the first on), a status, or ``to PLACE``, a redirect."""

    url: str
    faults: deque[str | int] = field(default_factory=deque)
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(root: Path, host: str = "127.0.0.1") -> Iterator[Server]:  # noqa: C901, a class inside
    """The files below ``root``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            span = self.headers.get("Range") if server.ranges else None
            server.requests.append((self.path, self.headers.get("Range")))
            server.headers.append(dict(self.headers))
            fault = server.faults.popleft() if server.faults else None
            path = root / self.path.partition("?")[0].lstrip("/")
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return
            if fault in ("slow", "chunks"):
                begin = b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n\r\n" * (fault == "chunks")
                self._trickle(begin, b"0" if fault == "chunks" else b"X: y\r\n")
                return
            if isinstance(fault, str) and fault.startswith("to "):
                self.send_response(302)
                self.send_header("Location", fault.removeprefix("to "))
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"Found")
                return
            if isinstance(fault, int) or not path.is_file():
                self.send_response(fault if isinstance(fault, int) else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            first, last = 0, len(content) - 1
            if span:
                start, _, end = span.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(end), last)
                if first >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            begin = first // 2 if fault == "shift" else first
            body = content[begin : begin + last + 1 - first]
            self.send_response(206 if span else 200)
            if fault == "mute":
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(body)))
            if span and fault != "mute":
                self.send_header("Content-Range", f"bytes {begin}-{begin + len(body) - 1}/{len(content)}")
            self.end_headers()
            self._send(body, fault)

        def _send(self, body: bytes, fault: str | int | None) -> None:
            rest = b""
            if fault in ("half", "stall", "drip", "trickle"):
                self.close_connection = True
                at_once = 1 if fault == "trickle" else (len(body) + 1) // 2
                body, rest = body[:at_once], body[at_once:]
            server.sent += len(body)
            try:
                self.wfile.write(body)
                self.wfile.flush()
                if fault == "stall":
                    server.over.wait(20)
                for byte in rest if fault in ("drip", "trickle") else b"":
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    server.over.wait(0.05)
            except OSError:
                self.close_connection = True

        def _trickle(self, begin: bytes, more: bytes) -> None:
            """Never silent for long, and never done."""
            self.close_connection = True
            try:
                self.wfile.write(begin)
                while not server.over.wait(0.02):
                    self.wfile.write(more)
                    self.wfile.flush()
            except OSError:
                return

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the library's name
            return

    http = ThreadingHTTPServer((host, 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda request, client_address: None  # clients go away, that is what is tested
    server = Server(f"http://{host}:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()
        thread.join()
