"""The mixture stream: batches of base and constraint samples in the proportions given by the multipliers.

The sample at a global position depends only on the seed and the history of lambda. Each rank plans the whole batch
(integers only) and reads its own slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cdt.condition import Condition, Conditions
from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.plan.order import Order, stream_key
from cdt.data.plan.planner import Mixture, PlannedBatch, Planner
from cdt.data.plan.state import StreamState
from cdt.data.plan.stratified import base_order, subset_order
from cdt.data.read.bad import BadSample, Ledger
from cdt.data.read.reader import ImageReader, TolerantReader, normalise
from cdt.errors import RunError

AHEAD = 256
"""Batches over which a rank looks ahead for shards to fetch whole."""
WHOLE_SHARD = 0.4
"""Share of a shard's samples that a rank must need to fetch it whole; otherwise it reads ranges."""


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch, all [b] but ``penalties``."""

    images: torch.Tensor
    """[b, C, H, W] float32 in [-1, 1]"""
    positions: torch.Tensor
    """Global positions, int64."""
    streams: torch.Tensor
    """0 for the base, i + 1 for constraint i."""
    cells: torch.Tensor
    """The cell of each sample: which set of constraints it belongs to."""
    weights: torch.Tensor
    """float32, mean 1 over draws."""
    rows: torch.Tensor
    """Of the index; -1 where the sample was replaced by another."""
    condition: Condition | None = None
    """What a conditional network is given for the samples."""
    penalties: torch.Tensor | None = None
    """The multipliers of penalties as in force at this batch: [P], float32; None: there are none."""

    def to(self, device: torch.device) -> Batch:
        moved = {name: value.to(device, non_blocking=True) for name, value in self._tensors().items()}
        condition = None if self.condition is None else self.condition.to(device)
        penalties = None if self.penalties is None else self.penalties.to(device, non_blocking=True)
        return Batch(**moved, condition=condition, penalties=penalties)

    def split(self, parts: int) -> list[Batch]:
        """Equal micro-batches, for gradient accumulation. Each has all penalties."""
        chunks = {name: value.chunk(parts) for name, value in self._tensors().items()}
        conditions = [None] * parts if self.condition is None else self.condition.split(parts)
        return [
            Batch(
                **{name: values[k] for name, values in chunks.items()},
                condition=conditions[k],
                penalties=self.penalties,
            )
            for k in range(parts)
        ]

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if name not in ("condition", "penalties")}


class Loaded(NamedTuple):
    """What a loader worker sends."""

    batch: Batch | RunError
    """An error is raised where it arrives: raised in a loader worker, it would come inside of a traceback."""
    counters: np.ndarray
    """The streams' counters after the batch."""
    bad: dict[int, BadSample]
    """The unusable samples, by the places in the batch where others replaced them."""


class _Samples(Dataset[Loaded]):
    """What a loader worker does: planned rows to a batch."""

    def __init__(self, reader: TolerantReader, cells: np.ndarray, conditions: Conditions | None) -> None:
        self._reader, self._cells, self._conditions = reader, cells, conditions

    def __getitem__(self, plan: PlannedBatch) -> Loaded:
        cells, mixture = self._cells[plan.rows], plan.mixture
        weights = mixture.stream_weights[plan.streams] * np.where(plan.streams == 0, mixture.base_weights[cells], 1.0)
        try:
            images, there, bad = self._reader.read(plan.rows, plan.positions)
        except RunError as error:
            return Loaded(error, plan.counters_after, {})
        rows = plan.rows.copy()
        rows[list(bad)] = -1
        batch = Batch(
            images=torch.from_numpy(normalise(images)),
            positions=torch.from_numpy(plan.positions),
            streams=torch.from_numpy(plan.streams),
            cells=torch.from_numpy(cells),
            weights=torch.from_numpy(weights.astype(np.float32)),
            rows=torch.from_numpy(rows),
            condition=None if self._conditions is None else self._conditions.at(there, plan.positions),
            penalties=None if mixture.penalties is None else torch.from_numpy(mixture.penalties.astype(np.float32)),
        )
        return Loaded(batch, plan.counters_after, bad)


def _as_it_is(loaded: Any) -> Any:
    """Replaces DataLoader's own conversion."""
    return loaded


