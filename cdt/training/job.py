"""A run before it starts: its configuration held against its data. Everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cdt.config import RunConfig, check_batch
from cdt.constraints import Population, Requirements
from cdt.data.index import Index
from cdt.diffusion.process import Process
from cdt.diffusion.sampler import check_steps
from cdt.dual import ESTIMATORS, Draws, largest_feasible_scale, shares_exist
from cdt.errors import InputError
from cdt.judges import load_judge
from cdt.networks import build_network
from cdt.training.generated import judged_columns
from cdt.training.held_out import held_out_split
from cdt.training.reference import open_reference


@dataclass(frozen=True)
class Job:
    """What every worker gets."""

    config: RunConfig
    directory: Path
    """The run directory, absolute."""
    checkpoint: Path | None = None
    """Where to continue from."""
    fork: bool = False
    """Whether ``checkpoint`` is another run's: then only weights, optimiser and base stream go on."""

    def again(self, checkpoint: Path | None) -> Job:
        """The same from its own newest checkpoint; as it began where it has none."""
        return self if checkpoint is None else replace(self, checkpoint=checkpoint, fork=False)


@dataclass(frozen=True)
class Prepared:
    """The parts of a job that are pure functions of its configuration and data."""

    index: Index
    requirements: Requirements
    build: Callable[[], nn.Module]
    period_steps: int

    def mixture_of(self, estimator: str) -> Callable[[np.ndarray], Draws]:
        """What multipliers ask of the stream, under an estimator of the Lagrangian's gradient."""
        return lambda lambdas: ESTIMATORS[estimator](lambdas, self.requirements)


def prepare(config: RunConfig) -> Prepared:
    """Raises InputError for whatever does not fit together."""
    check_batch(config.train.batch_size, config.run.workers, config.engine.accumulation)
    check_steps(config.sampler.name, config.sampler.steps, config.diffusion.timesteps)
    if not config.train.total_steps:
        raise InputError("train: warm_steps, dual_steps and cooldown_steps are 0; there is nothing to train")
    index = Index.load(config.data.shards, config.data.split, config.data.allow_pipe)
    if not index.count:
        raise InputError(f"data.split: split {index.split} of {index.root} has no samples")
    population = Population(index.classes, index.class_names, index.attributes, f"{index.root} ({index.split})")
    requirements = Requirements.bind(config.constraints, population)
    _check_feasible(requirements)
    _check_windows(config)
    _check_measurable(config, index)

    def build() -> nn.Module:
        torch.manual_seed(config.run.seed)
        return build_network(config.network, index.shape, checkpointing=config.engine.activation_checkpointing)

    with torch.device("meta"):
        build()
    samples = config.data.epoch_samples or index.count
    epoch = -(-samples // config.train.batch_size)
    period = epoch if config.dual.period == "epoch" else config.dual.period
    return Prepared(index, requirements, build, period)


def _check_measurable(config: RunConfig, index: Index) -> None:
    """Classifiers that know the classes, references that can be compared with, a split to probe."""
    process = Process.from_config(config.diffusion)
    for name, constraint in config.constraints.items():
        if constraint.judge is not None:
            judged_columns(load_judge(constraint.judge, index.shape), name, constraint)
        if isinstance(constraint.compared_with, Path):
            open_reference(constraint.compared_with, process)
    held_out_split(config, index)
    if config.dual.estimate == "training" and (odd := [n for n, c in config.constraints.items() if c.generated]):
        raise InputError(f"dual.estimate: training cannot measure generated samples ({', '.join(odd)}): set probe")


def _check_feasible(requirements: Requirements) -> None:
    """Floors on shares that no distribution can meet together."""
    floors = {i: each.share for i, each in enumerate(requirements.constraints.values()) if each.share is not None}
    if not floors:
        return
    position = {i: place for place, i in enumerate(floors)}
    pairs = [
        (k, position[i])
        for k, i in zip(requirements.member_cells.tolist(), requirements.member_constraints.tolist(), strict=True)
        if i in position
    ]
    cells, members = np.array(pairs).T
    shares, K = np.array(list(floors.values())), len(requirements.cell_shares)
    names = ", ".join(requirements.names[i] for i in floors)
    scale = largest_feasible_scale(shares, cells, members, K)
    if scale < 1 - 1e-9:
        raise InputError(
            f"constraints: the floors of {names} sum to {shares.sum():.4g} and cannot be met together; multiplied by "
            f"{scale:.4g} they could"
        )
    equal = np.array([constraint.equal for constraint in requirements.constraints.values()])[list(floors)]
    if not shares_exist(shares, equal, cells, members, K):
        raise InputError(
            f"constraints: no distribution has the exact shares of {names}: they sum to {shares.sum():.4g}"
        )


def _check_windows(config: RunConfig) -> None:
    """Windows that end inside the log-SNR range; one for all where the training estimate sums losses by cell."""
    process = Process.from_config(config.diffusion)
    for name, constraint in config.constraints.items():
        window = constraint.window
        if isinstance(window, float) and not process.logsnr_min < window <= process.logsnr_max:
            raise InputError(
                f"constraints.{name}.window: {window:g} is not within the log-SNR range of the noise schedule: above "
                f"{process.logsnr_min:.4g}, at most {process.logsnr_max:.4g}"
            )
    windows = {constraint.window for constraint in config.constraints.values()}
    if config.dual.estimate == "training" and (len(windows) > 1 or "auto" in windows):
        found = ", ".join(sorted("null" if window is None else str(window) for window in windows))
        raise InputError(
            "dual.estimate: training needs one window for all constraints, a number or null; "
            f"found {found}: set constraints.NAME.window, or estimate: probe"
        )
