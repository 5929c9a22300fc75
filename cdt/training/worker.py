"""One rank of a run: its phases and periods. No ray; what must be asked of the coordinator goes through a protocol."""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

import numpy as np
import torch

from cdt.checkpoints import checkpoint, universal
from cdt.checkpoints.saving import Saver
from cdt.data.plan.order import stream_key
from cdt.data.stream import MixtureStream
from cdt.diffusion.loss import Diffusion
from cdt.dual import DualProblem, DualState, Sums, journal_rows, journaled, news, worst_constraint
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine
from cdt.engine.ranks import Ranks
from cdt.measure.statistics import Statistics
from cdt.monitor.pictures import save_picture
from cdt.monitor.recorder import Recorder
from cdt.origin.teacher_network import ReplayedRows, TeacherNetwork
from cdt.training import calibrate
from cdt.training.binding import bind
from cdt.training.data_audit import DataAudit
from cdt.training.dual_side import DualSide
from cdt.training.health import DivergedError, Health
from cdt.training.job import Job
from cdt.training.meter import Meter
from cdt.training.previews import record_gaps, sample_grid
from cdt.training.schedule import Phase
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums, constraint_sums


class Coordinator(Protocol):
    """The central side of a run, wherever it lives."""

    def dual_step(self, step: int, problem: DualProblem, state: DualState, sums: Sums) -> DualState:
        """Computes and journals the next dual state."""
        ...

    def progress(self, report: dict[str, Any]) -> None:
        """Takes what the user should see; never waited for."""
        ...

    def leaving(self) -> bool:
        """Whether the run was asked to save and end."""
        ...


