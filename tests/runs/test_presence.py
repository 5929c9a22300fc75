"""One process at a time trains a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdt.errors import InputError
from cdt.runs.presence import SIGN, SILENT_S, Presence, at_work, check_idle, who_works
from cdt.runs.start import resume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, at work on ``run``."""
    code = (
        "import sys, time; from pathlib import Path; from cdt.runs.presence import at_work\n"
        "with at_work(Path('run')): print('here', flush=True); time.sleep(600)"
    )
    (tmp_path / "run").mkdir()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_of_two_processes_the_second_is_refused_until_the_first_is_dead(
    stranger: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError, match=rf"{run} is being trained by process {stranger.pid} on "), at_work(run):
        pass
    stranger.kill()
    stranger.wait()
    assert (run / SIGN).exists()
    with at_work(run):
        found = who_works(run)
        assert found is not None
        assert found.pid == os.getpid()
        check_idle(run)
    assert not (run / SIGN).exists()


def test_the_second_of_two_commands_leaves_everything_as_it_is(
    stranger: subprocess.Popen[str], home: Path, tmp_path: Path
) -> None:
    """Also of a run that has no checkpoint yet."""
    run = tmp_path / "run"
    shutil.copytree(home / "whole", run, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints"))
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=f"is being trained by process {stranger.pid} on "):
        resume(run, ["train.dual_steps=8"])
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_heartbeat_notices_that_another_process_has_taken_the_run(
    stranger: subprocess.Popen[str], tmp_path: Path
) -> None:
    sign = tmp_path / "run" / SIGN
    theirs = sign.read_bytes()
    sign.unlink()
    with at_work(tmp_path / "run") as alive:
        alive()
        sign.unlink()
        alive()
        assert who_works(tmp_path / "run") == Presence.mine()
        with at_work(tmp_path / "run"):
            pass
        assert sign.exists()
        sign.write_bytes(theirs)
        with pytest.raises(InputError, match=f"is being trained by process {stranger.pid} on "):
            alive()


def test_a_process_elsewhere_is_dead_when_it_has_been_silent(tmp_path: Path) -> None:
    sign = tmp_path / SIGN
    sign.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    with pytest.raises(InputError, match=r"process 1 on elsewhere; if that machine is gone, delete .*running.json"):
        check_idle(tmp_path)
    past = sign.stat().st_mtime - SILENT_S - 1
    os.utime(sign, (past, past))
    check_idle(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": "x"}'])
def test_a_sign_that_cannot_be_read_is_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / SIGN).write_text(content)
    check_idle(tmp_path)
