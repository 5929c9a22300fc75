"""The frozen pretrained network beside the one in training: what it predicts at replayed samples."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cdt.condition import Condition
from cdt.data.stream import Batch
from cdt.diffusion.loss import Target, predict_eps
from cdt.diffusion.process import Process


class Teacher:
    """It is not part of the engine that trains; only replayed samples go through it.

    ``network`` maps x [B, C, H, W] and timesteps of ``process`` [B]; where it is partitioned over the ranks, all of
    them must run equally many forwards, so there is one in every micro-batch. ``replayed`` [K]: which cells are replay.
    """

    def __init__(
        self, network: nn.Module, process: Process, replayed: Tensor, dtype: torch.dtype, *, partitioned: bool
    ) -> None:
        self._network, self._process, self._dtype = network, process, dtype
        self._replayed, self._partitioned = replayed, partitioned
        self.time = Stopwatch(replayed.device)

    def lesson(self, batch: Batch, u: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Target]:
        """Noise levels u [B] and noise [B, C, H, W] to train ``batch`` at, as they are, and the target."""
        return u, eps, self.target(batch.cells, batch.condition)

    def target(self, cells: Tensor, condition: Condition | None = None) -> Target:
        """The teacher's eps at the replayed samples among those of ``cells`` [B], the noise at the others.

        ``condition``: of all [B], as the network in training sees it.
        """

        def target(x: Tensor, logsnr: Tensor, eps: Tensor) -> Tensor:
            chosen = self._replayed[cells].nonzero().flatten()
            if not len(chosen) and not self._partitioned:
                return eps
            asked = chosen if len(chosen) else torch.zeros_like(cells[:1])
            with torch.no_grad(), self.time.running():
                predicted = predict_eps(
                    self._network,
                    self._process,
                    x[asked],
                    logsnr[asked],
                    self._dtype,
                    None if condition is None else condition.of(asked),
                )
            return eps.index_copy(0, chosen, predicted[: len(chosen)])

        return target


class Stopwatch:
    """Seconds that the device spends in a stretch of code; the host does not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if self._on_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            since = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - since

    def take(self) -> float:
        """Since the last call; starts again at zero."""
        if self._events:
            self._events[-1][1].synchronize()
        seconds = self._seconds + sum(begin.elapsed_time(end) / 1000 for begin, end in self._events)
        self._seconds = 0.0
        self._events.clear()
        return seconds
