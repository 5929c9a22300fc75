"""The audit of the data over all ranks: which samples are unusable, and whether all planned samples arrived."""

from __future__ import annotations

import numpy as np

from cdt.data.read.bad import BadSample
from cdt.data.stream import MixtureStream
from cdt.engine.ranks import Ranks
from cdt.errors import RunError
from cdt.monitor.recorder import Recorder


class DataAudit:
    """Ranks exchange bad samples every ``log_steps`` steps, and compare planned and arrived samples every epoch."""

    def __init__(self, stream: MixtureStream, ranks: Ranks, *, batch_size: int, epoch: int, log_steps: int) -> None:
        self._stream, self._ranks = stream, ranks
        self._batch_size, self._epoch, self._log_steps = batch_size, epoch, log_steps
        self._promised = np.array(list(stream.state().counters.values()))

    def after(self, step: int, last: bool, recorder: Recorder | None) -> None:
        """To be called after every step; a collective on some. Raises RunError for too many bad or for lost samples."""
        epoch = step * self._batch_size // self._epoch
        ends = last or epoch > (step - 1) * self._batch_size // self._epoch
        if ends or step % self._log_steps == 0:
            self._share(step, recorder)
        if ends:
            self._close(step, epoch, recorder)

    def _share(self, step: int, recorder: Recorder | None) -> None:
        ledger = self._stream.ledger
        ledger.add(self._stream.reader.bad.values())
        mine = [(sample.row, sample.kind, sample.reason) for sample in ledger.take_new()]
        everyone = self._ranks.all_of(mine)
        bad = [BadSample(*sample) for found in everyone for sample in found]
        if bad and recorder:
            text = f"{len(bad)} samples are unusable; each was replaced by another sample of its class"
            recorder.event(step, "bad_data", text, samples=ledger.describe(bad))
        ledger.add(bad)
        ledger.take_new()
        # Here all ranks know the same, so all stop: one that stopped alone would block the others in a collective.
        ledger.check()

    def _close(self, step: int, epoch: int, recorder: Recorder | None) -> None:
        state = self._stream.state()
        counters = np.array(list(state.counters.values()))
        promised, self._promised = counters - self._promised, counters
        arrived, replaced = self._ranks.sum(self._stream.ledger.take_counts()).astype(int)
        streams = {
            name: {"promised": int(p), "arrived": int(a), "replaced": int(r)}
            for name, p, a, r in zip(state.counters, promised, arrived, replaced, strict=True)
            if p or a or r
        }
        text = f"{promised.sum():,} samples were promised, {arrived.sum():,} arrived, {replaced.sum():,} were replaced"
        if recorder:
            recorder.event(step, "data", text, epoch=epoch, streams=streams, bad=self._stream.ledger.kinds())
        if (arrived + replaced != promised).any():
            raise RunError(f"samples were lost by step {step}: {text}")
