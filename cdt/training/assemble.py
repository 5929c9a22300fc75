"""The parts of one rank, built from a job that was checked before: nothing is refused here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cdt.config import RunConfig
from cdt.constraints import Requirements
from cdt.data.format.index import Index
from cdt.data.stream import MixtureStream
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.sampler import Sampler
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine
from cdt.engine.ranks import Ranks
from cdt.measure.instrument import Setup
from cdt.measure.statistics import Statistics
from cdt.origin.answers import StoredTeacher
from cdt.origin.teacher import Teacher
from cdt.origin.teacher_network import ReplayedRows, TeacherNetwork
from cdt.training.binding import Bound, bind
from cdt.training.calibrate import first_state
from cdt.training.dual_side import DualSide
from cdt.training.job import Job


@dataclass(frozen=True)
class Parts:
    """The parts of one rank, as a worker uses them."""

    job: Job
    ranks: Ranks
    bound: Bound
    index: Index
    """Every sample that may be drawn, the objective's first."""
    diffusion: Diffusion
    engine: Engine
    ema: Ema
    teacher: Teacher | StoredTeacher | None
    """What replayed samples regress onto; None where that is the noise, or nothing is replayed."""
    stream: MixtureStream
    dual: DualSide
    sampler: Sampler
    """How samples are drawn while training, and when the run is used."""

    @property
    def config(self) -> RunConfig:
        return self.job.config

    @property
    def requirements(self) -> Requirements:
        return self.bound.requirements


def assemble(job: Job) -> Parts:
    """Builds the parts of this rank of the process group that is initialised. A collective."""
    config, ranks = job.config, Ranks.current()
    bound = bind(config, check=False)  # the driver did
    index, diffusion = bound.rows(), Diffusion.from_config(config.diffusion)
    weights = bound.first_weights() if job.checkpoint is None else None
    engine = Engine(bound.build, config.engine, config.train, ranks, weights)
    pretrained = None
    if bound.origin is not None:
        pretrained = TeacherNetwork(engine, bound.origin, config.replay, index.shape)
    teacher = None
    if pretrained is not None and bound.replay is not None:
        cells = torch.as_tensor(bound.requirements.replayed, device=ranks.device)
        teacher = pretrained.teacher(ReplayedRows(cells, bound.first_replayed, bound.answers))
    ema = Ema(engine)
    stream = MixtureStream(
        config.data,
        index,
        bound.requirements.rows,
        bound.requirements.cells,
        bound.mixture_of(config.data.estimator),
        lambdas=_first_lambdas(config, bound.requirements),
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        rank=ranks.rank,
        world=ranks.world,
    )
    sampler = Sampler(config.sampler, diffusion.process, index.shape, index.bounded)
    setup = Setup(
        bound.requirements,
        bound.index,
        stream.reader,
        diffusion.process,
        ranks,
        data=config.data,
        probe=config.probe,
        sampler=sampler,
        seed=config.run.seed,
        chunk=config.micro_batch(ranks.world),  # of which training also keeps the activations: it fits
        init=config.init,
        teacher=None if pretrained is None else pretrained.measured_against,
        fresh=None if bound.replay is None else bound.replay.fresh(),
    )
    dual = DualSide(config, bound.requirements, Statistics(setup))
    return Parts(job, ranks, bound, index, diffusion, engine, ema, teacher, stream, dual, sampler)


def _first_lambdas(config: RunConfig, requirements: Requirements) -> np.ndarray:
    """0 in a warm start; without one, the dual side's first multipliers from the first batch on."""
    if config.train.warm_steps:
        return np.zeros(len(requirements.names))
    return first_state(requirements, config.dual).lambdas
