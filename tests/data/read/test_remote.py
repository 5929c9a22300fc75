"""Shards at URLs: what a server may do to a connection, and that the stream does not notice."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from server import Server, serve

from cdt.config import RunConfig
from cdt.data.config import DataConfig
from cdt.data.format.damage import BadDataError
from cdt.data.format.index import Index
from cdt.data.read import remote
from cdt.data.read.cache import ShardCache
from cdt.data.read.files import RemoteFiles
from cdt.data.read.reader import ImageReader
from cdt.data.read.remote import fetch, read, size_of
from cdt.data.sources import Source
from cdt.data.stream import MixtureStream
from cdt.data.urls import is_remote
from cdt.data.write.shard import shard
from cdt.dual import Draws
from cdt.errors import InputError, RunError
from cdt.training.check import check

N = 120


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site") / "shards"
    images = np.random.default_rng(0).integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)
    source = Source(
        class_names=["common", "rare"],
        keys=[f"k{number:03d}" for number in range(N)],
        classes=(np.arange(N) % 12 == 0).astype(int),
        shapes=np.tile((1, 8, 8), (N, 1)),
        dtype="uint8",
        read=images.__getitem__,
        origin={"name": "by hand"},
        splits=np.full(N, "train"),
    )
    shard(source, root, shard_mb=0.03)
    return root


@pytest.fixture
def server(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Patience of half a second."""
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(remote, "BACK_OFF_S", 0.001)
    remote._transport.cache_clear()
    with serve(shards.parent) as server:
        yield server
    remote._transport.cache_clear()


def tar_of(server: Server, shards: Path) -> tuple[str, bytes]:
    return f"{server.url}/shards/train/000000.tar", (shards / "train/000000.tar").read_bytes()


def test_ranges_are_asked_for_and_nothing_else(server: Server, shards: Path) -> None:
    url, content = tar_of(server, shards)
    assert read(url, 700, 100) == content[700:800]
    assert server.requests == [("/shards/train/000000.tar", "bytes=700-799")]
    assert server.sent == 100
    assert size_of(url) == len(content)


@pytest.mark.parametrize(
    "faults",
    [["drop"], ["half"], ["half"] * 12, ["stall"], ["drip"], [500, 503], [429], ["drop", "half", 500, "stall", "drop"]],
    ids=str,
)
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_what_passes_is_tried_again_from_where_it_was(
    server: Server, shards: Path, faults: list[str | int], ranges: bool
) -> None:
    url, content = tar_of(server, shards)
    server.faults.extend(faults)
    server.ranges = ranges
    if not ranges and faults == ["half"] * 12:
        pytest.skip("without ranges, a connection that always ends early never gets further")
    assert read(url, 512, 9000) == content[512:9512]
    assert not server.faults or not ranges


def test_a_server_that_stays_broken_is_given_up(server: Server, shards: Path) -> None:
    url, _ = tar_of(server, shards)
    server.faults.extend([500] * 100)
    began = time.monotonic()
    with pytest.raises(BadDataError, match=r"6 tries failed, the last one: HTTP status 500") as caught:
        read(url, 0, 100)
    assert caught.value.kind == "unreadable shard"
    assert len(server.requests) == 6
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_does_not_pass_is_not_tried_again(server: Server, shards: Path, status: int) -> None:
    url, _ = tar_of(server, shards)
    server.faults.append(status)
    with pytest.raises(BadDataError, match=f"HTTP status {status}") as caught:
        read(url, 0, 100)
    assert caught.value.kind == "missing shard"
    assert len(server.requests) == 1


def test_a_file_that_is_shorter_than_promised(server: Server, shards: Path) -> None:
    url, content = tar_of(server, shards)
    with pytest.raises(BadDataError) as caught:
        read(url, len(content) - 10, 20)
    assert caught.value.kind == "truncated shard"


