"""Servers on the loopback address that say what the libraries ask of Google Cloud Storage and the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@contextlib.contextmanager
def serving(kind: type[Store], root: Path, failures: list[int]) -> Iterator[str]:
    """Its URL. ``failures``: statuses that it answers first."""
    handler: Any = type("Handler", (kind,), {"root": root, "failures": failures})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Store(BaseHTTPRequestHandler):
    """The files below ``root``; subclasses know what the requests of an API mean."""

    protocol_version = "HTTP/1.1"
    root: Path
    failures: list[int]
    """Statuses that are answered first, one by a request for bytes."""

    def file(self, name: str) -> Path | None:
        path = self.root / unquote(name)
        return path if path.is_file() else None

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def tell(self, thing: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(thing).encode(), Content_Type="application/json")

    def send_file(self, path: Path | None) -> None:
        if self.failures:
            self.tell({"error": "later"}, self.failures.pop())
            return
        if path is None:
            self.tell({"error": {"code": 404, "message": "not found"}}, 404)
            return
        content = path.read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self.answer(206, part, Content_Range=span, Content_Type="application/octet-stream")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the library's name
        return


class Google(Store):
    """https://cloud.google.com/storage/docs/json_api/v1/objects"""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        name = asked.path.partition("/o/")[2]
        if asked.path.startswith("/download/") or "alt=media" in self.path:
            self.send_file(self.file(name))
        elif name:
            file = self.file(name)
            self.tell(self.entry(file)) if file else self.send_file(None)
        else:
            prefix = parse_qs(asked.query).get("prefix", [""])[0]
            files = sorted(path for path in self.root.rglob("*") if path.is_file())
            found = [each for each in map(self.entry, files) if each["name"].startswith(prefix)]
            self.tell({"kind": "storage#objects", "items": found})

    def do_POST(self) -> None:
        """What it is and its bytes, in two parts; or a place for the bytes, and then these, piece by piece."""
        asked, body = parse_qs(urlsplit(self.path).query), self.rfile.read(int(self.headers["Content-Length"]))
        if asked["uploadType"] == ["multipart"]:
            boundary = self.headers["Content-Type"].partition('boundary="')[2].rstrip('"').encode()
            _, what, rest = body.split(b"--" + boundary, 2)
            content = rest.partition(b"\n\n")[2].removesuffix(b"\n--" + boundary + b"--")
            self.keep(json.loads(what.partition(b"\n\n")[2])["name"], 0, content)
        elif "upload_id" not in asked:
            self.answer(200, b"", Location=f"http://{self.headers['Host']}{self.path}&upload_id=1")
        else:
            first, _, _ = self.headers["Content-Range"].removeprefix("bytes ").partition("-")
            self.keep(asked["name"][0], int(first), body)

    def do_DELETE(self) -> None:
        file = self.file(urlsplit(self.path).path.partition("/o/")[2])
        if file:
            file.unlink()
        self.answer(204 if file else 404, b"")

    def keep(self, name: str, first: int, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if first else "wb") as file:
            file.seek(first)
            file.write(content)
        self.tell(self.entry(path))

    def entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.root).as_posix()
        return {"name": name, "bucket": "data", "size": str(path.stat().st_size), "kind": "storage#object"}


class Hub(Store):
    """https://huggingface.co/docs/hub/api"""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/datasets/user/data/resolve/main/"):
            self.send_file(self.file(path.removeprefix("/datasets/user/data/resolve/main/")))
        elif path.startswith("/api/datasets/user/data/tree/main"):
            folder = self.root / unquote(path.removeprefix("/api/datasets/user/data/tree/main").lstrip("/"))
            entries = folder.iterdir() if folder.is_dir() else []
            self.tell([self.entry(entry) for entry in entries], 200 if folder.is_dir() else 404)
        elif path in ("/api/datasets/user/data", "/api/datasets/user/data/revision/main"):
            self.tell({"id": "user/data", "sha": "0" * 40, "private": False, "tags": [], "siblings": []})
        else:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        files = [self.root / name for name in asked["paths"]]
        self.tell([self.entry(file) for file in files if file.exists()])

    def entry(self, path: Path) -> dict[str, Any]:
        kind = "directory" if path.is_dir() else "file"
        size = 0 if path.is_dir() else path.stat().st_size
        return {"type": kind, "path": path.relative_to(self.root).as_posix(), "size": size, "oid": "0" * 40}
