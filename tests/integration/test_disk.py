"""Runs on a real file system that is full or read-only at some moment of a save: a small tmpfs in a mount namespace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch

from cdt.checkpoints.checkpoint import damage, newest_sound, read_weights
from cdt.runs.run import Run

pytestmark = pytest.mark.slow  # a dozen starts of the command
PATIENCE_S = 300
PAGE = 4096


class Disk:
    """``place`` as a process of its own sees it: a tmpfs of so many bytes."""

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        mount = f"mount -t tmpfs -o size={size} none {place} && echo ready && exec sleep infinity"
        self._holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", mount], stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self.end()
            pytest.skip("mount namespaces are not allowed here")

    def end(self) -> None:
        self._holder.kill()
        self._holder.communicate()

    def seen(self, path: Path) -> Path:
        """From outside."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command that sees it."""
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]
        return subprocess.Popen([*enter, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def cdt(self, *arguments: str) -> tuple[int, str]:
        """Its exit status and what it complains of."""
        command = self.start(sys.executable, "-m", "cdt", *arguments)
        return complaint(command)

    def mount(self, *options: str) -> None:
        status, said = complaint(self.start("mount", *options))
        assert status == 0, said


def complaint(command: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = command.communicate(timeout=PATIENCE_S)
    return command.returncode, said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a configuration with a checkpoint every second step, and the run ``calm``."""
    home = tmp_path_factory.mktemp("home")
    tiny.write_shards(home / "data")
    tiny.write_config(home / "tiny.yaml", home / "data", train={"checkpoint_steps": 2})
    done = subprocess.run([sys.executable, "-m", "cdt", "train", "tiny.yaml", "run.name=calm"], cwd=home, check=False)
    assert done.returncode == 0
    shutil.move(home / "runs" / "calm", home / "calm")
    return home


def on_disk(folder: Path) -> int:
    """Bytes that its files take, in pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def disk(home: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """``runs``, with room for one checkpoint and a part of the next one."""
    one = on_disk(home / "calm" / "checkpoints" / "step-000000002")
    disk = Disk(home / "runs", int((1 + request.param) * one) + 16 * PAGE)
    yield disk
    disk.end()


@pytest.mark.parametrize("disk", [0.02, 0.3, 0.7, 0.95], indirect=True)
def test_a_disk_that_fills_up_during_a_save_costs_nothing_but_that_save(home: Path, disk: Disk) -> None:
    run = disk.seen(home / "runs" / "tiny")
    status, said = disk.cdt("train", str(home / "tiny.yaml"))
    assert status == 1, said
    assert len(said.strip().splitlines()) == 2, said
    first, second = said.strip().splitlines()
    assert first.startswith("cdt train: "), said
    assert "the disk is full" in first
    assert second.startswith("continue with `cdt resume ")
    left = sorted((run / "checkpoints").iterdir())
    assert left[0].name == "step-000000002"
    assert [path.name for path in left[1:]] in ([], ["step-000000004"]), "what the journals did not need may do for one"
    assert not any(map(damage, left))
    disk.mount("-o", "remount,size=100m", str(disk.place))
    status, said = disk.cdt("resume", str(disk.place / "tiny"))
    assert status == 0, said
    for raw in (False, True):
        weights, undisturbed = (read_weights(Run(each).checkpoint, raw) for each in (run, home / "calm"))
        assert all(torch.equal(weights[name], undisturbed[name]) for name in weights | undisturbed)


@pytest.mark.parametrize("disk", [1000], indirect=True)
def test_a_directory_that_turns_read_only_costs_nothing_but_a_save(home: Path, disk: Disk) -> None:
    place, run = home / "runs" / "tiny", disk.seen(home / "runs" / "tiny")
    command = disk.start(sys.executable, "-m", "cdt", "train", str(home / "tiny.yaml"), "train.dual_steps=100000")
    deadline = time.monotonic() + PATIENCE_S
    while not (run / "checkpoints" / "step-000000006").exists():
        assert command.poll() is None, complaint(command)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    disk.mount("--bind", str(place / "checkpoints"), str(place / "checkpoints"))
    disk.mount("-o", "remount,bind,ro", str(place / "checkpoints"))
    status, said = complaint(command)
    assert status == 1, said
    first, second = said.strip().splitlines()
    assert first.startswith("cdt train: cannot save "), said
    assert first.endswith("earlier checkpoints are intact")
    assert "Read-only file system" in first
    assert second.startswith("continue with `cdt resume ")
    assert complaint(disk.start("umount", str(place / "checkpoints"))) == (0, "")
    newest, passed_over = newest_sound(run / "checkpoints")
    assert newest is not None
    assert passed_over == []
    step = json.loads((newest / "manifest.json").read_text())["step"]
    status, said = disk.cdt("resume", str(disk.place / "tiny"), f"train.dual_steps={step}")
    assert status == 0, said
    assert newest_sound(run / "checkpoints")[0] == run / "checkpoints" / f"step-{step + 4:09d}"
