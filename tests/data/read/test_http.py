"""Redirects that are followed and those that are not, and servers that send slowly for ever."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from server import Server, serve

from cdt.data.format.damage import BadDataError
from cdt.data.read import http, remote
from cdt.data.read.http import is_public
from cdt.data.read.remote import read, size_of

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Half a second."""
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(remote, "BACK_OFF_S", 0.001)
    remote._transport.cache_clear()
    yield
    remote._transport.cache_clear()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "x.tar").write_bytes(CONTENT)
    with serve(tmp_path) as server:
        yield server


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Server]:
    """Another host."""
    (tmp_path / "x.tar").write_bytes(CONTENT)
    with serve(tmp_path, "127.0.0.2") as server:
        yield server


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ``site`` has a public address."""
    monkeypatch.setattr(http, "is_public", lambda address: address == "127.0.0.1")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:7f00:1::", False),
        ("2002:a9fe:a9fe::1", False),
    ],
)
def test_addresses_of_the_internet(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_redirects_are_followed_by_reads_and_sizes_alike(site: Server, inside: Server) -> None:
    for ask in (lambda url: read(url, 100, 50) == CONTENT[100:150], lambda url: size_of(url) == len(CONTENT)):
        site.faults.extend(["to /second", "to second/third", f"to {inside.url}/x.tar?sig=1"])
        assert ask(f"{site.url}/first")
    paths = [path for path, _ in site.requests]
    assert paths == ["/first", "/second", "/second/third"] * 2
    assert inside.requests == [("/x.tar?sig=1", "bytes=100-149"), ("/x.tar?sig=1", "bytes=0-0")]


def test_five_redirects_and_no_more(site: Server) -> None:
    site.faults.extend(["to /x.tar"] * 5)
    assert read(f"{site.url}/x.tar", 0, 10) == CONTENT[:10]
    site.faults.extend(["to /x.tar"] * 6)
    with pytest.raises(BadDataError, match=r"^http://\S+/x.tar: more than 5 redirects$") as caught:
        read(f"{site.url}/x.tar", 0, 10)
    assert caught.value.kind == "unreadable shard"
    assert len(site.requests) == 12


def test_a_read_that_breaks_off_begins_again_at_the_users_url(site: Server, inside: Server) -> None:
    """What it redirects to is signed, and good only once."""
    site.faults.extend([f"to {inside.url}/x.tar?sig={number}" for number in range(4)])
    inside.faults.extend(["half", "half", "drop"])
    assert read(f"{site.url}/x.tar", 1000, 4000) == CONTENT[1000:5000]
    spans = ["bytes=1000-4999", "bytes=3000-4999", "bytes=4000-4999", "bytes=4000-4999"]
    assert inside.requests == [(f"/x.tar?sig={number}", span) for number, span in enumerate(spans)]


@pytest.mark.parametrize("host", ["127.0.0.2", "2130706434", "0177.0.0.2", "0x7f.2", "[::ffff:127.0.0.2]"])
def test_from_the_internet_none_leads_inside(site: Server, inside: Server, outside: None, host: str) -> None:
    port = inside.url.rpartition(":")[2]
    site.faults.extend(["to /again", f"to http://{host}:{port}/x.tar"])
    with pytest.raises(BadDataError, match=r"which is not a public address, and is not followed$") as caught:
        read(f"{site.url}/x.tar", 0, 10)
    assert "\n" not in str(caught.value)
    assert caught.value.kind == "unreadable shard"
    assert len(site.requests) == 2
    assert not inside.requests


def test_a_name_that_leads_inside_is_judged_by_its_addresses(
    site: Server, inside: Server, outside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of several addresses the public ones are used."""
    look_up, port = http.socket.getaddrinfo, int(inside.url.rpartition(":")[2])
    addresses = {"inside.example": ["127.0.0.2"], "both.example": ["127.0.0.2", "127.0.0.1"]}

    def resolve(host: str, *arguments: int, **options: int) -> list[object]:
        return [found for each in addresses.get(host, [host]) for found in look_up(each, *arguments, **options)]

    monkeypatch.setattr(http.socket, "getaddrinfo", resolve)
    site.faults.append(f"to http://inside.example:{port}/x.tar")
    with pytest.raises(BadDataError, match=r"redirects to http://inside\.example, which is not a public address"):
        read(f"{site.url}/x.tar", 0, 10)
    assert not inside.requests
    site.faults.append(f"to http://both.example:{site.url.rpartition(':')[2]}/x.tar")
    assert read(f"{site.url}/x.tar", 0, 10) == CONTENT[:10]