class Worker:
    """Every rank runs the same phases; rank 0 also records and speaks with the coordinator."""

    def __init__(self, job: Job, coordinator: Coordinator) -> None:
        self.job, self.config, self.coordinator = job, job.config, coordinator
        config, ranks = job.config, Ranks.current()
        self.train, self.ranks, self.bound = config.train, ranks, bind(config)
        self.index, self.requirements = self.bound.rows(), self.bound.requirements
        self.epoch = config.data.epoch_samples or self.requirements.base
        self.diffusion = Diffusion(config.diffusion)
        weights = self.bound.first_weights() if job.checkpoint is None else None
        self.engine = Engine(self.bound.build, config.engine, config.train, ranks, weights)
        origin, replay = self.bound.origin, self.bound.replay
        pretrained = origin and TeacherNetwork(self.engine, origin, config.replay, self.index.shape)
        self.teacher = None
        if pretrained is not None and replay is not None:
            replayed = torch.as_tensor(self.requirements.replayed, device=ranks.device)
            rows = ReplayedRows(replayed, self.bound.first_replayed, self.bound.answers)
            self.teacher = pretrained.teacher(rows)
        self.ema = Ema(self.engine)
        self.stream = MixtureStream(
            config.data,
            self.index,
            self.requirements.rows,
            self.requirements.cells,
            self.bound.mixture_of(config.data.estimator),
            lambdas=self._first_lambdas(),
            batch_size=config.train.batch_size,
            seed=config.run.seed,
            rank=ranks.rank,
            world=ranks.world,
        )
        process = self.diffusion.process
        fresh = None if replay is None else replay.fresh()
        statistics = Statistics(
            config,
            self.bound.index,
            self.stream.reader,
            self.requirements,
            process,
            ranks,
            teacher=None if pretrained is None else pretrained.measured_against,
            fresh=fresh,
        )
        self.dual = DualSide(config, self.requirements, statistics)
        self.sums = self._period_sums(np.full(len(self.requirements.names), process.logsnr_max))
        self.step = 0
        self.loss: float | None = None
        self.health = Health(config.train.max_skipped)
        self.saver = Saver(job.directory / "checkpoints", self.engine, self.ema, ranks)
        self._saved_at = time.monotonic()
        changed = self._restore() if job.checkpoint is not None else []
        self.recorder = Recorder(job.directory, self.step) if ranks.first else None
        for text in changed:
            self._event("budget", text)
        self.audit = DataAudit(
            self.stream, ranks, batch_size=self.train.batch_size, epoch=self.epoch, log_steps=self.train.log_steps
        )

    def run(self) -> bool:
        """Whether it came to its end; it was asked to leave before, and saved, if not."""
        try:
            self._train()
            self._commit()
            self._end()
        finally:
            if self.ranks.world == 1:
                self._commit()  # nobody else has to agree: what was begun is not lost to an interrupt
            self.saver.close()
            if self.recorder:
                self.recorder.close()
        return self.step == self.train.total_steps

    def _train(self) -> None:
        config, constrained = self.config, bool(self.requirements.names)
        self._event("start", f"step {self.step} of {self.train.total_steps} on {self.ranks.world} workers")
        meter, leaving = Meter(config.train.batch_size), False
        while self.step < self.train.total_steps and not leaving:
            phase = self.train.phase(self.step, constrained)
            if phase == "dual" and self.dual.problem is None:
                self._calibrate()
            waited = time.monotonic()
            batch = next(self.stream).to(self.ranks.device)
            waited = time.monotonic() - waited
            # What dropout draws is a function of the position too.
            torch.manual_seed(stream_key(config.run.seed, f"dropout {self.step} {self.ranks.rank}") >> 1)
            loss = train_step(
                self.engine,
                self.diffusion,
                batch,
                self.sums,
                self.teacher,
                learning_rate=self.train.learning_rate(self.step),
                seed=config.run.seed,
                batch_size=config.train.batch_size,
            )
            self.ema.update(self.train.ema_decay_at(self.step))
            self.step += 1
            self._check_health()
            self.audit.after(self.step, self.step == self.train.total_steps, self.recorder)
            meter.count(loss, waited, self.engine.applied)
            if phase == "dual" and self.bound.moves_multipliers(self.step - self.train.warm_steps):
                self._dual_step()
            due = self.train.saves_after(self.step) and not self._withheld()
            if self.step % self.train.log_steps == 0 or self.step == self.train.total_steps:
                self._report(phase, meter)
                by_the_clock, leaving = self._occasion()
                due = due or (by_the_clock and not self._withheld()) or leaving
                if self.saver.busy and self.saver.written():
                    self._commit()
            if due:
                self._save()

    def _first_lambdas(self) -> np.ndarray:
        """0 in a warm start; without one the dual side's first, from the first batch on."""
        if self.train.warm_steps:
            return np.zeros(len(self.requirements.names))
        return calibrate.first_state(self.requirements, self.config.dual).lambdas

    def _period_sums(self, windows: np.ndarray) -> PeriodSums:
        process, requirements = self.diffusion.process, self.requirements
        by_cell = np.full(len(requirements.cell_shares), process.logsnr_max)
        by_cell[requirements.member_cells] = windows[requirements.member_constraints]
        return PeriodSums(by_cell, self.diffusion, self.ranks.device)

    def _calibrate(self) -> None:
        """Thresholds from the warm EMA model; the multipliers start to act on the stream."""
        self._say("calibration")
        windows = calibrate.find_windows(
            self.requirements, self.stream.reader, self.diffusion.process, self.ranks, self.config.run.seed
        )
        with self.engine.network_with(self.ema.fragments) as network:
            rows = self.dual.calibrate(network, windows)
        self.sums = self._period_sums(windows)
        self.stream.steer(self.dual.state.lambdas)
        if self.recorder:
            checkpoint.write_text(self.job.directory / "calibration.json", json.dumps(rows, indent=1) + "\n")
            for row in rows:
                self.recorder.event(self.step, "calibrated", calibrate.sentence(row), **row)
            if told := self.dual.statistics.told_of_samples():
                self.recorder.event(self.step, "held out", told)
        self._compare_held_out()

    def _dual_step(self) -> None:
        """Reduce the constraint sums, ask the coordinator, steer the stream."""
        problem, before = self.dual.problem, self.dual.state
        assert problem is not None
        cell_sums = self.ranks.sum(self.sums.take())
        if self.config.dual.estimate == "training":
            sums = constraint_sums(self.requirements, cell_sums[:-1])
        else:
            with self.engine.network_with(self.ema.fragments) as network:
                sums = self.dual.measure(network)
        state = None
        if self.ranks.first:
            state = self.coordinator.dual_step(self.step, problem, before, sums)
        after = self.dual.state = self.ranks.from_first(state)
        self.stream.steer(after.lambdas)
        if self.recorder:
            rows = journal_rows(problem, after, self.step, journaled(problem, before, after))
            self.recorder.dual(self.step, rows, after.lambdas)
            self.recorder.scalars(self.step, self.dual.training_losses(cell_sums))
            for alarm, names, text in news(problem, before, after):
                self.recorder.event(self.step, alarm, text, constraints=names)
        base_total, _, base_count = cell_sums[-1]
        self.loss = float(base_total / base_count) if base_count else None
        if self.dual.ends:
            self.train = self.train.ending_at(self.step)
            self._event(
                "satisfied", f"all requirements satisfied for {after.satisfied_for} periods: dual training ends"
            )

    def _report(self, phase: Phase, meter: Meter) -> None:
        """One row of metrics, averaged over all ranks since the last, and a word to the progress bar."""
        steps, values = meter.steps, meter.take(self.ranks)
        values |= {"grad_norm": self.engine.gradient_norm(), "lr": self.train.learning_rate(self.step - 1)}
        values["skipped_updates"] = self.health.take()
        if self.teacher is not None:
            values["teacher_s"] = float(self.ranks.sum(np.array(self.teacher.time.take()))) / self.ranks.world / steps
        if told := self.health.spike(values["loss"]):
            self._event("loss spike", told)
        if self.recorder:
            self.recorder.metrics(self.step, {"epoch": self.step * self.train.batch_size / self.epoch, **values})
            self._say(phase, loss=values["loss"], samples_per_s=values["samples_per_s"])

    def _check_health(self) -> None:
        """Raises DivergedError, on every rank, after too many updates in a row that could not be made."""
        too_many = self.health.count(self.engine.applied)
        if not self.engine.applied:
            self._event("skipped", f"update {self.step} is left out on all ranks: its gradient is not finite")
        if too_many:
            self._commit()
            raise DivergedError(
                f"{self.health.in_a_row} updates in a row could not be made by step {self.step}, as their gradients "
                f"were not finite: lower train.lr (now {self.config.train.lr:g}), which may change when the run is "
                "resumed, or look for values out of the ordinary in the data",
                self.stream.state().batch,
            )

    def _withheld(self) -> bool:
        """Whether a save that is due by the step or the clock waits until updates can be made again."""
        return self.health.in_a_row > 0 and self.step not in self.train.phase_ends

    def _occasion(self) -> tuple[bool, bool]:
        """What one rank knows and all must act upon at the same step: a save due by the clock, a notice to leave."""
        minutes = self.train.checkpoint_minutes
        due = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        return self.ranks.from_first((due, self.coordinator.leaving()) if self.ranks.first else None)

    def _end(self) -> None:
        if self.step < self.train.total_steps:
            self._event("left", f"asked to leave: saved after {self.step} of {self.train.total_steps} steps")
        else:
            self._event("end", f"{self.step} steps done")

    def _say(self, phase: str, **values: float) -> None:
        if self.ranks.first:
            worst = worst_constraint(self.dual.problem, self.dual.state)
            total = self.train.total_steps
            self.coordinator.progress({"phase": phase, "step": self.step, "total": total, "worst": worst, **values})

    def _event(self, kind: str, text: str) -> None:
        if self.recorder:
            self.recorder.event(self.step, kind, text)

    def _save(self) -> None:
        state = checkpoint.TrainState(
            self.step,
            self.ranks.world,
            self.train.dual_steps,
            self.stream.state(),
            self.dual.to_json(),
            self.loss,
            self.sums.everyones(self.ranks) if self.dual.problem else None,
        )
        self._commit()
        self.saver.begin(state)
        self._saved_at = time.monotonic()
        if self.step in self.train.phase_ends:
            # What comes next may end the run, and a run without a checkpoint can be removed.
            self._commit()
        self._compare_held_out()
        self._draw_grid()

    def _commit(self) -> None:
        """Waits until the save that was begun, if one was, is a checkpoint."""
        if not self.saver.busy:
            return
        path = self.saver.finish()
        self._event("saved", f"checkpoints/{path.name}")
        if self.ranks.first:
            checkpoint.prune(path.parent, self.train.keep_checkpoints, self.train.phase_ends)

    def _compare_held_out(self) -> None:
        if self.dual.problem is None or not self.dual.statistics.holds_out:
            return
        with self.engine.network_with(self.ema.fragments) as network:
            gaps = self.dual.statistics.held_out_gaps(network, self.dual.state.lambdas)
        if self.recorder and gaps:
            record_gaps(self.recorder, self.step, gaps)

    def _draw_grid(self) -> None:
        if not self.train.grid_images:
            return
        with self.engine.network_with(self.ema.fragments) as network:
            picture = sample_grid(network, self.config, self.diffusion.process, self.index, self.ranks)
        if self.recorder:
            save_picture(picture, self.job.directory / "samples" / f"step-{self.step:09d}.png")
            self.recorder.grid(self.step, picture)

    def _restore(self) -> list[str]:
        """Continues from the job's checkpoint; a fork takes weights and base stream, and has its own dual side.

        Returns what changed since, in words.
        """
        assert self.job.checkpoint is not None
        state = checkpoint.read_state(self.job.checkpoint)
        universal.load(self.job.checkpoint, self.job.directory / "checkpoints", self.engine, self.ema, self.ranks)
        self.stream.restore(state.stream)
        self.stream.skip_to(self.job.skip_to)
        self.step, self.loss = state.step, state.loss
        if self.job.fork or state.dual is None:
            return []
        changed = self.dual.restore(state.dual)
        self.sums = self._period_sums(self.dual.windows)
        if state.sums is not None:
            self.sums.go_on_from(state.sums, self.ranks)
        if self.dual.ends:
            self.train = self.train.model_copy(update={"dual_steps": state.dual_steps})
        return changed
