"""A configuration bound to what it names: data, requirements, the pretrained model and its samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from cdt.config import RunConfig
from cdt.constraints import Penalty, Population, Requirements
from cdt.data.format.index import Index
from cdt.data.format.joined import joined
from cdt.dual import ESTIMATORS, Draws
from cdt.errors import InputError, at
from cdt.networks.adapter import adapted, with_weights
from cdt.networks.build import build_network
from cdt.origin.answers import Answers
from cdt.origin.pretrained import Pretrained, open_pretrained
from cdt.origin.replay import Replay
from cdt.training.calibrate import drawn


@dataclass(frozen=True)
class Bound:
    """A configuration bound to its data and to the pretrained model: what every rank derives alike, without checks."""

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
        """Whether a dual step is due after ``steps`` steps of dual training."""
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

    @cached_property
    def weights(self) -> tuple[int, int]:
        """How many weights the network has, and how many of them are trained."""
        with torch.device("meta"):
            weights = list(self.build().parameters())
        return sum(each.numel() for each in weights), sum(each.numel() for each in weights if each.requires_grad)

    @cached_property
    def penalties(self) -> dict[int, Penalty]:
        """Those of the constraints whose multipliers are weights in the loss, by their positions, ascending."""
        constraints = enumerate(self.requirements.constraints.values())
        return {i: actuator for i, each in constraints if isinstance(actuator := each.actuator, Penalty)}

    def mixture_of(self, estimator: str) -> Callable[[np.ndarray], Draws]:
        """What multipliers ask of the stream, under an estimator of the Lagrangian's gradient."""
        draws, penalties = drawn(self.requirements), list(self.penalties)

        def mixture(lambdas: np.ndarray) -> Draws:
            asked = ESTIMATORS[estimator](np.where(draws, lambdas, 0.0), self.requirements)
            return replace(asked, penalties=lambdas[penalties]) if penalties else asked

        return mixture


def bind(config: RunConfig, *, check: bool = True) -> Bound:
    """Opens what ``config`` names. ``check``: whether the pretrained model is compared with its digests, too.

    Raises InputError when something is not there or damaged, or a constraint selects nothing.
    """
    index = Index.load(config.data.shards, config.data.split, config.data.allow_pipe)
    if not index.count:
        raise InputError(f"data.split: split {index.split} of {index.root} has no samples")
    origin = None if config.init is None else open_pretrained(config.init, check=check)
    replay = None
    if origin is not None and config.replays:
        replay = Replay(origin, config.replay, index.shape, index.bounded)
    requirements = Requirements.bind(config.constraints, _population(config, index, replay))

    def build() -> nn.Module:
        torch.manual_seed(config.run.seed)
        network = build_network(
            config.resolved_network, index.shape, checkpointing=config.engine.activation_checkpointing
        )
        return network if config.adapter is None else adapted(network, config.adapter)

    samples = config.data.epoch_samples or requirements.base
    epoch = -(-samples // config.train.batch_size)
    period = epoch if config.dual.period == "epoch" else config.dual.period
    draws = config.replay.teacher_draws
    answers = Answers(origin, replay, draws) if origin and replay and draws else None
    return Bound(
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
    if not any(constraint.statistic.of_generated for constraint in config.constraints.values()):
        return 0
    return min(round(1 / (1 - config.train.ema_decay)), config.train.dual_steps // 3)


def _population(config: RunConfig, index: Index, replay: Replay | None) -> Population:
    """The samples that constraints select from; rows as ``Bound.rows`` has them."""
    with at("replay.shards"):
        count = 0 if replay is None else replay.count()
    source = f"{index.root} ({index.split})"
    first = count if config.replay.objective else 0
    replayed = range(count) if first else range(index.count, index.count + count)
    return Population(index.classes, index.class_names, index.attributes, source, first, replayed)
