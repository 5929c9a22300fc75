"""Checkpoints: complete or invisible. The manifest is written last; readers trust only the files that it lists.

Only ``open_checkpoint``, ``newest_sound`` and ``sound`` open checkpoints for reading. They compare the files with their
digests, and skip damaged checkpoints.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cdt import filenames
from cdt.checkpoints.manifest import EMA, ENGINE, FORMAT, STATE, WEIGHTS, Manifest, lacking, read_manifest
from cdt.checkpoints.state import LIMIT, TrainState, parse_state
from cdt.errors import DamagedWarning, InputError, RunError
from cdt.files import open_regular, read_bytes, sha256
from cdt.networks.adapter import merged
from cdt.spelling import first_few

CHECKPOINT = r"step-\d{9}"
"""The pattern of a checkpoint's name."""


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
    spared |= {path.name for path in _by_quality(found)[1][:1]}
    for path in found:
        if path.name not in spared:
            with contextlib.suppress(OSError):
                _discard(path)
    for left in directory.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether its manifest can be read, and all files in it exist with their sizes."""
    try:
        return not lacking(checkpoint, read_manifest(checkpoint))
    except InputError:
        return False


def complete_checkpoints(directory: Path) -> list[Path]:
    """Oldest first. Their contents may be damaged."""
    return [path for path in named_checkpoints(directory) if is_complete(path)]


def named_checkpoints(directory: Path) -> list[Path]:
    """The paths with a checkpoint's name, oldest first; a save that was not finished has none."""
    found = directory.iterdir() if directory.is_dir() else []
    return sorted(path for path in found if re.fullmatch(CHECKPOINT, path.name))


def damage(checkpoint: Path, read: Collection[str] | None = None) -> str | None:
    """A message if a checkpoint is not what its manifest says, else None.

    Compares the contents of all files, or of those in ``read`` and of the state.
    """
    try:
        manifest = read_manifest(checkpoint)
        if missing := lacking(checkpoint, manifest):
            return f"{first_few(missing)}: missing, or of another size than its manifest says"
        if read is None and (unlisted := _unlisted(checkpoint, manifest)):
            return f"{first_few(unlisted)}: not in its manifest"
        chosen = [name for name in manifest.files if read is None or name in read or name == STATE]
        with ThreadPoolExecutor() as pool:
            digests = pool.map(lambda name: sha256(checkpoint / name), chosen)
            wrong = [n for n, found in zip(chosen, digests, strict=True) if found != manifest.files[n]["sha256"]]
        if wrong:
            return f"{first_few(wrong)}: contents differ from its manifest"
        _state_of(checkpoint, manifest)
    except InputError as error:
        return str(error).removeprefix(f"{checkpoint}/").removeprefix(f"{checkpoint} ")
    except OSError as error:
        return f"cannot be read ({error})"
    return None


def _unlisted(checkpoint: Path, manifest: Manifest) -> list[str]:
    """Files that DeepSpeed would read, and of which there is no digest."""
    there = (path.relative_to(checkpoint).as_posix() for path in (checkpoint / ENGINE).rglob("*") if not path.is_dir())
    return sorted(name for name in there if name not in manifest.files)


class Opened(NamedTuple):
    """A checkpoint that was compared with its digests."""

    path: Path
    state: TrainState


def open_checkpoint(directory: Path, which: str = "last", *, check: bool = True) -> Opened:
    """The checkpoint of ``directory`` to take weights from, for a run that does not continue.

    ``which``: ``last``, ``best`` (all requirements met, then the lowest loss) or its step. Of ``last`` and ``best``,
    damaged ones are passed over, and a DamagedWarning names them and the one that is taken. ``check``: whether both
    weights are compared with their digests; without, only the manifest, the sizes and the state are.

    Raises InputError if there is none, or the one at a step is damaged; RunError if none is intact.
    """
    there = named_checkpoints(directory)
    if not there:
        raise InputError(f"{directory.parent} has no complete checkpoint yet")
    read = (EMA, WEIGHTS) if check else ()
    if which not in ("last", "best"):
        return sound(_of_step(there, which), read)
    candidates = there[::-1]
    if which == "best":
        unreadable, readable = _by_quality(there)
        candidates = unreadable + readable  # one of the first may have been the best, so they are named
    path, passed_over = _first_sound(candidates, read)
    if path is None:
        raise _none_intact(directory, passed_over)
    if passed_over:
        warnings.warn(f"{directory.parent}: {_told(passed_over, path)}", DamagedWarning, stacklevel=2)
    return Opened(path, read_state(path))


