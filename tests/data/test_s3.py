"""Shards in an object store: a real S3 API on the loopback address, through fsspec; the packages are extras."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cdt.data import remote
from cdt.data.foreign import index_shards
from cdt.data.index import Index
from cdt.data.kinds import BadDataError
from cdt.data.shard import shard
from cdt.data.sources import SOURCES
from cdt.data.stream import DataConfig, MixtureStream
from cdt.dual import Draws
from cdt.errors import InputError

pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings("ignore")  # of moto's and botocore's own


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("s3") / "shards"
    shard(SOURCES["digits"](), root, keep={"4": 0.1}, only=["3", "4"], shard_mb=0.2)
    return root


@pytest.fixture
def bucket(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "CDT_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "BACK_OFF_S", 0.001)
    remote._transport.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    for path in shards.rglob("*.*"):
        client.upload_file(str(path), "data", f"digits/{path.relative_to(shards).as_posix()}")
    yield "s3://data/digits"
    client.close()
    server.stop()
    remote._transport.cache_clear()


def make(index: Index, workers: int = 0) -> MixtureStream:
    return MixtureStream(
        DataConfig(shards="unused", cache_mb=0, loader_workers=workers),
        index,
        {"4": np.flatnonzero(index.classes == index.class_names.index("4"))},
        np.zeros(index.count, np.int64),
        lambda lambdas: Draws(np.array([0.7, 0.3]), np.ones(2), np.ones(1)),
        lambdas=np.array([0.4]),
        batch_size=16,
        seed=1,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_that_of_the_same_shards_on_disk(bucket: str, shards: Path, workers: int) -> None:
    local, there = make(Index.load(shards)), make(Index.load(bucket), workers)
    for _ in range(12):
        assert torch.equal(next(local).images, next(there).images)


def test_a_store_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        monkeypatch.setattr(remote, "BACK_OFF_S", 0.001)
        monkeypatch.setattr(remote, "TIMEOUT_S", 0.2)
        monkeypatch.setattr(remote, "TRIES", 2)
        remote._transport.cache_clear()
        with pytest.raises(BadDataError, match="2 tries failed") as caught:
            remote.read("s3://data/x.tar", 0, 10)
        assert caught.value.kind == "unreadable shard"
    remote._transport.cache_clear()


def test_what_is_not_there(bucket: str) -> None:
    with pytest.raises(InputError, match="has no index that can be read"):
        Index.load("s3://data/nothing")
    with pytest.raises(BadDataError) as caught:
        remote.read(f"{bucket}/no.tar", 0, 10)
    assert caught.value.kind == "missing shard"


def test_an_index_of_shards_in_a_bucket(bucket: str, shards: Path, tmp_path: Path) -> None:
    count = len(Index.load(shards).shards)
    index_shards([f"{bucket}/train/{{000000..{count - 1:06d}}}.tar"], tmp_path / "out")
    index = Index.load(tmp_path / "out")
    assert index.base == f"{bucket}/train"
    assert sorted(index.keys()) == sorted(Index.load(shards).keys())
    assert next(make(index)).images.shape == (16, 1, 8, 8)