def test_from_inside_all_may_be_reached(site: Server, inside: Server, outside: None) -> None:
    inside.faults.append(f"to {site.url}/x.tar")
    assert read(f"{inside.url}/x.tar", 0, 10) == CONTENT[:10]
    assert len(site.requests) == 1


def redirected(place: str, where: str) -> str:
    answer = urllib3.HTTPResponse(headers={"Location": where} if where else {}, status=302)
    return http._target("https://first.example/x", place, answer)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("http://second.example/x?sig=secret", "redirects from https to http://second.example; not followed"),
        ("file:///etc/passwd", "redirects to file:, and only http(s) is followed"),
        ("ftp://second.example/x", "redirects to ftp:, and only"),
        ("https://[::1/x", "redirects to what is no URL"),
        ("", "HTTP status 302 does not say where to"),
    ],
)
def test_redirects_that_are_refused(where: str, told: str) -> None:
    with pytest.raises(BadDataError) as caught:
        redirected("https://second.example/x", where)
    assert str(caught.value).startswith("https://first.example/x: ")
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_place_of_a_redirect() -> None:
    assert redirected("http://a/b/c?d", "https://e/f") == "https://e/f"
    assert redirected("HTTP://a/b/c?d", "//e/f") == "http://e/f"
    assert redirected("https://a/b/c?d", "../g?h") == "https://a/g?h"


def test_credentials_are_not_sent_on(site: Server, inside: Server) -> None:
    site.faults.append(f"to {inside.url}/x.tar")
    with_password = site.url.replace("http://", "http://user:password@")
    assert read(f"{with_password}/x.tar", 0, 10) == CONTENT[:10]
    (sent,) = inside.headers
    assert not {"Authorization", "Cookie", "Referer"} & sent.keys()
    assert "password" not in str(sent)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("slow", r"2 tries failed, the last one: no answer within 0\.5 s$"),
        ("chunks", r"2 tries failed, the last one: nothing came for 0\.5 s, or less than 200,000 bytes per second$"),
        ("drip", r"only 5,\d+ of 10,000 bytes came in 1 s, the last problem: nothing came for 0\.5 s, or less than "),
    ],
)
def test_a_server_that_trickles_has_a_deadline(
    site: Server, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    """It is never silent for as long as the timeout."""
    monkeypatch.setattr(remote, "TRIES", 2)
    monkeypatch.setattr(remote, "SLOWEST", 200_000)
    site.faults.extend([fault, *[fault if fault != "drip" else "trickle"] * 20])
    began = time.monotonic()
    with pytest.raises(BadDataError, match=told) as caught:
        read(f"{site.url}/x.tar", 0, 10_000)
    assert time.monotonic() - began < 3
    assert caught.value.kind == "unreadable shard"


def test_the_size_needs_only_headers_and_has_a_deadline(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TRIES", 2)
    site.faults.extend(["drip", "slow", "slow"])
    assert size_of(f"{site.url}/x.tar") == len(CONTENT)
    with pytest.raises(BadDataError, match=r"2 tries failed, the last one: no answer within 0\.5 s$"):
        size_of(f"{site.url}/x.tar")


def test_all_redirects_share_one_deadline(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TRIES", 1)
    began = time.monotonic()
    site.faults.extend(["to /x.tar"] * 4 + ["slow"])
    with pytest.raises(BadDataError, match=r"no answer within 0\.5 s"):
        read(f"{site.url}/x.tar", 0, 10)
    assert time.monotonic() - began < 2


def test_connections_stay_open_across_redirects(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    connect = http._Connection._new_conn
    monkeypatch.setattr(http._Connection, "_new_conn", lambda self: opened.append(1) or connect(self))
    for _ in range(3):
        site.faults.append("to /x.tar")
        assert read(f"{site.url}/first", 0, 10) == CONTENT[:10]
    assert len(opened) == 1


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server with https, whose certificate is trusted. It redirects /to-http, and trickles else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (tmp_path / "server.pem").write_bytes(pem + key_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/to-http":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1/x")
                self.end_headers()
            elif self.path == "/whole":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(CONTENT)
            else:
                while not over.wait(0.02):
                    self.wfile.write(b"H")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the library's name
            return

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_https(tls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TRIES", 1)
    assert read(f"{tls}/whole", 100, 50) == CONTENT[100:150]
    with pytest.raises(BadDataError, match=r"redirects from https to http://127\.0\.0\.1; not followed$"):
        read(f"{tls}/to-http", 0, 10)
    with pytest.raises(BadDataError, match=r"no answer within 0\.5 s"):
        read(f"{tls}/slow", 0, 10)
    monkeypatch.delenv("SSL_CERT_FILE")
    remote._transport.cache_clear()
    with pytest.raises(BadDataError, match="certificate verify failed"):
        read(f"{tls}/whole", 0, 10)
