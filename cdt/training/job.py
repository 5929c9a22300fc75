"""A run before it starts: its configuration held against its data. Everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cdt.config import RunConfig, check_batch
from cdt.constraints import Population, Prior, Requirements
from cdt.data.format.index import Index
from cdt.data.format.joined import joined
from cdt.diffusion.process import Process
from cdt.diffusion.sampler import check_steps
from cdt.dual import ESTIMATORS, Draws, largest_feasible_scale, shares_exist
from cdt.errors import InputError, at
from cdt.judges import load_judge
from cdt.measure.generated import judged_columns
from cdt.measure.held_out import held_out_split
from cdt.measure.reference import open_reference
from cdt.networks.adapter import adapted, check_peft, with_weights
from cdt.networks.build import build_network
from cdt.origin.answers import Answers
from cdt.origin.pretrained import Pretrained, check_continued, open_pretrained
from cdt.origin.replay import Replay
from cdt.training.calibrate import check_stable


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

    skip_to: int = 0
    """The batch with which the data go on, where those between it and the checkpoint are to be left out."""

    def again(self, checkpoint: Path | None) -> Job:
        """The same from its own newest checkpoint; as it began where it has none."""
        if checkpoint is None:
            return self
        skip_to = self.skip_to if checkpoint == self.checkpoint else 0
        return replace(self, checkpoint=checkpoint, fork=False, skip_to=skip_to)


@dataclass(frozen=True)
class Prepared:
    """The parts of a job that are pure functions of its configuration and data."""

    index: Index
    """The new data."""
    requirements: Requirements
    build: Callable[[], nn.Module]
    """The network, its weights new."""
    period_steps: int
    settling_steps: int
    """Of dual training, before the multipliers first move."""
    origin: Pretrained | None = None
    """What training starts from, if not from new weights."""
    replay: Replay | None = None
    """Its samples, where they are trained on."""
    answers: Answers | None = None
    """What the pretrained model predicts at them, where that is stored."""
    replay_first: bool = False
    """Whether they are the objective."""
    adapts: bool = False
    """Whether adapters are trained in place of the weights."""

    def moves_multipliers(self, steps: int) -> bool:
        """Whether a dual step is due when so many steps of dual training are done."""
        return steps >= self.settling_steps and steps % self.period_steps == 0

    def rows(self) -> Index:
        """Every sample that may be drawn, the objective's first."""
        if self.replay is None:
            return self.index
        replay = self.replay.index()
        return joined(replay, self.index) if self.replay_first else joined(self.index, replay)

    @property
    def first_replayed(self) -> int:
        """The first row of replay."""
        return 0 if self.replay_first else self.index.count

    def first_weights(self) -> dict[str, Tensor] | None:
        """What training starts from, where building the network does not load it."""
        weights = None if self.origin is None else self.origin.weights()
        return with_weights(self.build(), weights) if weights is not None and self.adapts else weights

    def mixture_of(self, estimator: str) -> Callable[[np.ndarray], Draws]:
        """What multipliers ask of the stream, under an estimator of the Lagrangian's gradient."""
        return lambda lambdas: ESTIMATORS[estimator](lambdas, self.requirements)


