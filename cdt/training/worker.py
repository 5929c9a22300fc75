"""One rank of a run: its phases and periods. It does not import Ray: it calls the coordinator through a protocol."""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

import numpy as np
import torch

from cdt import filenames
from cdt.checkpoints import checkpoint, universal
from cdt.checkpoints.saving import Saver
from cdt.data.plan.order import stream_key
from cdt.dual import LINKS, DualProblem, DualState, Sums, journal_rows, journaled, news, worst_constraint
from cdt.files import write_text
from cdt.monitor.pictures import save_picture
from cdt.monitor.recorder import Recorder
from cdt.training import calibrate
from cdt.training.assemble import Parts
from cdt.training.data_audit import DataAudit
from cdt.training.health import DivergedError, Health, UnsoundEndError
from cdt.training.meter import Meter
from cdt.training.previews import record_gaps, sample_grid
from cdt.training.progress import Progress
from cdt.training.schedule import Phase
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums, constraint_sums


class Coordinator(Protocol):
    """The coordinator of a run, in this process or another."""

    def dual_step(self, step: int, problem: DualProblem, state: DualState, sums: Sums) -> DualState:
        """Computes and journals the next dual state."""
        ...

    def progress(self, report: dict[str, Any]) -> None:
        """Receives what the user should see; the worker does not wait for it."""
        ...

    def leaving(self) -> bool:
        """Whether the run was asked to save and end."""
        ...


