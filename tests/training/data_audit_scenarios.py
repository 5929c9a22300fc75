"""The data's account over two ranks, of shards with bad samples."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scenario import Place, Scenario
from small_engine import SEED

from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.stream import MixtureStream
from cdt.dual import Draws
from cdt.engine.ranks import Ranks
from cdt.errors import RunError
from cdt.monitor.recorder import Recorder
from cdt.training.data_audit import DataAudit

SPOILED = list(range(0, 1200, 40))
"""The rows that are spoiled."""


@dataclass(frozen=True)
class Audited:
    heard: str
    """The error that ended it, or "nothing"."""
    sums: list[float]
    """Of each step's images over all ranks, weighted by position."""
    bad: list[int]


def spoiled_copy(index: Index, root: Path, rows: list[int]) -> Index:
    """Shards with a bit of some images flipped."""
    shutil.copytree(index.root, root)
    for row in rows:
        with (root / index.shards[int(index.shard[row])].name).open("r+b") as file:
            file.seek(int(index.offset[row]) + 60)
            (found,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([found ^ 4]))
    return Index.load(root)


def audited(index: Index, ranks: Ranks, folder: Path) -> dict[str, Audited]:
    """Two epochs of a stream with bad samples, on this many ranks: what is recorded, and what the images sum to."""
    told: dict[str, Audited] = {}
    for name, allowed, lost in (("within the budget", 0.5, 0), ("beyond the budget", 0.003, 0), ("lost", 0.5, 1)):
        stream = MixtureStream(
            DataConfig(shards=str(index.root), max_bad_fraction=allowed, cache_mb=0),
            index,
            {"four": np.flatnonzero(index.classes == 4)},
            np.zeros(index.count, np.int64),
            lambda lambdas: Draws(np.array([0.8, 0.2]), np.ones(2), np.ones(1)),
            lambdas=np.array([0.25]),
            batch_size=64,
            seed=SEED,
            rank=ranks.rank,
            world=ranks.world,
        )
        directory = folder / f"{name}, {ranks.world} ranks"
        recorder = Recorder(directory) if ranks.first else None
        account = DataAudit(stream, ranks, batch_size=64, epoch=320, log_steps=2)
        sums, heard = [], "nothing"
        try:
            for step in range(1, 11):
                batch = next(stream)
                weights = batch.positions[:, None, None, None].double() + 1
                sums.append(float(ranks.sum(np.array([(batch.images * weights).sum()]))[0]))
                stream.ledger.arrived[0] -= lost * (step == 3 and ranks.rank == ranks.world - 1)
                account.after(step, step == 10, recorder)
        except RunError as error:
            heard = str(error)
        if recorder:
            recorder.close()
        told[name] = Audited(heard, sums, sorted(stream.ledger.bad))
    return told


def audit(place: Place) -> dict[str, Audited]:
    spoiled = spoiled_copy(Index.load(place.shards), place.folder / f"spoiled {place.ranks.rank}", SPOILED)
    return audited(spoiled, place.ranks, place.folder)


AUDITED = Scenario("audited", audit)
SCENARIOS = [AUDITED]
