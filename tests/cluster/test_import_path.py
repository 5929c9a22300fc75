"""From where workers import."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cdt.cluster.import_path import own_path


def test_it_is_what_the_command_has_before_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library = sysconfig.get_path("stdlib")
    archive = next(entry for entry in sys.path if entry.endswith(".zip"))
    for path in (["/bin", "", library, "/site-packages"], ["/bin", "", archive, library]):
        monkeypatch.setattr(sys, "path", path)
        assert own_path() == ["/bin", str(Path.cwd())]


def test_the_module_does_not_import_from_the_working_directory_more_than_the_command(tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text("raise ImportError('of the working directory')")
    done = subprocess.run(
        [sys.executable, "-m", "cdt", "status", "nothing"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
