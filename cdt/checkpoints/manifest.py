"""The manifest of a checkpoint: its files with sizes and digests. Files that it does not list are not trusted."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from cdt import filenames
from cdt.errors import InputError
from cdt.files import read_bytes
from cdt.records import Count, parsed

FORMAT: Literal[2] = 2
LIMIT = 1 << 26
"""Bytes: two files of each worker have an entry of some 150."""
STATE, EMA, WEIGHTS = "state.json", "ema.safetensors", "weights.safetensors"
"""Of every checkpoint; the rest is DeepSpeed's, in ``ENGINE``."""
ENGINE = "engine"
_NAME = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9_.-]*/){0,4}[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""A path below the checkpoint: relative, without ``..``."""


class Entry(TypedDict):
    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Tree(TypedDict):
    format: int
    step: Count
    files: dict[str, Entry]


class _Format(TypedDict):
    format: int


_KIND, _VERSION = TypeAdapter(_Tree), TypeAdapter(_Format)


@dataclass(frozen=True)
class Manifest:
    step: int
    files: dict[str, Entry]


def read_manifest(checkpoint: Path) -> Manifest:
    """Raises InputError when there is none, when it is damaged, and when another version of cdt wrote it."""
    path = checkpoint / filenames.MANIFEST
    content, prefix = read_bytes(path, LIMIT), f"{path} cannot be read"
    if (found := parsed(content, _VERSION, prefix)["format"]) != FORMAT:
        raise InputError(f"{checkpoint} has format {found}; this version of cdt reads format {FORMAT}")
    tree = parsed(content, _KIND, prefix)
    if odd := [name for name in tree["files"] if not _NAME.fullmatch(name)]:
        raise InputError(f"{prefix}: {odd[0][:100]!r} cannot be a file of a checkpoint")
    lacking = [name for name in (STATE, EMA, WEIGHTS) if name not in tree["files"]]
    if not any(name.startswith(f"{ENGINE}/") for name in tree["files"]):
        lacking.append(f"{ENGINE}/")
    if lacking:
        raise InputError(f"{prefix}: it lists no {', '.join(lacking)}")
    return Manifest(tree["step"], tree["files"])


def lacking(checkpoint: Path, manifest: Manifest) -> list[str]:
    """The files that are not there as regular files with the sizes in the manifest."""
    return [name for name, entry in manifest.files.items() if _size(checkpoint / name) != entry["bytes"]]


def _size(path: Path) -> int | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
