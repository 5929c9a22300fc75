"""Loads a checkpoint on another number of workers: the optimiser state is resharded by DeepSpeed's universal format."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from cdt import filenames
from cdt.checkpoints.checkpoint import problem_of, read_state, read_weights, to_disk
from cdt.engine.deepspeed_files import UNFIT, reason_in, to_universal
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine
from cdt.engine.ranks import Ranks
from cdt.errors import RunError
from cdt.files import written_aside


def load(checkpoint: Path, home: Path, engine: Engine, ema: Ema, ranks: Ranks) -> None:
    """Loads weights, optimiser state and averages from ``checkpoint``, whatever number of workers wrote it.

    A collective. A converted copy, if needed, is kept in ``home`` and reused. Raises RunError on every rank if one
    cannot read or write.
    """
    averages = _weights(checkpoint, engine)
    if read_state(checkpoint).world == ranks.world or not engine.divides_state:
        engine.load(checkpoint)
    else:
        converted = home / f".{checkpoint.name}.{_digest(checkpoint)}.universal"
        problem = problem_of(lambda: _convert(checkpoint, converted)) if ranks.first else None
        if problem := ranks.any_of(problem):
            raise RunError(
                f"cannot reshard {checkpoint} for {ranks.world} workers: {problem}; the checkpoint is unchanged"
            )
        engine.load_universal(converted, _weights(checkpoint, engine, raw=True))
    ema.load(averages)


def _weights(checkpoint: Path, engine: Engine, raw: bool = False) -> dict[str, Tensor]:
    """Each rank reads the same, so all raise alike. Raises RunError if they are not those of the network."""
    weights = read_weights(checkpoint, raw)
    if problem := engine.problem_with(weights):
        raise RunError(f"{checkpoint} is not of this run's network: in its weights {problem}")
    return weights


def _digest(checkpoint: Path) -> str:
    """Distinguishes a checkpoint from another with the same name."""
    return hashlib.sha256((checkpoint / filenames.MANIFEST).read_bytes()).hexdigest()[:16]


def _convert(checkpoint: Path, converted: Path) -> None:
    """Converts, complete or invisible like a checkpoint; an existing conversion is kept. Raises OSError."""
    if converted.exists():
        return
    with written_aside(converted) as aside:
        aside.mkdir(parents=True)
        try:
            to_universal(checkpoint / "engine", aside / "engine")
        except OSError:
            raise
        except UNFIT as error:
            if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
                # This is how torch's zip writer reports a failed write, without the reason.
                raise OSError(f"{converted} could not be written, perhaps the disk is full ({error})") from error
            raise OSError(f"its files cannot be loaded: {reason_in(error)}") from error
        for path in (*aside.rglob("*"), aside):
            to_disk(path)
    to_disk(converted.parent)