class Worker:
    """Every rank runs the same phases; rank 0 also records and speaks with the coordinator."""

    def __init__(self, parts: Parts, coordinator: Coordinator) -> None:
        self.parts, self.coordinator = parts, coordinator
        self.config, self.ranks, self.engine, self.ema = parts.config, parts.ranks, parts.engine, parts.ema
        self.stream, self.dual = parts.stream, parts.dual
        train = self.config.train
        self.epoch = self.config.data.epoch_samples or parts.requirements.base
        self.progress = Progress(train)
        self.health = Health(train.max_skipped)
        self.sums = self._period_sums(np.full(len(parts.requirements.names), parts.diffusion.process.logsnr_max))
        self.saver = Saver(parts.job.directory / filenames.CHECKPOINTS, self.engine, self.ema, self.ranks)
        changed = self._restore() if parts.job.checkpoint is not None else []
        self.recorder = Recorder(parts.job.directory, self.progress.step) if self.ranks.first else None
        for text in changed:
            self._event("budget", text)
        self.audit = DataAudit(
            self.stream, self.ranks, batch_size=train.batch_size, epoch=self.epoch, log_steps=train.log_steps
        )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress.step

    def run(self) -> bool:
        """Trains to the end and returns True; False if the run was asked to leave before, and saved.

        Raises UnsoundEndError, once all is saved, where the loss is not finite at the end.
        """
        try:
            self._train()
            self._commit()
            self._end()
        finally:
            if self.ranks.world == 1:
                self._commit()  # no other rank has to agree: a save that was begun is not lost to an interrupt
            self.saver.close()
            if self.recorder:
                self.recorder.close()
        return self.progress.finished

    def _train(self) -> None:
        parts, config, progress = self.parts, self.config, self.progress
        on = f"{self.ranks.world} workers{self._precisions()}"
        self._event("start", f"step {self.step} of {progress.schedule.total_steps} on {on}")
        meter, leaving = Meter(config.train.batch_size), False
        penalties = list(parts.bound.penalties.values())
        while not progress.finished and not leaving:
            phase = progress.schedule.phase(self.step, constrained=bool(parts.requirements.names))
            if phase == "dual" and self.dual.problem is None:
                self._calibrate()
            waited = time.monotonic()
            batch = next(self.stream).to(self.ranks.device)
            waited = time.monotonic() - waited
            # What dropout draws is a function of the position too.
            torch.manual_seed(stream_key(config.run.seed, f"dropout {self.step} {self.ranks.rank}") >> 1)
            with self.engine.training_precision():
                loss = train_step(
                    self.engine,
                    parts.diffusion,
                    batch,
                    self.sums,
                    parts.teacher,
                    learning_rate=progress.schedule.learning_rate(self.step),
                    seed=config.run.seed,
                    batch_size=config.train.batch_size,
                    penalties=penalties,
                )
            self.ema.update(config.train.ema_decay_at(self.step))
            progress.step += 1
            self._check_health()
            self.audit.after(self.step, progress.finished, self.recorder)
            meter.count(loss, waited, self.engine.applied)
            if phase == "dual" and parts.bound.moves_multipliers(self.step - config.train.warm_steps):
                self._dual_step()
            due = progress.schedule.saves_after(self.step) and not self._withheld()
            if self.step % config.train.log_steps == 0 or progress.finished:
                self._report(phase, meter)
                by_the_clock, leaving = self._ask_first_rank()
                due = due or (by_the_clock and not self._withheld()) or leaving
                if self.saver.busy and self.saver.written():
                    self._commit()
            if due:
                self._save()

    def _precisions(self) -> str:
        """Which device computes what how exactly; on CPUs, fp32 is fp32."""
        if self.ranks.device.type == "cpu":
            return ""
        engine, name = self.config.engine, torch.cuda.get_device_name(self.ranks.device)
        bits = "the same bits each time" if engine.deterministic else "bits may differ each time"
        return f" ({name}: training in {engine.precision}, evaluation in {engine.eval_precision}, {bits})"

    def _period_sums(self, windows: np.ndarray) -> PeriodSums:
        process, requirements = self.parts.diffusion.process, self.parts.requirements
        by_cell = np.full(len(requirements.cell_shares), process.logsnr_max)
        by_cell[requirements.member_cells] = windows[requirements.member_constraints]
        return PeriodSums(by_cell, self.parts.diffusion, self.ranks.device)

    def _calibrate(self) -> None:
        """Thresholds from the warm EMA model; the multipliers start to act on the stream."""
        self._say("calibration")
        windows = calibrate.find_windows(
            self.parts.requirements,
            self.stream.reader,
            self.parts.diffusion.process,
            self.ranks,
            self.config.run.seed,
        )
        with self.engine.network_with(self.ema.fragments) as network:
            rows = self.dual.calibrate(network, windows)
        self.sums = self._period_sums(windows)
        self.stream.steer(self.dual.state.lambdas)
        if self.recorder:
            write_text(self.parts.job.directory / filenames.CALIBRATION, json.dumps(rows, indent=1) + "\n")
            for row, constraint in zip(rows, self.config.constraints.values(), strict=True):
                self.recorder.event(self.step, "calibrated", calibrate.sentence(row, LINKS[constraint.link]), **row)
            if text := self.dual.statistics.probed.describe_samples():
                self.recorder.event(self.step, "held out", text)
        self._compare_held_out()

    def _dual_step(self) -> None:
        """Reduce the constraint sums, ask the coordinator, steer the stream."""
        problem, before = self.dual.problem, self.dual.state
        assert problem is not None
        cell_sums = self.ranks.sum(self.sums.take())
        if self.config.dual.estimate == "training":
            sums = constraint_sums(self.parts.requirements, cell_sums[:-1])
        else:
            with self.engine.network_with(self.ema.fragments) as network:
                sums = self.dual.measure(network)
        self.health.measures_finite = bool(np.isfinite(sums.total).all())
        state = None
        if self.ranks.first:
            state = self.coordinator.dual_step(self.step, problem, before, sums)
        after = self.dual.state = self.ranks.from_first(state)
        self.stream.steer(after.lambdas)
        if self.recorder:
            rows = journal_rows(problem, after, self.step, journaled(problem, before, after))
            self.recorder.dual(self.step, rows, after.lambdas[problem.draws], problem.undrawn)
            self.recorder.scalars(self.step, self.dual.training_losses(cell_sums))
            for alarm, names, text in news(problem, before, after):
                self.recorder.event(self.step, alarm, text, constraints=names)
        base_total, _, base_count = cell_sums[-1]
        self.progress.loss = float(base_total / base_count) if base_count else None
        if self.dual.ends:
            self.progress.end_dual_training()
            self._event(
                "satisfied", f"all requirements satisfied for {after.satisfied_for} periods: dual training ends"
            )

    def _report(self, phase: Phase, meter: Meter) -> None:
        """One row of metrics, averaged over all ranks since the last, and an update of the progress bar."""
        steps, values = meter.steps, meter.take(self.ranks)
        values |= {"grad_norm": self.engine.gradient_norm(), "lr": self.progress.schedule.learning_rate(self.step - 1)}
        values["skipped_updates"] = self.health.take()
        if self.parts.teacher is not None:
            values["teacher_s"] = (
                float(self.ranks.sum(np.array(self.parts.teacher.time.take()))) / self.ranks.world / steps
            )
        if text := self.health.spike(values["loss"]):
            self._event("loss spike", text)
        if self.recorder:
            self.recorder.metrics(self.step, {"epoch": self.step * self.config.train.batch_size / self.epoch, **values})
            self._say(phase, loss=values["loss"], samples_per_s=values["samples_per_s"])

    def _check_health(self) -> None:
        """Raises DivergedError, on every rank, after too many consecutive updates that were skipped."""
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
        return self.health.in_a_row > 0 and self.step not in self.progress.schedule.phase_ends

    def _ask_first_rank(self) -> tuple[bool, bool]:
        """Whether a save is due by the clock, and whether the run was asked to leave: the same on all ranks."""
        answer = (self.progress.save_is_due_by_the_clock(), self.coordinator.leaving()) if self.ranks.first else None
        return self.ranks.from_first(answer)

    def _end(self) -> None:
        if not self.progress.finished:
            self._event(
                "left", f"asked to leave: saved after {self.step} of {self.progress.schedule.total_steps} steps"
            )
        else:
            self._event("end", f"{self.step} steps done")
            if not self.health.sound:
                raise UnsoundEndError(
                    f"the loss is not finite at the end, after {self.step} steps: this model is of no use; train again "
                    f"with a lower train.lr (now {self.config.train.lr:g}), or look for values out of the ordinary in "
                    f"the data (the run's log is {self.parts.job.directory / filenames.EVENTS})"
                )

    def _say(self, phase: str, **values: float) -> None:
        if self.ranks.first:
            worst = worst_constraint(self.dual.problem, self.dual.state)
            total = self.progress.schedule.total_steps
            self.coordinator.progress({"phase": phase, "step": self.step, "total": total, "worst": worst, **values})

    def _event(self, kind: str, text: str) -> None:
        if self.recorder:
            self.recorder.event(self.step, kind, text)

    def _save(self) -> None:
        state = checkpoint.TrainState(
            self.step,
            self.ranks.world,
            self.progress.schedule.dual_steps,
            self.stream.state(),
            self.dual.to_json(),
            self.progress.loss,
            self.sums.everyones(self.ranks) if self.dual.problem else None,
        )
        self._commit()
        self.saver.begin(state)
        self.progress.saved_at = time.monotonic()
        if self.step in self.progress.schedule.phase_ends:
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
            checkpoint.prune(path.parent, self.config.train.keep_checkpoints, self.progress.schedule.phase_ends)

    def _compare_held_out(self) -> None:
        if self.dual.problem is None or not self.dual.statistics.probed.holds_out:
            return
        with self.engine.network_with(self.ema.fragments) as network:
            statistics = self.dual.statistics
            gaps = statistics.probed.held_out_gaps(network, self.dual.state.lambdas, statistics.room)
        if self.recorder and gaps:
            record_gaps(self.recorder, self.step, gaps)

    def _draw_grid(self) -> None:
        if not self.config.train.grid_images:
            return
        with self.engine.network_with(self.ema.fragments) as network:
            picture = sample_grid(
                network, self.parts.sampler, self.config.train.grid_images, self.config.run.seed, self.ranks
            )
        if self.recorder:
            save_picture(picture, self.parts.job.directory / filenames.SAMPLES / f"step-{self.step:09d}.png")
            self.recorder.grid(self.step, picture)

    def _restore(self) -> list[str]:
        """Continues from the job's checkpoint; a fork takes weights and base stream, and has its own dual side.

        Returns what changed since, in words.
        """
        job = self.parts.job
        assert job.checkpoint is not None
        state = checkpoint.read_state(job.checkpoint)
        universal.load(job.checkpoint, job.directory / filenames.CHECKPOINTS, self.engine, self.ema, self.ranks)
        self.stream.restore(state.stream)
        self.stream.skip_to(job.skip_to)
        self.progress.step, self.progress.loss = state.step, state.loss
        if job.fork or state.dual is None:
            return []
        changed = self.dual.restore(state.dual)
        self.sums = self._period_sums(self.dual.windows)
        if state.sums is not None:
            self.sums.go_on_from(state.sums, self.ranks)
        if self.dual.ends:
            self.progress.schedule = self.config.train.model_copy(update={"dual_steps": state.dual_steps})
        return changed
