"""Writes results of a command: samples as a picture, as numbers or as shards; each file is complete or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from cdt.data.sources.generated import open_generated
from cdt.data.write.shard import check_new, shard
from cdt.errors import InputError, at
from cdt.files import check_place, resolved, written_aside
from cdt.monitor.pictures import save_images


def check_samples_file(path: Path) -> None:
    """Raises InputError unless samples can go there: a .png or .npz, or without suffix a new directory of shards."""
    if path.suffix:
        check_new_file(path, {".png", ".npz"})
    else:
        with at("-o"):
            check_new(resolved(path))
            check_place(path)


def save_samples(images: Tensor, path: Path, origin: dict[str, Any], *, bounded: bool) -> None:
    """Samples [N, C, H, W]; ``origin``: where they come from, as the index of shards will say."""
    if path.suffix:
        with written_aside(path) as partial:
            save_images(images, partial)
    else:
        shard(open_generated(images, origin, bounded=bounded), path, pack=None)


def check_new_file(path: Path, suffixes: set[str], argument: str = "-o") -> None:
    if path.suffix not in suffixes:
        raise InputError(f"{argument} {path}: the name must end in {' or '.join(sorted(suffixes))}")
    if not path.parent.is_dir():
        raise InputError(f"{argument} {path}: no such directory: {path.parent}")
    with at(argument):
        check_place(path)
    if path.is_dir():
        raise InputError(f"{argument} {path}: this is a directory; name a file")