def newest_sound(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint all of whose contents match its manifest, and messages about the damaged newer ones.

    Raises RunError if there are checkpoints and none is intact.
    """
    there = named_checkpoints(directory)
    path, passed_over = _first_sound(there[::-1], None)
    if there and path is None:
        raise _none_intact(directory, passed_over)
    return path, passed_over


def sound(path: Path, read: Collection[str] | None = (EMA, WEIGHTS)) -> Opened:
    """One checkpoint, of which all files or those in ``read`` are compared. Raises InputError if it is damaged."""
    if problem := damage(path, read):
        raise InputError(f"{path} is damaged: {problem}")
    return Opened(path, read_state(path))


def _first_sound(candidates: Sequence[Path], read: Collection[str] | None) -> tuple[Path | None, list[str]]:
    passed_over: list[str] = []
    for path in candidates:
        if (problem := damage(path, read)) is None:
            return path, passed_over
        passed_over.append(f"{path.name} is damaged: {problem}")
    return None, passed_over


def _none_intact(directory: Path, passed_over: Sequence[str]) -> RunError:
    more = f"; and {len(passed_over) - 3} more" if len(passed_over) > 3 else ""
    return RunError(f"{directory}: no checkpoint is intact; {'; '.join(passed_over[:3])}{more}")


def _told(passed_over: Sequence[str], taken: Path) -> str:
    them = "they are" if len(passed_over) > 1 else "it is"
    return f"{'; '.join(passed_over)}; {them} passed over, {taken.name} is taken"


def _of_step(there: Sequence[Path], which: str) -> Path:
    steps = {str(int(path.name.removeprefix("step-"))): path for path in there}
    step = which.lstrip("0") or "0"
    if step not in steps:
        shown = which if len(which) <= 40 else f"{which[:40]}…"
        raise InputError(
            f"{there[0].parent.parent} has no checkpoint {shown}: there are last, best, {', '.join(steps)}"
        )
    return steps[step]


def _by_quality(there: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Those whose state cannot be read, and the others, the best first; of equals the older one."""
    unreadable, qualities = list[Path](), dict[Path, tuple[bool, float]]()
    for path in there:
        try:
            qualities[path] = read_state(path).quality()
        except InputError:
            unreadable.append(path)
    return unreadable, sorted(qualities, key=lambda path: qualities[path], reverse=True)


def read_state(checkpoint: Path) -> TrainState:
    """The state in a checkpoint, compared with its digest.

    Raises InputError if it is damaged, or if another version of cdt wrote it.
    """
    return _state_of(checkpoint, read_manifest(checkpoint))


def _state_of(checkpoint: Path, manifest: Manifest) -> TrainState:
    path = checkpoint / STATE
    content = read_bytes(path, LIMIT)
    if hashlib.sha256(content).hexdigest() != manifest.files[STATE]["sha256"]:
        raise InputError(f"{path}: contents differ from its manifest")
    state = parse_state(content, f"{path} cannot be read")
    if re.fullmatch(CHECKPOINT, checkpoint.name) and checkpoint.name != checkpoint_name(manifest.step):
        raise InputError(f"{checkpoint / filenames.MANIFEST} says step {manifest.step}")
    if state.step != manifest.step:
        raise InputError(f"{path} says step {state.step}, its manifest {manifest.step}")
    return state


def read_weights(checkpoint: Path, raw: bool = False) -> dict[str, Tensor]:
    """EMA weights, or the raw ones, by name as they are trained: fp32 on the CPU.

    Raises InputError if they cannot be read, are of another type or not finite.
    """
    path = checkpoint / (WEIGHTS if raw else EMA)
    try:
        open_regular(path).close()  # else a pipe would be waited for
        weights = safetensors.torch.load_file(path)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {_one_line(error)}") from error
    for name, weight in weights.items():
        if weight.dtype != torch.float32:
            raise InputError(f"{path} cannot be used: {name} is {weight.dtype}, not float32")
        if not weight.sum(dtype=torch.float64).isfinite():  # fp32 values have a finite one; it needs no copy
            raise InputError(f"{path} cannot be used: {name} has values that are not finite")
    return weights


def network_weights(checkpoint: Path, raw: bool = False) -> dict[str, Tensor]:
    """The same, by name as in the plain network: adapters are merged into the other weights."""
    try:
        return merged(read_weights(checkpoint, raw))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{checkpoint} cannot be used: its adapters do not fit its weights ({_one_line(error)})"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
