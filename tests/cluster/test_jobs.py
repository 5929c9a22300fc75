"""What is refused before anything is sent, and Ray's token."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdt.cli.command import main
from cdt.cluster import jobs, token

CONFIG = """
run: {dir: /shared/runs}
data: {shards: /shared/data}
network: {kind: dit, patch: 4, width: 16, depth: 1, heads: 2}
"""


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (None, "no --address, and no RAY_API_SERVER_ADDRESS: give the URL"),
        ("head:6379", "--address head:6379: give the URL of the cluster's dashboard, as http://127.0.0.1:8265"),
        ("http://127.0.0.1:1", "--address http://127.0.0.1:1: nothing answers there"),
        ("http:///no/host", "--address http:///no/host: "),
        ("http://a\0b", "--address http://a?b: "),
        (f"http://{'x' * 300}", f"--address http://{'x' * 300}: "),
    ],
)
def test_an_address_that_is_none(
    address: str | None, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    for verb in (["jobs"], ["stop", "x"], ["submit", "x.yaml"]):
        assert main([*verb, *(["--address", address] if address else [])]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"cdt {verb[0]}: {told}")
        assert said.count("\n") == 1


def test_relative_places_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(CONFIG)
    jobs._check(config, ["data.shards=s3://bucket/shards"])
    with pytest.raises(jobs.InputError, match=r"data\.shards: data would be in the job's own temporary directory"):
        jobs._check(config, ["data.shards=data"])
    with pytest.raises(jobs.InputError, match=r"run\.dir: runs would be"):
        jobs._check(config, ["run.dir=runs"])
    with pytest.raises(jobs.InputError, match="did you mean"):
        jobs._check(config, ["run.wrokers=2"])


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for config in (tmp_path / "loop", tmp_path / "loop" / "x.yaml"):
        with pytest.raises(jobs.InputError, match="its links lead in a circle"):
            jobs._relative(config, tmp_path)
    with pytest.raises(jobs.InputError, match="no file can have this name"):
        jobs._relative(Path("a\0b"), tmp_path)


def test_a_configuration_from_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(jobs.InputError, match="is outside of the shipped directory"):
        jobs._relative(tmp_path / "my.yaml", tmp_path / "below")


def test_the_tokens_file_is_taken_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert token.open_to_others()
    token.keep_private()
    assert file.stat().st_mode & 0o777 == 0o600
    assert not token.open_to_others()


def test_without_tokens_there_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_AUTH_MODE", "disabled")
    assert token.header() == ()