class MixtureStream:
    """An endless iterator of this rank's batches; ``state()`` restores it, on any number of ranks.

    An unusable sample is replaced by another of its class and cell, and recorded in ``ledger``, which has the limit of
    their number.

    Args:
        index: the split that is trained on; of a joined one, the first part is the base stream.
        subsets: the rows of each constraint's stream, by name, in the order of the multipliers.
        cells: the cell of each row [N].
        mixture_of: multipliers [m] to the proportions and weights that they mean.
        conditions: those of the rows, for a conditional network.
        lambdas: the initial multipliers.
        batch_size: of the global batch; a multiple of ``world``.
    """

    def __init__(
        self,
        config: DataConfig,
        index: Index,
        subsets: Mapping[str, np.ndarray],
        cells: np.ndarray,
        mixture_of: Callable[[np.ndarray], Mixture],
        *,
        conditions: Conditions | None = None,
        lambdas: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._names = ["base", *(f"constraint {name}" for name in subsets)]
        orders: list[Order] = [base_order(index.parts[0] if index.parts else index, stream_key(seed, "base"))]
        keys = (stream_key(seed, name) for name in self._names[1:])
        orders += [subset_order(index, rows, key) for rows, key in zip(subsets.values(), keys, strict=True)]
        share = batch_size // world
        local = slice(rank * share, (rank + 1) * share)
        self._planner = Planner(orders, mixture_of, batch_size, local, stream_key(seed, "allocation"))
        self.reader = TolerantReader(
            ImageReader(index, config.cache_mb, config.shard_cache_gb), index, cells, stream_key(seed, "substitutes")
        )
        self.ledger = Ledger.of(index, len(orders), config.max_bad_fraction)
        self._samples = _Samples(self.reader, cells, conditions)
        self._index, self._batch_size, self._looked_ahead = index, batch_size, 0
        self._lag, self._workers = config.lambda_lag, min(config.loader_workers, config.lambda_lag)
        self._iterator: Iterator[Loaded] | None = None
        self._batch, self._counters = 0, np.zeros(len(orders), dtype=np.int64)
        self._history = [(0, lambdas)]
        self._planner.steer(0, lambdas)

    def __iter__(self) -> MixtureStream:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            loader = DataLoader(
                self._samples,
                sampler=self._planner,
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=self._workers,
                prefetch_factor=max(self._lag // self._workers, 1) if self._workers else None,
            )
            self._iterator = iter(loader)
            self._looked_ahead = self._batch
        if self._index.base is not None and self._batch >= self._looked_ahead:
            self._look_ahead()
        batch, counters, bad = next(self._iterator)
        if isinstance(batch, RunError):
            raise batch
        self.ledger.count(batch.streams.numpy(), bad)
        self._batch, self._counters = self._batch + 1, counters
        self._forget_history()
        return batch

    def _forget_history(self) -> None:
        while len(self._history) > 1 and self._history[1][0] <= self._batch:
            self._history.pop(0)

    def _look_ahead(self) -> None:
        """Starts fetching the shards of which this rank will soon read a large part."""
        batches = min(AHEAD, -(-self._index.count // self._batch_size))
        rows = self._planner.ahead(batches)
        used = np.bincount(self._index.shard[np.unique(rows)], minlength=len(self._index.shards))
        counts = np.array([info.count for info in self._index.shards])
        shards = self._index.shard[rows]
        first_uses = shards[np.sort(np.unique(shards, return_index=True)[1])]
        self.reader.files.expect([s for s in first_uses.tolist() if used[s] >= WHOLE_SHARD * counts[s]])
        self._looked_ahead = self._batch + max(1, batches // 4)

    def steer(self, lambdas: np.ndarray) -> None:
        """Draw by these multipliers, starting ``lambda_lag`` batches ahead."""
        first = self._batch + self._lag
        self._history.append((first, lambdas))
        self._planner.steer(first, lambdas)

    def state(self) -> StreamState:
        counters = dict(zip(self._names, self._counters.tolist(), strict=True))
        return StreamState(self._batch, counters, [(first, lambdas.tolist()) for first, lambdas in self._history])

    def skip_to(self, batch: int) -> None:
        """Skip the batches before ``batch``; none is read."""
        while self._batch < batch:
            self._counters = self._planner.skip()
            self._batch += 1
            self._forget_history()

    def restore(self, state: StreamState) -> None:
        """Continue from ``state``; streams that it does not know begin at their first sample."""
        self._iterator = None
        self._batch = state.batch
        self._counters = np.array([state.counters.get(name, 0) for name in self._names], dtype=np.int64)
        self._planner.start(self._batch, self._counters)
        if list(state.counters) == self._names:
            self._history = [(first, np.asarray(lambdas, dtype=np.float64)) for first, lambdas in state.history]
        else:
            self._history = [(0, self._history[0][1])]
        for first, lambdas in self._history:
            self._planner.steer(max(first, self._batch), lambdas)
