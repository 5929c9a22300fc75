"""Shards in S3, in Google Cloud Storage and on the Hugging Face hub, through fsspec; the packages are extras.

All on the loopback address: a real S3 API, and servers that say what the libraries ask of the other two.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fsspec.config import conf as fsspec_settings
from stores import Google, Hub, serving

from cdt.data.config import DataConfig
from cdt.data.format.damage import BadDataError
from cdt.data.format.index import Index
from cdt.data.inspect.foreign import index_shards
from cdt.data.read import object_store, remote
from cdt.data.sources import SOURCES
from cdt.data.stream import MixtureStream
from cdt.data.write.shard import shard
from cdt.dual import Draws
from cdt.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store") / "digits"
    shard(SOURCES["digits"](), root, keep={"4": 0.1}, only=["3", "4"], shard_mb=0.2)
    return root


class There(NamedTuple):
    """A folder of shards in a store."""

    url: str
    failures: list[int]
    """Statuses that the store is to answer first."""


def google_or_hub(scheme: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read at import: the HTTP API alone
    pytest.importorskip({"gs": "gcsfs", "hf": "huggingface_hub"}[scheme])
    failures: list[int] = []
    with serving({"gs": Google, "hf": Hub}[scheme], shards.parent, failures) as url:
        settings = {"gs": {"token": "anon", "endpoint_url": url}, "hf": {"endpoint": url, "token": False}}
        monkeypatch.setitem(fsspec_settings, scheme, settings[scheme])
        yield There({"gs": "gs://data/digits", "hf": "hf://datasets/user/data/digits"}[scheme], failures)


def s3_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


def s3(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    pytest.importorskip("s3fs")
    boto3, moto_server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    s3_at(f"http://{host}:{port}", monkeypatch)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    for path in shards.rglob("*.*"):
        client.upload_file(str(path), "data", f"digits/{path.relative_to(shards).as_posix()}")
    yield There("s3://data/digits", [])
    client.close()
    server.stop()


@pytest.fixture(params=["s3", "gs", "hf"])
def store(
    request: pytest.FixtureRequest, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[There]:
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BACK_OFF_S", 0.001)
    remote._transport.cache_clear()
    scheme = request.param
    yield from s3(shards, monkeypatch) if scheme == "s3" else google_or_hub(scheme, shards, monkeypatch)
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
def test_the_stream_is_that_of_the_same_shards_on_disk(store: There, shards: Path, workers: int) -> None:
    local, there = make(Index.load(shards)), make(Index.load(store.url), workers)
    store.failures.append(503)
    for _ in range(12):
        assert torch.equal(next(local).images, next(there).images)
    assert not there.ledger.bad


def test_ranges_are_read(store: There, shards: Path) -> None:
    content = (shards / "train/000000.tar").read_bytes()
    assert remote.size_of(f"{store.url}/train/000000.tar") == len(content)
    assert remote.read(f"{store.url}/train/000000.tar", 700, 1000) == content[700:1700]


def test_what_is_not_there(store: There) -> None:
    with pytest.raises(InputError, match="has no index that can be read"):
        Index.load(store.url.replace("digits", "nothing"))
    with pytest.raises(BadDataError) as caught:
        remote.read(f"{store.url}/no.tar", 0, 10)
    assert caught.value.kind == "missing shard"


def test_an_index_of_shards_in_the_store(store: There, shards: Path, tmp_path: Path) -> None:
    count = len(Index.load(shards).shards)
    index_shards([f"{store.url}/train/{{000000..{count - 1:06d}}}.tar"], tmp_path / "out")
    index = Index.load(tmp_path / "out")
    assert index.base == f"{store.url}/train"
    assert sorted(index.keys()) == sorted(Index.load(shards).keys())
    assert next(make(index)).images.shape == (16, 1, 8, 8)


def test_a_store_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        s3_at(f"http://127.0.0.1:{deaf.getsockname()[1]}", monkeypatch)
        monkeypatch.setattr(remote, "BACK_OFF_S", 0.001)
        monkeypatch.setattr(object_store, "TIMEOUT_S", 0.2)
        monkeypatch.setattr(remote, "TRIES", 2)
        remote._transport.cache_clear()
        with pytest.raises(BadDataError, match="2 tries failed") as caught:
            remote.read("s3://data/x.tar", 0, 10)
        assert caught.value.kind == "unreadable shard"
    remote._transport.cache_clear()
