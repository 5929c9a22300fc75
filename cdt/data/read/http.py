"""Answers of web servers: redirects are followed within limits, and headers and body have a deadline."""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError

from cdt.data.format.damage import BadDataError

REDIRECTS = 5
"""How many in a row are followed."""
REDIRECTED = (301, 302, 303, 307, 308)
SMALL = 1 << 16
"""Bytes of a redirect's own text that are read, so that the connection can be used again."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not loopback, link-local, private or reserved."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        within = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            within = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if within is not None:
            return is_public(str(within))
    return found.is_global and not found.is_multicast


class Web:
    """Connections to web servers, kept open. For the threads of one process."""

    def __init__(self) -> None:
        self._any, self._public = _connections(public_only=False), _connections(public_only=True)

    def get(self, url: str, headers: dict[str, str], timeout_s: float) -> urllib3.BaseHTTPResponse:
        """The answer at a URL, its body unread; all redirects and the headers together take at most ``timeout_s``.

        From a public address no redirect leads to another kind of address, and from https none to http: who can write
        a link there could otherwise have files read from this machine's own network.

        Raises BadDataError for a redirect that is not followed, TimeoutError, and urllib3's HTTPError.
        """
        deadline, connections, place = time.monotonic() + timeout_s, self._any, url
        for _ in range(REDIRECTS + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no answer within {timeout_s:g} s")
            try:
                answer = connections.request(
                    "GET",
                    place,
                    headers=headers,
                    preload_content=False,
                    redirect=False,
                    retries=False,
                    timeout=urllib3.Timeout(connect=left, read=left),
                )
            except urllib3.exceptions.TimeoutError as error:
                raise TimeoutError(f"no answer within {timeout_s:g} s") from error
            except LocationParseError as error:
                raise BadDataError("unreadable shard", f"{url}: {_origin(place)} is no URL") from error
            except _NotPublicError as error:
                refused = f"{url}: it redirects to {_origin(place)}, which is not a public address, and is not followed"
                raise BadDataError("unreadable shard", refused) from error
            if answer.status not in REDIRECTED:
                return answer
            if is_public(_connection(answer).peer):
                connections = self._public
            place = _target(url, place, answer)
            _leave(answer)
        raise BadDataError("unreadable shard", f"{url}: more than {REDIRECTS} redirects")


def limit(answer: urllib3.BaseHTTPResponse, timeout_s: float, in_all_s: float) -> None:
    """Limits the time for the answer's body: between two pieces, and in all."""
    incoming = _connection(answer).incoming
    incoming.timeout_s, incoming.deadline = timeout_s, time.monotonic() + in_all_s


class _NotPublicError(Exception):
    """All addresses of a host are private, where only public ones are allowed."""


class _Incoming(io.RawIOBase):
    """What a server sends, up to a deadline: a socket's own timeout begins again with each byte."""

    def __init__(self, stream: io.RawIOBase, sock: socket.socket, timeout_s: float) -> None:
        self._stream, self._socket = stream, sock
        self.timeout_s, self.deadline = timeout_s, time.monotonic() + timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(min(left, self.timeout_s))
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Connection(HTTPConnection):
    """A connection that knows the address of its peer, and has a deadline for everything."""

    public_only = False
    peer: str
    incoming: _Incoming

    def _new_conn(self) -> socket.socket:
        """Tries the host's addresses in turn. Those that are not allowed are not even connected to."""
        deadline, refused, problem = time.monotonic() + (self.timeout or 0), False, "it has no address"
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise HTTPError(f"{self.host} has no address: {error}") from error
        for family, kind, protocol, _, address in found:
            if self.public_only and not is_public(str(address[0])):
                refused = True
                continue
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock.connect(address)
            except OSError as error:
                sock.close()
                problem = error.strerror or str(error)
                continue
            self.peer = str(address[0])
            return sock
        if refused:
            raise _NotPublicError
        raise HTTPError(f"no connection to {self.host}, port {self.port}: {problem}")

    def response_class(  # pyright: ignore[reportIncompatibleVariableOverride] (only called)
        self, sock: socket.socket, *arguments: Any, **options: Any
    ) -> http.client.HTTPResponse:
        """What ``http.client`` makes an answer with."""
        answer = http.client.HTTPResponse(sock, *arguments, **options)
        self.incoming = _Incoming(answer.fp.detach(), sock, self.timeout or 0)
        answer.fp = io.BufferedReader(self.incoming)
        return answer


def _connections(*, public_only: bool) -> urllib3.PoolManager:
    class Plain(_Connection):
        pass

    class Tls(Plain, HTTPSConnection):  # pyright: ignore[reportIncompatibleVariableOverride] (response_class)
        pass

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls: Any = Plain

    class TlsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls: Any = Tls

    Plain.public_only = public_only
    manager = urllib3.PoolManager(maxsize=8)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}
    return manager


def _connection(answer: urllib3.BaseHTTPResponse) -> _Connection:
    assert isinstance(answer.connection, _Connection)
    return answer.connection


def _target(url: str, place: str, answer: urllib3.BaseHTTPResponse) -> str:
    """Where a redirect leads. Raises BadDataError if it is not followed; ``url`` is what the user gave."""
    if not (where := answer.headers.get("Location", "")):
        raise BadDataError("unreadable shard", f"{url}: HTTP status {answer.status} does not say where to")
    try:
        target = urljoin(place, where)
        scheme, host = urlsplit(target).scheme, urlsplit(target).hostname
    except ValueError as error:
        raise BadDataError("unreadable shard", f"{url}: it redirects to what is no URL") from error
    if scheme not in ("http", "https") or not host:
        raise BadDataError("unreadable shard", f"{url}: it redirects to {scheme}:, and only http(s) is followed")
    if scheme == "http" and place.lower().startswith("https:"):
        raise BadDataError("unreadable shard", f"{url}: it redirects from https to {_origin(target)}; not followed")
    return target


def _origin(url: str) -> str:
    """Scheme and host: what follows may be a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"[:200]


def _leave(answer: urllib3.BaseHTTPResponse) -> None:
    """Keeps the connection if the text of a redirect is short; else closes it."""
    length = answer.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and len(length) < 6 and int(length) <= SMALL:
        answer.drain_conn()
    else:
        answer.close()
        answer.release_conn()