def prepare(config: RunConfig) -> Prepared:
    """Raises InputError for whatever does not fit together."""
    check_batch(config.train.batch_size, config.engine.accumulation)
    check_steps(config.sampler.name, config.sampler.steps, config.diffusion.timesteps)
    if not config.train.total_steps:
        raise InputError("train: warm_steps, dual_steps and cooldown_steps are 0; there is nothing to train")
    index = Index.load(config.data.shards, config.data.split, config.data.allow_pipe)
    if not index.count:
        raise InputError(f"data.split: split {index.split} of {index.root} has no samples")
    origin, replay = _open_origin(config, index)
    requirements = Requirements.bind(config.constraints, _population(config, index, replay))
    _check_feasible(requirements)
    check_stable(requirements, config.dual)
    _check_outside(config, requirements)
    _check_windows(config)
    _check_measurable(config, index)

    def build() -> nn.Module:
        torch.manual_seed(config.run.seed)
        network = build_network(config.network, index.shape, checkpointing=config.engine.activation_checkpointing)
        return network if config.adapter is None else adapted(network, config.adapter)

    if config.adapter is not None:
        check_peft()
    with torch.device("meta"):
        build()
    samples = config.data.epoch_samples or requirements.base
    epoch = -(-samples // config.train.batch_size)
    period = epoch if config.dual.period == "epoch" else config.dual.period
    draws = config.replay.teacher_draws
    answers = Answers(origin, replay, draws) if origin and replay and draws else None
    return Prepared(
        index,
        requirements,
        build,
        period,
        _settling(config),
        origin,
        replay,
        answers,
        replay_first=config.replay.objective,
        adapts=config.adapter is not None,
    )


def _settling(config: RunConfig) -> int:
    """Steps until the EMA weights show what the first multipliers do: their memory, at most a third of the phase.

    Measured sooner, generated shares are those of the warm model, and the multipliers wind up for nothing. A loss moves
    them too little for that.
    """
    if not any(constraint.generated for constraint in config.constraints.values()):
        return 0
    return min(round(1 / (1 - config.train.ema_decay)), config.train.dual_steps // 3)


def _open_origin(config: RunConfig, index: Index) -> tuple[Pretrained | None, Replay | None]:
    """The pretrained model and its samples, where the run has them; whether they fit the data."""
    if config.init is None:
        return None, None
    origin = open_pretrained(config.init)
    origin.check_images(index.shape, index.dtype)
    check_continued(origin, config.network, config.diffusion)
    if not config.replays:
        return origin, None
    replay = Replay(origin, config.replay, index.shape, bounded=index.dtype == "uint8")
    with at("replay" if config.replay.shards == "auto" else "replay.shards"):
        replay.check()
        if not replay.missing:
            joined(index, replay.index())
    return origin, replay


def _population(config: RunConfig, index: Index, replay: Replay | None) -> Population:
    """Rows as ``Prepared.rows`` has them."""
    count = 0 if replay is None else replay.count()
    source = f"{index.root} ({index.split})"
    first = count if config.replay.objective else 0
    replayed = range(count) if first else range(index.count, index.count + count)
    return Population(index.classes, index.class_names, index.attributes, source, first, replayed)


def _check_outside(config: RunConfig, requirements: Requirements) -> None:
    """Constraints on samples that lie outside of the objective's."""
    for (name, constraint), share in zip(requirements.constraints.items(), requirements.shares, strict=True):
        if share:
            continue
        if config.data.estimator == "reweight":
            raise InputError(
                f"data.estimator: reweight weighs samples of the objective, and those of {name} are not among them: "
                "set resample"
            )
        if constraint.share is not None and constraint.judge is None:
            raise InputError(
                f"constraints.{name}.{constraint.budget}: it counts from the share that the pretrained model "
                "generates: give `classifier`, or state generated_frequency, max_kl or max_loss"
            )
        if constraint.share is not None and config.dual.start != "closed_form":
            raise InputError(
                f"dual.start: the mass rule cannot lift the multiplier of {name} from 0, whose samples are not among "
                "the objective's: set closed_form"
            )
    if config.dual.estimate == "training":
        regressed = "distance" if config.replay.target == "teacher" else "loss"
        for name, constraint in requirements.constraints.items():
            if isinstance(constraint, Prior) and constraint.prior.statistic != regressed:
                raise InputError(
                    f"dual.estimate: training sees what is regressed onto replay.target {config.replay.target}, "
                    f"which is not the {constraint.prior.statistic} that constraints.{name} asks for: set probe"
                )


def _check_measurable(config: RunConfig, index: Index) -> None:
    """Classifiers that know the classes, references that can be compared with, a split to probe."""
    process = Process.from_config(config.diffusion)
    for name, constraint in config.constraints.items():
        with at(f"constraints.{name}"):
            judge = None if constraint.judge is None else load_judge(constraint.judge, index.shape)
            if isinstance(constraint.compared_with, Path):
                open_reference(constraint.compared_with, process)
        if judge is not None:
            judged_columns(judge, name, constraint)
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
        asked = [
            f"{requirements.names[i]} {'exactly' if exact else 'at least'} {share:g}"
            for i, share, exact in zip(floors, shares, equal, strict=True)
        ]
        raise InputError(f"constraints: no distribution has all of these shares: {', '.join(asked)}")


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