def test_another_range_than_was_asked_for_is_not_taken(server: Server, shards: Path) -> None:
    url, content = tar_of(server, shards)
    server.faults.append("shift")
    assert read(url, 1000, 100) == content[1000:1100]
    assert len(server.requests) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_does_not_say_how_long_a_file_is(server: Server, shards: Path, ranges: bool) -> None:
    server.ranges = ranges
    server.faults.append("mute")
    with pytest.raises(BadDataError, match="does not say how long the file is"):
        size_of(tar_of(server, shards)[0])


def test_nobody_listens(server: Server) -> None:
    with pytest.raises(BadDataError, match="6 tries failed"):
        read("http://127.0.0.1:9/x.tar", 0, 10)


def mixture_of(lambdas: np.ndarray) -> Draws:
    weights = np.array([1.0, *lambdas])
    return Draws(weights / weights.sum(), np.ones(len(weights)), np.ones(1))


def make(index: Index, **options: object) -> MixtureStream:
    config = DataConfig(shards="unused", cache_mb=0, **options)  # pyright: ignore[reportArgumentType]
    return MixtureStream(
        config,
        index,
        {"rare": np.flatnonzero(index.classes == 1)},
        np.zeros(N, np.int64),
        mixture_of,
        lambdas=np.array([0.3]),
        batch_size=20,
        seed=1,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_that_of_the_same_shards_on_disk(server: Server, shards: Path, workers: int) -> None:
    """While every third request fails in one way or another."""
    local = make(Index.load(shards))
    index = Index.load(f"{server.url}/shards/")
    assert index.base == f"{server.url}/shards"
    server.faults.extend(fault for kind in ["drop", "half", 500] * 40 for fault in (kind, "", ""))
    stream = make(index, loader_workers=workers)
    for _ in range(15):
        assert torch.equal(next(stream).images, next(local).images)
    assert not stream.ledger.bad


def test_shards_are_fetched_once_and_ahead(server: Server, tmp_path: Path) -> None:
    index = Index.load(f"{server.url}/shards")
    before = server.sent
    stream = make(index)
    for _ in range(60):
        next(stream)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and len(list(tmp_path.glob("cache/shards/*.tar"))) < len(index.shards):
        time.sleep(0.02)
    total = sum(info.bytes for info in index.shards)
    assert server.sent - before < 1.6 * total
    ranges = len(server.requests)
    for _ in range(10):
        next(stream)
    assert len(server.requests) == ranges, "all is here"


def test_rare_samples_are_fetched_once(server: Server) -> None:
    index = Index.load(f"{server.url}/shards")
    files = RemoteFiles(index, str(index.base))
    rare = np.flatnonzero(index.classes == 1)
    for _ in range(5):
        for row in rare.tolist():
            files.read(int(index.shard[row]), int(index.offset[row]), int(index.size[row]))
    assert files.fetched == index.size[rare].sum()


def test_the_cache_keeps_its_limit(server: Server, tmp_path: Path) -> None:
    index = Index.load(f"{server.url}/shards")
    infos = index.shards
    assert len(infos) > 4
    limit = sum(info.bytes for info in infos[:3])
    cache = ShardCache(tmp_path / "small", limit)
    for number, info in enumerate(infos):
        path = cache.add(f"{index.base}/{info.name}", info)
        assert path is not None
        assert path.stat().st_size == info.bytes
        time.sleep(0.01)
        held = list((tmp_path / "small").glob("*.tar"))
        assert sum(path.stat().st_size for path in held) <= limit
        assert path in held, number
    assert ShardCache(tmp_path / "none", 0).add(f"{index.base}/{infos[0].name}", infos[0]) is None


def test_a_shard_that_was_exchanged_is_not_kept(server: Server, tmp_path: Path) -> None:
    index = Index.load(f"{server.url}/shards")
    other = index.shards[1]
    if other.bytes != index.shards[0].bytes:
        pytest.skip("of other sizes")
    cache = ShardCache(tmp_path / "small", 10**9)
    with pytest.raises(BadDataError, match="is not the file that was indexed"):
        cache.add(f"{index.base}/{index.shards[0].name}", other)
    assert not list((tmp_path / "small").glob("*.tar"))


def test_a_shard_that_disappears_is_bad_data(server: Server, shards: Path) -> None:
    index = Index.load(f"{server.url}/shards")
    server.faults.extend([404] * 10_000)
    with pytest.raises(RunError, match=f"^{server.url}/shards/train/0.*tar, byte .*HTTP status 404"):
        ImageReader(index, 0).images(np.arange(5))


def test_a_url_without_an_index_is_one_line(server: Server) -> None:
    with pytest.raises(InputError, match=r"has no index that can be read \(HTTP status 404 .*; `cdt index` writes one"):
        Index.load(f"{server.url}/nowhere")


def test_places() -> None:
    assert is_remote("https://a/b")
    assert is_remote("s3://bucket/x")
    assert not is_remote(Path("/data"))
    with pytest.raises(InputError, match="pipe: would run a command"):
        is_remote("pipe:cat /etc/passwd")
    with pytest.raises(InputError, match="unknown kind of URL"):
        is_remote("file:///etc/passwd")
    tree = RunConfig.model_validate({"data": {"shards": "https://a/b"}, "network": {"kind": "dit"}})
    assert tree.anchored().data.shards == "https://a/b"


def test_nothing_is_asked_of_an_empty_range(server: Server) -> None:
    fetch(f"{server.url}/nowhere", 0, 0, lambda chunk: None)
    assert not server.requests


PRINT = "import sys; sys.stdout.buffer.write(open(sys.argv[1] + sys.argv[2], 'rb').read())"


def command(root: Path, code: str = PRINT) -> str:
    return f'pipe:{sys.executable} -c "{code}" {root}/ {{}}'


@pytest.fixture
def pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BACK_OFF_S", 0.001)
    monkeypatch.setattr(remote, "TRIES", 2)


def test_a_command_prints_the_shards_where_a_configuration_allows_it(pipes: None, shards: Path) -> None:
    url = command(shards)
    with pytest.raises(InputError, match=r"pipe:.* would run a command; data\.allow_pipe: true"):
        Index.load(url)
    index = Index.load(url, allow_pipe=True)
    local, stream = make(Index.load(shards)), make(index)
    for _ in range(12):
        assert torch.equal(next(stream).images, next(local).images)
    tree = {"network": {"kind": "dit"}, "data": {"shards": url}}
    with pytest.raises(ValueError, match=r"would run a command; data\.allow_pipe: true allows it"):
        RunConfig.model_validate(tree)
    with pytest.raises(ValueError, match="in place of a file's name"):
        RunConfig.model_validate(tree | {"data": {"shards": "pipe:cat x", "allow_pipe": True}})
    allowed = RunConfig.model_validate(tree | {"data": {"shards": url, "allow_pipe": True}})
    assert check(allowed).index.base == allowed.anchored().data.shards == url


def test_names_in_an_index_are_no_part_of_a_command(pipes: None, shards: Path, tmp_path: Path) -> None:
    """No shell reads it, and a name stays one word that is no option."""
    proof = tmp_path / "proof"
    for name in (f"x; touch {proof}", f"$(touch {proof})", f"x\ntouch {proof}", f"' {proof} '"):
        with pytest.raises(BadDataError):
            read(remote.place_of("pipe:touch -c {}", name), 0, 10)
    assert not proof.exists()
    with pytest.raises(BadDataError, match="would be an option"):
        remote.place_of("pipe:cat {}", "--version")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; sys.exit('no such bucket')", "2 tries failed, the last one: exit status 1: no such bucket"),
        ("import time; time.sleep(20)", r"2 tries failed, the last one: nothing came for 0\.5 seconds"),
        ("print('short')", "prints less than was promised"),
    ],
)
def test_a_command_that_fails(
    pipes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    with pytest.raises(BadDataError, match=told):
        read(command(tmp_path, code).replace("{}", "x"), 0, 100)
    with pytest.raises(BadDataError, match="No such file"):
        read("pipe:no-such-program x", 0, 100)
