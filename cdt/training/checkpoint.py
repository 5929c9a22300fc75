"""Checkpoints: complete or invisible. The manifest is written last; whoever reads trusts only what it lists."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from cdt.data.stream import StreamState
from cdt.errors import InputError, RunError
from cdt.training.ema import Ema
from cdt.training.engine import Engine, Fragment
from cdt.training.ranks import Ranks

FORMAT = 2


@dataclass(frozen=True)
class TrainState:
    """Everything of a run but weights and optimiser; JSON."""

    step: int
    """Steps done."""
    world: int
    """Workers that wrote it."""
    dual_steps: int
    """Of dual training: as configured, or fewer once it was ended early."""
    stream: StreamState
    dual: dict[str, Any] | None = None
    """Calibration and dual state, once calibrated."""
    loss: float | None = None
    """loss(q) on the training batches of the last period, nats; None before the first."""

    def quality(self) -> tuple[bool, float]:
        """Sorts checkpoints, the best last: requirements met by lower loss, before those unmet by less violation."""
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


def save(directory: Path, state: TrainState, engine: Engine, ema: Ema, ranks: Ranks) -> Path:
    """Writes ``directory/step-N``: DeepSpeed's files, EMA and raw weights as safetensors, state, manifest.

    A collective. Raises RunError on every rank when one of them cannot write; what was written is then removed.
    """
    final = directory / checkpoint_name(state.step)
    partial = directory / f".{final.name}.partial"
    stages: list[Callable[[], None]] = [
        lambda: _fresh(partial) if ranks.first else None,
        lambda: engine.save(partial),
        lambda: _save_weights(partial / "ema.safetensors", engine, ema.fragments, ranks),
        lambda: _save_weights(partial / "weights.safetensors", engine, engine.fragments(), ranks),
        lambda: _seal(partial, final, state) if ranks.first else None,
    ]
    for stage in stages:
        # Every rank learns of a problem before the next stage, which may be a collective.
        if problem := ranks.any_of(_problem(stage)):
            if ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise RunError(f"cannot save {final}: {problem}; earlier checkpoints are intact")
    return final


def _problem(stage: Callable[[], None]) -> str | None:
    """Runs a stage that writes; in words, why the machine refused."""
    try:
        stage()
    except OSError as error:
        return "the disk is full" if error.errno == errno.ENOSPC else str(error)
    except safetensors.SafetensorError as error:
        return str(error)
    return None


def _fresh(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _save_weights(path: Path, engine: Engine, fragments: dict[str, Fragment], ranks: Ranks) -> None:
    whole: dict[str, Tensor] = {}
    for name, fragment in fragments.items():
        weight = engine.gather(name, fragment)
        if ranks.first:
            whole[name] = weight.cpu()
    if ranks.first:
        safetensors.torch.save_file(whole, path)


def _seal(partial: Path, final: Path, state: TrainState) -> None:
    (partial / "state.json").write_text(json.dumps(asdict(state)))
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    (partial / "manifest.json").write_text(json.dumps({"format": FORMAT, "step": state.step, "files": files}, indent=1))
    stale = final.with_name(f".{final.name}.stale")
    if final.exists():
        final.rename(stale)
    partial.rename(final)
    shutil.rmtree(stale, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """A file of a run directory, whole or not at all. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(checkpoint: Path) -> bool:
    """Whether all that the manifest lists is there, in its size."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        return all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError):
        return False


def complete_checkpoints(directory: Path) -> list[Path]:
    """Oldest first."""
    found = directory.iterdir() if directory.is_dir() else []
    return sorted(path for path in found if re.fullmatch(r"step-\d{9}", path.name) and is_complete(path))


def read_state(checkpoint: Path) -> TrainState:
    """Raises InputError when another version of cdt wrote it."""
    found = json.loads((checkpoint / "manifest.json").read_text())["format"]
    if found != FORMAT:
        raise InputError(f"{checkpoint} has format {found!r}; this version of cdt reads format {FORMAT}")
    return TrainState.from_json(json.loads((checkpoint / "state.json").read_text()))


def read_weights(checkpoint: Path, raw: bool = False) -> dict[str, Tensor]:
    """EMA weights, or the raw ones, by name: fp32 on the CPU."""
    return safetensors.torch.load_file(checkpoint / ("weights.safetensors" if raw else "ema.safetensors"))
