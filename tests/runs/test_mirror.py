"""A run that is mirrored to an object store, and brought back: a real S3 API, Google's storage as it answers gcsfs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fsspec.config import conf as fsspec_settings
from stores import Google, serving

from cdt import filenames
from cdt.checkpoints.checkpoint import damage, read_weights
from cdt.cli.command import main
from cdt.config import RunConfig
from cdt.errors import DamagedWarning, InputError, RunError
from cdt.runs import mirror
from cdt.runs.run import Run
from cdt.runs.start import resume, train

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own
ROOT = "s3://runs/mine"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Any, Any]]:
    """A client of the store, and what listens."""
    pytest.importorskip("s3fs")
    boto3, moto_server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    listening = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    listening.start()
    host, port = listening.get_host_and_port()
    access = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **access)
    client.create_bucket(Bucket="runs")
    yield client, listening
    client.close()
    listening.stop()


@pytest.fixture
def store(server: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    client, _ = server
    told = {"endpoint_url": client.meta.endpoint_url, "key": "x", "secret": "y"}
    monkeypatch.setitem(fsspec_settings, "s3", told)
    monkeypatch.setattr(mirror, "POLL_S", 0.05)
    monkeypatch.setattr(mirror, "BACK_OFF_S", 0.001)
    for row in client.list_objects_v2(Bucket="runs").get("Contents", []):
        client.delete_object(Bucket="runs", Key=row["Key"])
    return client


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_shards(tmp_path_factory.mktemp("mirror") / "data")


def config(shards: Path, directory: Path, **sections: Any) -> RunConfig:
    return tiny.config(shards, directory, **{**sections, "run": {"mirror": ROOT, **sections.get("run", {})}})


def names(store: Any) -> set[str]:
    rows = store.list_objects_v2(Bucket="runs").get("Contents", [])
    return {row["Key"].removeprefix("mine/") for row in rows}


def test_a_run_ends_elsewhere_as_it_would_have_here(store: Any, shards: Path, tmp_path: Path) -> None:
    """The machine is lost in the middle of the dual phase; what is in the store goes on in another place."""
    whole = train(tiny.config(shards, tmp_path / "whole"))

    def lost(report: dict[str, Any]) -> None:
        if report["step"] >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(shards, tmp_path / "here" / "run"), lost)
    shutil.rmtree(tmp_path / "here")
    assert main(["fetch", f"{ROOT}/run", str(tmp_path / "there" / "run")]) == 0
    ended = resume(tmp_path / "there" / "run")
    assert ended.state.step == 8
    assert ended.config.directory == tmp_path / "there" / "run"
    ours, theirs = read_weights(ended.checkpoint), read_weights(whole.checkpoint)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    here = {path.relative_to(ended.directory).as_posix() for path in ended.directory.rglob("*") if path.is_file()}
    mirrored = {name.removeprefix("run/") for name in names(store)}
    assert mirrored == {name for name in here if name in filenames.FILES or name.startswith("checkpoints/")}


def test_what_is_pruned_here_is_pruned_there(store: Any, shards: Path, tmp_path: Path) -> None:
    train(config(shards, tmp_path / "run", train={"keep_checkpoints": 1, "checkpoint_steps": 2}))
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {name.split("/")[2] for name in names(store) if "/checkpoints/" in name} == kept
    mirror.fetch(f"{ROOT}/run", tmp_path / "copy")
    assert Run(tmp_path / "copy").sample(2).shape == (2, 1, 8, 8)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_that_is_damaged_here_does_not_replace_the_copy(store: Any, shards: Path, tmp_path: Path) -> None:
    run = train(config(shards, tmp_path / "run")).directory
    flip_a_bit(run / "checkpoints" / "step-000000008" / "ema.safetensors")
    of_the_next_command = mirror.Mirror(run, f"{ROOT}/run")
    with pytest.raises(RunError, match=r"step-000000008 is damaged: ema\.safetensors: .*; it is not uploaded"):
        of_the_next_command.publish()
    of_the_next_command.publish()  # said once
    mirror.fetch(f"{ROOT}/run", tmp_path / "copy")
    kept = {path.name: damage(path) for path in (tmp_path / "copy" / "checkpoints").iterdir()}
    assert kept == {"step-000000004": None, "step-000000008": None}


def test_a_damaged_checkpoint_of_the_mirror_is_left_out_aloud(store: Any, shards: Path, tmp_path: Path) -> None:
    train(config(shards, tmp_path / "run"))
    for step, others in ((8, ["step-000000004"]), (4, [])):
        key = f"mine/run/checkpoints/step-{step:09d}/state.json"
        body = store.get_object(Bucket="runs", Key=key)["Body"].read()
        store.put_object(Bucket="runs", Key=key, Body=body[:-3] + b" " + body[-2:])
        if others:
            with pytest.warns(DamagedWarning, match=r"step-000000008 is damaged: .*; it is left out"):
                mirror.fetch(f"{ROOT}/run", tmp_path / "copy")
            assert [path.name for path in (tmp_path / "copy" / "checkpoints").iterdir()] == others
    with pytest.raises(RunError, match=r"step-000000004 is damaged: .*step-000000008 is damaged"):
        mirror.fetch(f"{ROOT}/run", tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_google_cloud_storage(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints come, go and come back; large files go up in pieces."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read at import: the HTTP API alone
    pytest.importorskip("gcsfs")
    monkeypatch.setattr(mirror, "POLL_S", 0.05)
    with serving(Google, tmp_path / "bucket", []) as url:
        monkeypatch.setitem(fsspec_settings, "gs", {"token": "anon", "endpoint_url": url})
        keeping = {"keep_checkpoints": 1, "checkpoint_steps": 2}
        run = train(config(shards, tmp_path / "run", run={"mirror": "gs://data/mine"}, train=keeping))
        kept = {path.name for path in (run.directory / "checkpoints").iterdir()}
        place = tmp_path / "bucket/mine/run/checkpoints"  # its folders stay when their files are gone
        assert {path.relative_to(place).parts[0] for path in place.rglob("*") if path.is_file()} == kept
        mirror.fetch("gs://data/mine/run", tmp_path / "copy")
        ours, theirs = read_weights(run.checkpoint), read_weights(Run(tmp_path / "copy").checkpoint)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        large = tmp_path / "large"
        large.write_bytes(bytes(range(256)) * 2**15)
        store = mirror.Store("gs://data/mine")
        store.put(large, "large")
        store.get("large", tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == large.read_bytes()


def test_what_is_not_whole_is_not_there(store: Any, shards: Path, tmp_path: Path) -> None:
    train(config(shards, tmp_path / "run"))
    newest = f"mine/run/checkpoints/{max((tmp_path / 'run' / 'checkpoints').iterdir()).name}"
    store.put_object(Bucket="runs", Key="mine/run/checkpoints/step-000000004/../../../../evil", Body=b"x")
    store.delete_object(Bucket="runs", Key=f"{newest}/manifest.json")
    mirror.fetch(f"{ROOT}/run", tmp_path / "copy")
    assert Run(tmp_path / "copy").state.step == 4
    assert {path.name for path in tmp_path.iterdir()} == {"run", "copy"}
    store.put_object(Bucket="runs", Key="mine/run/checkpoints/step-000000004/state.json", Body=b"{}")
    with pytest.raises(RunError, match=r"step-000000004 is damaged"):
        mirror.fetch(f"{ROOT}/run", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_another_runs_place_is_refused_and_an_older_copy_too(store: Any, shards: Path, tmp_path: Path) -> None:
    train(config(shards, tmp_path / "run"))
    with pytest.raises(InputError, match=r"run.mirror: s3://runs/mine/run is not empty"):
        train(config(shards, tmp_path / "again" / "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000000008")
    with pytest.raises(InputError, match=r"has step-000000008, which .*/run has not: go on from there"):
        resume(tmp_path / "run", ["train.dual_steps=8"])
    with pytest.raises(InputError, match=r"s3://runs/no is no mirror of a run"):
        mirror.fetch("s3://runs/no", tmp_path / "no")
    for place in ("run", str(tmp_path / "run"), "https://a/b", "://", ""):
        with pytest.raises(InputError, match=r"give the URL that the run had in run\.mirror, as s3://BUCKET/runs/NAME"):
            mirror.fetch(place, tmp_path / "no")


def test_a_store_that_fails_is_told_and_the_run_is_kept(
    server: tuple[Any, Any], store: Any, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.Store, "put", lambda *_: (_ for _ in ()).throw(RunError("the store is full")))
    with pytest.raises(RunError, match=r"run is complete, but its mirror is not: the store is full"):
        train(config(shards, tmp_path / "run"))
    assert Run(tmp_path / "run").state.step == 8
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert any(row["event"] == "mirror" and "the store is full" in row["text"] for row in events)


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"dir": "s3://runs/mine"}, "run.mirror: s3://runs/mine keeps a copy there"), ({"mirror": "/runs"}, "s3|gs")],
)
def test_runs_are_written_on_file_systems(shards: Path, setting: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match="run") as caught:
        RunConfig.model_validate({**tiny.TREE, "data": {"shards": str(shards)}, "run": {"name": "x", **setting}})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("runs/mine", "'runs/mine' is a local path: there is nothing to download; give the URL that the run had in"),
        ("/dev/zero", "'/dev/zero' is a local path"),
        ("a\0b", r"'a\x00b' is a local path"),
        ("", "'' is a local path"),
        ("pipe:cat", "'pipe:cat' is a local path"),
        ("file:///etc", "'file:///etc' is no mirror of a run; give the URL"),
        ("http://127.0.0.1:1/x", "is no mirror of a run"),
        ("ftp://x", "is no mirror of a run"),
        ("s3://", "is no mirror of a run"),
    ],
)
def test_what_cannot_be_fetched(url: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", url, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cdt fetch: ")
    assert told in said
    assert said.count("\n") == 1


def test_a_directory_that_cannot_be_made_is_told_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place, told in (
        (tmp_path / "file" / "x", f"cannot write in {tmp_path}/file: Not a directory"),
        (tmp_path / "loop", f"{tmp_path}/loop: its links lead in a circle"),
        (tmp_path / "loop" / "x", f"{tmp_path}/loop/x: its links lead in a circle"),
        (tmp_path / ("long" * 100), "File name too long"),
        ("a\0b", r"'a\x00b': no file can have this name"),
        (tmp_path, f"{tmp_path} exists already: name a new directory"),
    ):
        assert main(["fetch", "s3://runs/no", str(place)]) == 2
        said = capsys.readouterr().err
        assert told in said
        assert said.count("\n") == 1
