"""The files shipped with a job: those of a directory that git does not ignore."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zipfile
import zlib
from pathlib import Path

from cdt.errors import InputError
from cdt.files import resolved
from cdt.retry import reason

LIMIT_MB = 100
"""Limit of what is shipped, in MiB: code and configurations, not data."""
RULES = ".rayignore"


def files_to_ship(directory: Path, limit_mb: float = LIMIT_MB) -> list[Path]:
    """Relative paths of the regular files that neither .gitignore nor .rayignore excludes, in a checkout or not.

    Links that point out of the directory are left out.

    Raises InputError without git, for a name that a parcel cannot have, or above ``limit_mb``; it then names the
    largest files.
    """
    root = resolved(directory)
    if not root.is_dir():
        raise InputError(f"{directory} is no directory: give one that has the configuration")
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
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise InputError(f"git cannot list the files of {directory}: {said}") from error
    try:
        found = [Path(name) for name in listed.stdout.decode().split("\0") if name]
    except UnicodeDecodeError as error:
        raise InputError(f"a file in {directory} has a name that is not UTF-8: rename it, or exclude it") from error
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
    if not wheel.is_file():
        raise InputError(f"--wheel {wheel}: no such wheel; build one with `pip wheel --no-deps .`")
    try:
        with zipfile.ZipFile(wheel) as archive:
            if not any(name.startswith("cdt/") for name in archive.namelist()):
                raise InputError(f"--wheel {wheel}: it is not a wheel of cdt")
            archive.extractall(place)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise InputError(f"--wheel {wheel}: it cannot be unpacked: {reason(error)}") from error
