"""Tars by hand, as others write them, and as nobody should."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def png(value: int = 0, height: int = 6, width: int = 5, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    shape = (height, width) if channels == 1 else (height, width, channels)
    Image.fromarray(np.full(shape, value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


Entry = tuple[str, bytes] | tarfile.TarInfo


def write_tar(path: Path, members: Sequence[Entry], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for entry in members:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                name, payload = entry
                tar.addfile(member(name, size=len(payload)), io.BytesIO(payload))
    return path


def sample(key: str, label: str = "0", value: int = 0) -> list[Entry]:
    return [(f"{key}.cls", label.encode()), (f"{key}.png", png(value))]
