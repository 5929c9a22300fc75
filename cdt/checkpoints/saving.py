"""Saves that are written during training: all ranks stop for a copy, and agree later that it is on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import safetensors.torch
from torch import Tensor

from cdt.checkpoints.checkpoint import TrainState, checkpoint_name, problem_of, seal, to_disk
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine, Fragment
from cdt.engine.host_copies import Copies
from cdt.engine.ranks import Ranks
from cdt.errors import RunError
from cdt.files import sha256

Write = Callable[[], Path]
"""Writes one file, whose path it returns. Raises OSError or SafetensorError."""


class Saver:
    """One save at a time: ``begin`` copies, a thread writes, ``finish`` gives the checkpoint its name.

    An unfinished save is not a checkpoint. All methods but ``close`` are collectives.
    """

    def __init__(self, directory: Path, engine: Engine, ema: Ema, ranks: Ranks) -> None:
        self._directory, self._engine, self._ema, self._ranks = directory, engine, ema, ranks
        self._copies, self._pool = Copies(), ThreadPoolExecutor(1, "saver")
        self._state: TrainState | None = None
        self._digests: Future[dict[str, str]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is unfinished; the same on all ranks."""
        return self._digests is not None

    def begin(self, state: TrainState) -> None:
        """Copies the contents of ``directory/step-N`` into CPU memory, each rank its part.

        Raises RunError on every rank if the folder cannot be created.
        """
        assert not self.busy
        self._state = state
        self._agree(lambda: _fresh(self._partial) if self._ranks.first else None)
        writes = self._engine.snapshot(self._partial, self._copies)
        for name, fragments in (("ema", self._ema.fragments), ("weights", self._engine.fragments())):
            whole = self._whole(name, fragments)
            if self._ranks.first:
                writes.append(partial(_write_weights, self._partial / f"{name}.safetensors", whole))
        if self._ranks.first:
            writes.append(partial(_write_text, self._partial / "state.json", json.dumps(asdict(state))))
        self._digests = self._pool.submit(_write_all, writes, self._partial)

    def written(self) -> bool:
        """Whether writing has ended on all ranks, so that ``finish`` does not wait."""
        return self._digests is not None and all(self._ranks.all_of(self._digests.done()))

    def finish(self) -> Path:
        """Waits for the writing, then gives the checkpoint its name; all of it is then on the disk.

        It can be called again after an interrupt. Raises RunError on every rank if one of them could not write; the
        incomplete checkpoint is then removed.
        """
        assert self._state is not None
        assert self._digests is not None
        state, ranks, mine = self._state, self._ranks, self._digests
        self._agree(mine.result)
        digests = {name: digest for each in ranks.all_of(mine.result()) for name, digest in each.items()}
        self._agree(lambda: seal(self._partial, self._final, state, digests) if ranks.first else None)
        self._digests = None
        return self._final

    def close(self) -> None:
        """Waits until writing has ended."""
        self._pool.shutdown()

    @property
    def _final(self) -> Path:
        assert self._state is not None
        return self._directory / checkpoint_name(self._state.step)

    @property
    def _partial(self) -> Path:
        return self._directory / f".{self._final.name}.partial"

    def _agree(self, stage: Callable[[], object]) -> None:
        """Runs a stage and informs every rank of a problem before the next stage, which may be a collective."""
        if problem := self._ranks.any_of(problem_of(stage)):
            final, unfinished = self._final, self._partial
            self._digests = None
            if self._ranks.first:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise RunError(f"cannot save {final}: {problem}; earlier checkpoints are intact")

    def _whole(self, kind: str, fragments: dict[str, Fragment]) -> dict[str, Tensor]:
        """Weights by name on the first rank; nothing on the others."""
        whole: dict[str, Tensor] = {}
        for name, fragment in fragments.items():
            weight = self._engine.gather(name, fragment)
            if self._ranks.first:
                whole[name] = self._copies.of(f"{kind}/{name}", weight)
        return whole


def _fresh(folder: Path) -> None:
    """Also makes DeepSpeed's folder. DeepSpeed makes it on one rank between barriers: an error hangs the others."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "engine").mkdir(parents=True)


def _write_weights(path: Path, weights: dict[str, Tensor]) -> Path:
    try:
        safetensors.torch.save_file(weights, path)
    except safetensors.SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    return path


def _write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _write_all(writes: list[Write], folder: Path) -> dict[str, str]:
    """Writes all files and flushes them to the disk; returns their digests by name."""
    paths = [write() for write in writes]
    for path in paths:
        to_disk(path)
    return {str(path.relative_to(folder)): sha256(path) for path in paths}
