"""The files shipped with a job: those of a directory that git does not ignore."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from cdt.errors import InputError

LIMIT_MB = 100
"""Limit of what is shipped, in MiB: code and configurations, not data."""
RULES = ".rayignore"


def files_to_ship(directory: Path, limit_mb: float = LIMIT_MB) -> list[Path]:
    """Relative paths of the regular files that neither .gitignore nor .rayignore excludes, in a checkout or not.

    Links that point out of the directory are left out.

    Raises InputError without git, or above ``limit_mb``; it then names the largest files.
    """
    root = directory.resolve()
    rules = [f"--exclude-from={RULES}"] * (root / RULES).is_file()
    with tempfile.TemporaryDirectory() as empty:
        # An empty repository beside the directory: git's rules without the checkout's own index.
        where = ["git", f"--git-dir={empty}/.git", f"--work-tree={root}"]
        try:
            subprocess.run(["git", "init", "-q", empty], check=True, capture_output=True)
            listed = subprocess.run(
                [*where, "ls-files", "--others", "--exclude-standard", *rules, "-z"],
                check=True,
                capture_output=True,
                cwd=root,
            )
        except FileNotFoundError as error:
            raise InputError("git is missing; it decides what is shipped: install it") from error
    found = [Path(name) for name in listed.stdout.decode().split("\0") if name]
    found = [path for path in found if (root / path).is_file() and (root / path).resolve().is_relative_to(root)]
    _check_size(root, found, limit_mb)
    return sorted(found)


def _check_size(root: Path, files: list[Path], limit_mb: float) -> None:
    sizes = {path: (root / path).stat().st_size for path in files}
    if (total := sum(sizes.values())) > limit_mb * 2**20:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
        listed = ", ".join(f"{path} ({sizes[path] / 2**20:,.1f} MiB)" for path in largest)
        raise InputError(
            f"{root} has {total / 2**20:,.1f} MiB to ship in {len(files):,} files, and {limit_mb:g} are allowed; the "
            f"largest: {listed}; exclude files by .gitignore or {RULES}"
        )


def code_of_cdt(files: list[Path]) -> list[Path]:
    """Those of a checkout of cdt; empty without one."""
    return [path for path in files if path.parts[0] == "cdt"] if Path("cdt/__init__.py") in files else []


def packed(directory: Path, files: list[Path], place: Path) -> None:
    """Copies these files to ``place``, without the ignore files: Ray would apply them a second time."""
    for path in files:
        if path.name not in (".gitignore", RULES):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(directory / path, place / path)


def unpack(wheel: Path, place: Path) -> None:
    """Unpacks a wheel of cdt into ``place``; Ray would install it on every node, with all its dependencies.

    Raises InputError if it is not one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            if not any(name.startswith("cdt/") for name in archive.namelist()):
                raise InputError(f"--wheel {wheel}: it is not a wheel of cdt")
            archive.extractall(place)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"--wheel {wheel}: no such wheel; build one with `pip wheel --no-deps .`") from error
