"""Checkpoints: complete or invisible. The manifest is written last; readers trust only the files that it lists."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from cdt import filenames
from cdt.data.stream import StreamState
from cdt.errors import InputError, RunError
from cdt.networks.adapter import merged

FORMAT = 2
CHECKPOINT = r"step-\d{9}"
"""The pattern of a checkpoint's name."""


@dataclass(frozen=True)
class TrainState:
    """The whole state of a run except weights and optimiser; JSON."""

    step: int
    """Steps done."""
    world: int
    """Number of workers that wrote it."""
    dual_steps: int
    """Length of dual training: as configured, or less once it was ended early."""
    stream: StreamState
    dual: dict[str, Any] | None = None
    """Calibration and dual state, once calibrated."""
    loss: float | None = None
    """loss(q) on the training batches of the last period, nats; None before the first."""
    sums: list[list[list[float]]] | None = None
    """Sums from training batches in the unfinished period, [workers, K + 1, 3]; None at its beginning."""

    def quality(self) -> tuple[bool, float]:
        """Sorts checkpoints, the best last: with all requirements met the lower loss, else the smaller violation."""
        slack = [-math.inf if gap is None else gap for gap in (self.dual or {}).get("slack", [])]
        worst = min(slack, default=-math.inf)
        return worst >= 0, (-math.inf if self.loss is None else -self.loss) if worst >= 0 else worst

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> TrainState:
        stream = tree["stream"]
        history = [(first, lambdas) for first, lambdas in stream["history"]]
        return cls(**{**tree, "stream": StreamState(stream["batch"], stream["counters"], history)})


def checkpoint_name(step: int) -> str:
    return f"step-{step:09d}"


def problem_of(stage: Callable[[], object]) -> str | None:
    """Runs a stage that writes; returns a message if writing failed, else None."""
    try:
        stage()
    except OSError as error:
        return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
    except safetensors.SafetensorError as error:
        return str(error)
    return None


def seal(partial: Path, final: Path, state: TrainState, digests: dict[str, str]) -> None:
    """Writes the manifest, flushes the folders, then gives the checkpoint its name. Raises OSError.

    If called again after an interrupt that came after the renaming, it does the rest.
    """
    if final.exists() and not partial.exists():
        to_disk(final.parent)
        return
    files = {
        name: {"bytes": (partial / name).stat().st_size, "sha256": digest} for name, digest in sorted(digests.items())
    }
    manifest = partial / filenames.MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "step": state.step, "files": files}, indent=1))
    # A named checkpoint survives a power failure: contents first, then the name.
    for path in (manifest, *{(partial / name).parent for name in files}):
        to_disk(path)
    if final.exists():
        _discard(final)
    partial.rename(final)
    to_disk(final.parent)


def _discard(path: Path) -> None:
    """Removes a checkpoint so that an incomplete one is never visible."""
    stale = path.with_name(f".{path.name}.stale")
    path.rename(stale)
    shutil.rmtree(stale, ignore_errors=True)


def to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def prune(directory: Path, keep: int, milestones: Collection[int]) -> None:
    """Keeps only the newest ``keep`` checkpoints, the best one and those of the steps ``milestones``.

    Also removes the remains of interrupted saves. Raises nothing: what cannot be deleted stays.
    """
    found = complete_checkpoints(directory)
    spared = {checkpoint_name(step) for step in milestones} | {path.name for path in found[-keep:]}
    if found:
        spared.add(max(found, key=lambda path: read_state(path).quality()).name)
    for path in found:
        if path.name not in spared:
            with contextlib.suppress(OSError):
                _discard(path)
    for left in directory.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(checkpoint: Path) -> bool:
    """Whether all files in the manifest exist with their sizes."""
    try:
        files = json.loads((checkpoint / filenames.MANIFEST).read_text())["files"]
        return all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError):
        return False


def complete_checkpoints(directory: Path) -> list[Path]:
    """Oldest first."""
    return [path for path in _named(directory) if is_complete(path)]


def _named(directory: Path) -> list[Path]:
    """The paths with a checkpoint's name, oldest first."""
    found = directory.iterdir() if directory.is_dir() else []
    return sorted(path for path in found if re.fullmatch(CHECKPOINT, path.name))


def damage(checkpoint: Path) -> str | None:
    """A message if the contents differ from the manifest, else None; reads everything."""
    if not is_complete(checkpoint):
        return "files are missing or have other sizes than its manifest says"
    files = json.loads((checkpoint / filenames.MANIFEST).read_text())["files"]
    try:
        with ThreadPoolExecutor() as pool:
            digests = pool.map(lambda name: sha256(checkpoint / name), files)
            wrong = [name for name, found in zip(files, digests, strict=True) if found != files[name]["sha256"]]
    except OSError as error:
        return f"cannot be read ({error})"
    return f"{', '.join(wrong)}: contents differ from its manifest" if wrong else None


def newest_sound(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose contents match its manifest, and messages about the damaged newer ones.

    Raises RunError if there are checkpoints and none is intact.
    """
    passed_over: list[str] = []
    for path in reversed(_named(directory)):
        problem = damage(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"{path.name} is damaged: {problem}")
    if passed_over:
        raise RunError(f"{directory}: no checkpoint is intact; {'; '.join(passed_over)}")
    return None, []


def read_state(checkpoint: Path) -> TrainState:
    """The state in a checkpoint. Raises InputError if another version of cdt wrote it."""
    found = json.loads((checkpoint / filenames.MANIFEST).read_text())["format"]
    if found != FORMAT:
        raise InputError(f"{checkpoint} has format {found!r}; this version of cdt reads format {FORMAT}")
    return TrainState.from_json(json.loads((checkpoint / "state.json").read_text()))


def read_weights(checkpoint: Path, raw: bool = False) -> dict[str, Tensor]:
    """EMA weights, or the raw ones, by name as they are trained: fp32 on the CPU."""
    return safetensors.torch.load_file(checkpoint / ("weights.safetensors" if raw else "ema.safetensors"))


def network_weights(checkpoint: Path, raw: bool = False) -> dict[str, Tensor]:
    """The same, by name as in the plain network: adapters are merged into the other weights."""
    return merged(read_weights(checkpoint, raw))
