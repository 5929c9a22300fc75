"""A checkpoint on another number of workers: its optimiser state divided anew, through DeepSpeed's universal format."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

from cdt.checkpoints.checkpoint import problem_of, read_state, read_weights, to_disk
from cdt.engine.deepspeed_files import to_universal
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine
from cdt.engine.ranks import Ranks
from cdt.errors import RunError
from cdt.files import written_aside


def load(checkpoint: Path, home: Path, engine: Engine, ema: Ema, ranks: Ranks) -> None:
    """Weights, optimiser state and averages from ``checkpoint``, whatever number of workers wrote it.

    A collective. What has to be converted for that goes into ``home``, and is found there the next time. Raises
    RunError on every rank when one cannot read or write.
    """
    if read_state(checkpoint).world == ranks.world or not engine.divides_state:
        engine.load(checkpoint)
    else:
        converted = home / f".{checkpoint.name}.{_digest(checkpoint)}.universal"
        problem = problem_of(lambda: _convert(checkpoint, converted)) if ranks.first else None
        if problem := ranks.any_of(problem):
            raise RunError(f"cannot divide {checkpoint} over {ranks.world} workers: {problem}; it is intact")
        engine.load_universal(converted, read_weights(checkpoint, raw=True))
    ema.load(read_weights(checkpoint))


def _digest(checkpoint: Path) -> str:
    """Tells a checkpoint from another of the same name."""
    return hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()[:16]


def _convert(checkpoint: Path, converted: Path) -> None:
    """Complete or invisible, like a checkpoint; what was converted before stays. Raises OSError."""
    if converted.exists():
        return
    with written_aside(converted) as aside:
        aside.mkdir(parents=True)
        try:
            to_universal(checkpoint / "engine", aside / "engine")
        except pickle.UnpicklingError as error:
            raise OSError("it holds more than weights and optimiser state, which was not run") from error
        except RuntimeError as error:
            # How torch's zip writer reports a disk that refuses; it keeps the reason to itself.
            raise OSError(f"{converted} could not be written, perhaps the disk is full ({error})") from error
        for path in (*aside.rglob("*"), aside):
            to_disk(path)
    to_disk(converted.parent)
