"""One rank of a run: its phases and periods. No ray; what must be asked of the coordinator goes through a protocol."""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

import numpy as np
import torch

from cdt.data.plan import stream_key
from cdt.data.stream import MixtureStream
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.sampler import sample
from cdt.dual import (
    DualProblem,
    DualState,
    Sums,
    journal_rows,
    lagrangian,
    mixture_probabilities,
    newly_capped,
    worst_constraint,
)
from cdt.errors import RunError
from cdt.monitor.pictures import image_grid, save_picture
from cdt.monitor.recorder import Recorder
from cdt.training import calibrate, checkpoint
from cdt.training.account import Account
from cdt.training.ema import Ema
from cdt.training.engine import Engine
from cdt.training.job import Job, prepare
from cdt.training.meter import Meter
from cdt.training.probe import Probe
from cdt.training.ranks import Ranks
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


class Worker:
    """Every rank runs the same phases; rank 0 also records and speaks with the coordinator."""

    def __init__(self, job: Job, coordinator: Coordinator) -> None:
        self.job, self.config, self.coordinator = job, job.config, coordinator
        config, ranks = job.config, Ranks.current()
        self.ranks, self.prepared = ranks, prepare(config)
        self.index, self.requirements = self.prepared.index, self.prepared.requirements
        self.epoch = config.data.epoch_samples or self.index.count
        self.diffusion = Diffusion(config.diffusion)
        self.engine = Engine(self.prepared.build, config.engine, config.train, ranks)
        self.ema = Ema(self.engine)
        self.stream = MixtureStream(
            config.data,
            self.index,
            self.requirements.rows,
            self.requirements.cells,
            self.prepared.mixture_of(config.data.estimator),
            lambdas=np.zeros(len(self.requirements.names)),
            batch_size=config.train.batch_size,
            seed=config.run.seed,
            rank=ranks.rank,
            world=ranks.world,
        )
        self.reader = self.stream.reader
        self.problem: DualProblem | None = None
        self.dual = DualState(period=0, lambdas=np.zeros(len(self.requirements.names)))
        self.baseline = np.zeros(0)
        self.step = 0
        self._make_probe()
        if job.checkpoint is not None:
            self._restore()
        self.recorder = Recorder(job.directory, self.step) if ranks.first else None
        train = config.train
        self.account = Account(
            self.stream, ranks, batch_size=train.batch_size, epoch=self.epoch, log_steps=train.log_steps
        )

    def run(self) -> None:
        config, train = self.config, self.config.train
        constrained = bool(self.requirements.names)
        self._event("start", f"step {self.step} of {train.total_steps} on {self.ranks.world} workers")
        meter = Meter(train.batch_size)
        while self.step < train.total_steps:
            phase = train.phase(self.step, constrained)
            if phase == "dual" and self.problem is None:
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
                learning_rate=train.learning_rate(self.step),
                seed=config.run.seed,
                batch_size=train.batch_size,
            )
            self.ema.update(train.ema_decay_at(self.step))
            self.step += 1
            self.account.after(self.step, self.step == train.total_steps, self.recorder)
            meter.count(loss, waited)
            if phase == "dual" and (self.step - train.warm_steps) % self.prepared.period_steps == 0:
                self._dual_step()
            if self.step % train.log_steps == 0 or self.step == train.total_steps:
                self._report(phase, meter)
            if train.saves_after(self.step):
                self._save()
        self._event("end", f"{self.step} steps done")
        if self.recorder:
            self.recorder.close()

    def _make_probe(self) -> None:
        """Windows and probe are functions of data and seed, so a restarted worker finds the same."""
        config = self.config
        process, requirements = self.diffusion.process, self.requirements
        self.windows = calibrate.find_windows(requirements, self.reader, process, self.ranks, config.run.seed)
        self.probe = Probe(
            requirements.rows,
            self.windows,
            config.dual.probe_draws,
            self.reader,
            process,
            self.ranks,
            seed=config.run.seed,
            chunk=max(1, config.train.batch_size // self.ranks.world),
        )
        cell_windows = np.full(len(requirements.cell_shares), process.logsnr_max)
        cell_windows[requirements.member_cells] = self.windows[requirements.member_constraints]
        self.sums = PeriodSums(cell_windows, self.diffusion, self.ranks.device)

    def _calibrate(self) -> None:
        """Thresholds from the warm EMA model; the multipliers start to act on the stream."""
        self._say("calibration")
        self.sums.take()
        with self.engine.network_with(self.ema.fragments) as network:
            values = self.probe.measure(network)
        losses = self.probe.sums(values).mean()
        self.baseline = self.probe.gather(values)
        self.problem = calibrate.pose_problem(self.requirements, losses, self.config.dual)
        self.dual = calibrate.first_state(self.requirements, self.config.dual)
        self.stream.steer(self.dual.lambdas)
        if self.recorder:
            rows = calibrate.describe(self.requirements, self.windows, self.problem, losses)
            (self.job.directory / "calibration.json").write_text(json.dumps(rows, indent=1) + "\n")
            for row in rows:
                text = (
                    f"{row['requirement']}: loss {row['warm_loss']:.3f} nats up to log-SNR {row['window']:g}, "
                    f"threshold {row['threshold']:.3f}; the warm model's own share was not measured, the data's "
                    f"({row['share_in_data']:.4f}) stands for it"
                )
                self.recorder.event(self.step, "calibrated", text, **row)

    def _dual_step(self) -> None:
        """Reduce the constraint sums, ask the coordinator, steer the stream."""
        assert self.problem is not None
        cell_sums = self.ranks.sum(self.sums.take())
        if self.config.dual.estimate == "probe":
            with self.engine.network_with(self.ema.fragments) as network:
                values = self.probe.measure(network)
            sums = self.probe.sums(values - self.probe.mine(self.baseline))
        else:
            sums = constraint_sums(self.requirements, cell_sums[:-1])
        state = None
        if self.ranks.first:
            state = self.coordinator.dual_step(self.step, self.problem, self.dual, sums)
        before, self.dual = self.dual, self.ranks.from_first(state)
        self.stream.steer(self.dual.lambdas)
        if self.recorder:
            names = ["base", *self.requirements.names]
            probabilities = dict(zip(names, mixture_probabilities(self.dual.lambdas).tolist(), strict=True))
            self.recorder.dual(self.step, journal_rows(self.problem, self.dual, self.step), probabilities)
            self.recorder.scalars(self.step, self._losses(cell_sums))
            for name in newly_capped(self.problem, before, self.dual):
                text = (
                    f"the multiplier of {name} reached its cap of {self.problem.cap:g}: it may be impossible to satisfy"
                )
                self.recorder.event(self.step, "cap", text, constraint=name)

    def _losses(self, cell_sums: np.ndarray) -> dict[str, float]:
        """The period's losses on training batches, nats: base draws over the full range, constraints windowed."""
        means = constraint_sums(self.requirements, cell_sums[:-1]).mean()
        named = zip(self.requirements.names, means.tolist(), strict=True)
        values = {f"training_loss/{name}": mean for name, mean in named if np.isfinite(mean)}
        base_total, _, base_count = cell_sums[-1]
        if base_count and self.problem is not None and np.isfinite(self.dual.losses).all():
            base = base_total / base_count
            values["training_loss/base"] = base
            values["dual/lagrangian"] = lagrangian(base, self.dual.losses, self.problem.thresholds, self.dual.lambdas)
        return values

    def _report(self, phase: Phase, meter: Meter) -> None:
        """One row of metrics, averaged over all ranks since the last, and a word to the progress bar."""
        values = meter.take(self.ranks)
        if not np.isfinite(values["loss"]):
            raise RunError(f"the loss is not finite at step {self.step}: lower train.lr (now {self.config.train.lr:g})")
        values |= {"grad_norm": self.engine.gradient_norm(), "lr": self.config.train.learning_rate(self.step - 1)}
        if self.recorder:
            self.recorder.metrics(self.step, {"epoch": self.step * self.config.train.batch_size / self.epoch, **values})
            self._say(phase, loss=values["loss"], samples_per_s=values["samples_per_s"])

    def _say(self, phase: str, **values: float) -> None:
        if self.ranks.first:
            worst = worst_constraint(self.problem, self.dual)
            total = self.config.train.total_steps
            self.coordinator.progress({"phase": phase, "step": self.step, "total": total, "worst": worst, **values})

    def _event(self, kind: str, text: str) -> None:
        if self.recorder:
            self.recorder.event(self.step, kind, text)

    def _save(self) -> None:
        dual = None
        if self.problem is not None:
            dual = {"problem": self.problem.to_json(), "state": self.dual.to_json()}
        state = checkpoint.TrainState(self.step, self.ranks.world, self.stream.state(), dual, self.baseline.tolist())
        path = checkpoint.save(self.job.directory / "checkpoints", state, self.engine, self.ema, self.ranks)
        self._event("saved", f"checkpoints/{path.name}")
        self._draw_grid()

    def _draw_grid(self) -> None:
        count = self.config.train.grid_images
        if not count:
            return
        with self.engine.network_with(self.ema.fragments) as network:
            images = sample(
                network,
                self.diffusion.process,
                self.index.shape,
                count,
                seed=self.config.run.seed,
                sampler=self.config.sampler.name,
                steps=self.config.sampler.steps,
                batch_size=count,
                device=self.ranks.device,
                bounded=self.index.dtype == "uint8",
            )
        if self.recorder:
            picture = image_grid(images)
            save_picture(picture, self.job.directory / "samples" / f"step-{self.step:09d}.png")
            self.recorder.grid(self.step, picture)

    def _restore(self) -> None:
        """Continues from the job's checkpoint; a fork takes weights and base stream, and has its own dual side."""
        assert self.job.checkpoint is not None
        state = checkpoint.read_state(self.job.checkpoint)
        self.engine.load(self.job.checkpoint)
        self.ema.load(checkpoint.read_weights(self.job.checkpoint))
        self.stream.restore(state.stream)
        self.step = state.step
        if state.dual is not None and not self.job.fork:
            self.problem = DualProblem.from_json(state.dual["problem"])
            self.dual = DualState.from_json(state.dual["state"])
            self.baseline = np.asarray(state.baseline)
