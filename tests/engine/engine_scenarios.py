"""Engine, training step, EMA and checkpoint on two ranks: one scenario for each ZeRO stage and precision."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import deepspeed
import numpy as np
import torch
from scenario import Place, Scenario
from small_engine import (
    CASES,
    DIFFUSION,
    SEED,
    SHAPE,
    STEPS,
    TRAIN,
    WINDOWS,
    Figures,
    batch_at,
    build,
    config_of,
    distance,
    forward_error,
    same,
    state_at,
    steps_of,
    train,
    uncovered,
    whole,
)
from torch import Tensor, nn

from cdt.checkpoints import checkpoint
from cdt.checkpoints.saving import Saver
from cdt.diffusion.noise import normals
from cdt.engine.config import EngineConfig
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine
from cdt.engine.ranks import Ranks
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums


@dataclass
class Told:
    """What one rank found. Each default is a failure: what was not measured does not pass."""

    uncovered: list[str] | None = None
    """Weights that the ranks do not hold exactly once; likewise of the averages."""
    uncovered_ema: list[str] | None = None
    ema_error: float = math.inf
    """Relative distance from the average of the gathered weights."""
    forward_errors: list[float] = field(default_factory=lambda: [math.inf])
    untouched: bool = False
    """Whether a forward pass with other weights left the trained ones alone."""
    norms: list[float] = field(default_factory=lambda: [math.nan])
    """Of the gradient, by step."""
    distance_from_plain: float = math.inf
    """Of weights, norms, losses and sums from those of one process without DeepSpeed; in fp32 alone."""
    norm_error: float = math.inf
    loss_error: float = math.inf
    sums_error: float = math.inf
    rounded: bool = False
    """Whether the forward pass's weights are the fp32 masters, rounded."""
    finer_than_bf16: float = 0.0
    """Fraction of the masters' elements that bf16 could not hold."""
    beside_errors: list[float] = field(default_factory=lambda: [math.inf])
    """Of a frozen network beside the trained one; whether training leaves it alone; elements that it holds."""
    beside_unchanged: bool = False
    beside_holds: list[int] | None = None
    complete_before: list[str] | None = None
    """Complete checkpoints before the first save was finished, and after it; its files."""
    complete: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    saved_weights: bool = False
    """Whether the checkpoint has what there was when the save began."""
    saved_ema: bool = False
    saved_state: bool = False
    poison_applied: bool = True
    """Whether an update was made where one rank's loss was not finite, and whether the weights are as before."""
    poison_left_weights: bool = False
    begins_exact: bool = False
    """Whether the masters of a fresh engine are the fp32 weights that it was given, at every precision."""
    finished_writes: int = 0
    """How often the device was waited for when a network got other weights."""
    resumed_weights: bool = False
    """Whether a fresh engine continues from the checkpoint to the same bits."""
    resumed_ema: bool = False


class Plain:
    """What Engine is to training, in one process and without DeepSpeed."""

    accumulation, dtype = 1, torch.float32

    def __init__(self) -> None:
        self.network = build()
        self._trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, betas=TRAIN.betas, weight_decay=TRAIN.weight_decay)
        self.norms: list[float] = []

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> None:
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self.norms.append(float(nn.utils.clip_grad_norm_(self._trained, EngineConfig().clip)))
        self._optimizer.step()
        self._optimizer.zero_grad()


@dataclass
class Trained:
    weights: dict[str, Tensor]
    norms: list[float]
    losses: list[float]
    sums: np.ndarray


@functools.cache
def plainly() -> Trained:
    """One process, no DeepSpeed: what every fp32 case must agree with."""
    engine = Plain()
    figures = train(engine, Ranks(0, 1, torch.device("cpu")), 0, STEPS, lambda step: None)
    weights = {name: weight.detach().clone() for name, weight in engine.network.named_parameters()}
    return Trained(weights, engine.norms, *figures)


@dataclass
class Case:
    """One engine from its first step to its last, and a second one that takes over in the middle."""

    config: EngineConfig
    ranks: Ranks
    folder: Path
    plain: Trained
    told: Told = field(default_factory=Told)

    def run(self) -> Told:
        steps = steps_of(self.config)
        engine = Engine(build, self.config, TRAIN, self.ranks)
        ema = Ema(engine)
        self.told.uncovered = uncovered(engine, engine.fragments(), self.ranks)
        self.told.uncovered_ema = uncovered(engine, ema.fragments, self.ranks)
        averages = {name: weight.double() for name, weight in whole(engine).items()}
        norms: list[float] = []

        def first_half(step: int) -> None:
            decay = TRAIN.ema_decay_at(step)
            ema.update(decay)
            for name, weight in whole(engine).items():
                averages[name] = decay * averages[name] + (1 - decay) * weight.double()
            norms.append(engine.gradient_norm())

        def second_half(step: int) -> None:
            ema.update(TRAIN.ema_decay_at(step))
            norms.append(engine.gradient_norm())

        first = train(engine, self.ranks, 0, steps // 2, first_half)
        self.told.ema_error = distance(whole(engine, ema.fragments), averages)
        with patch.object(deepspeed.get_accelerator(), "synchronize") as synchronize:
            self.told.forward_errors = [forward_error(engine, ema.fragments)]
        self.told.finished_writes = synchronize.call_count
        saver, saved = Saver(self.folder, engine, ema, self.ranks), (whole(engine), whole(engine, ema.fragments))
        saver.begin(state_at(steps // 2, self.ranks))
        second = train(engine, self.ranks, steps // 2, steps, second_half)
        self._finish(saver, saved, steps // 2)
        before = whole(engine)
        self.told.forward_errors += [forward_error(engine, f) for f in (ema.fragments, engine.fragments())]
        self.told.untouched = same(whole(engine), before)
        self.told.norms = norms
        if self.config.precision == "fp32":
            self._against_plain(engine, norms, first, second)
        self._against_forward_weights(engine)
        self._resume(steps, whole(engine), whole(engine, ema.fragments))
        saver.begin(state_at(steps, self.ranks))
        saver.finish()
        saver.close()
        self._beside(engine)
        return self.told

    def _against_plain(self, engine: Engine, norms: list[float], *parts: Figures) -> None:
        plain = self.plain
        losses = self.ranks.sum(np.array([loss for part in parts for loss in part.losses])) / self.ranks.world
        sums = self.ranks.sum(np.sum([part.sums for part in parts], axis=0))
        self.told.distance_from_plain = distance(whole(engine), plain.weights)
        self.told.norm_error = float(np.abs(np.array(norms) / plain.norms - 1).max())
        self.told.loss_error = float(np.abs(losses / plain.losses - 1).max())
        self.told.sums_error = float(np.abs(sums / plain.sums - 1).max())

    def _against_forward_weights(self, engine: Engine) -> None:
        """The weights of the forward pass are the masters, rounded; the masters are finer than bf16."""
        masters = whole(engine)
        weights = dict(engine.module.named_parameters())
        with deepspeed.zero.GatheredParameters(list(weights.values()), enabled=self.config.zero_stage == 3):
            low = {name: weight.detach().float() for name, weight in weights.items()}
            self.told.rounded = same({name: masters[name].to(engine.dtype).float() for name in masters}, low)
        trained = torch.cat([weight.flatten() for name, weight in masters.items() if name != "gain"])
        self.told.finer_than_bf16 = float((trained.bfloat16().float() != trained).float().mean())

    def _beside(self, engine: Engine) -> None:
        """A frozen network for all of the run: what it answers, that nothing trains it, that steps go on unchanged."""
        low = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        frozen = build().requires_grad_(False)
        for place, weight in enumerate(frozen.parameters()):  # a new DiT answers 0
            weight += normals(place, torch.arange(1), tuple(weight.shape))[0] / 10
        x, timestep = normals(8, torch.arange(3), SHAPE), torch.tensor([1.5, 400.0, 990.0])
        teachers = [engine.frozen(copy.deepcopy(frozen), low, offload=offload) for offload in (False, True)]

        @torch.no_grad()
        def answered(network: nn.Module, dtype: torch.dtype) -> Tensor:
            return network(x.to(dtype), timestep).float()

        expected, before = answered(frozen.eval(), torch.float32), [answered(teacher, low) for teacher in teachers]
        train(engine, self.ranks, 0, 1, lambda step: None)
        after = [answered(teacher, low) for teacher in teachers]
        self.told.beside_errors = [float((each - expected).norm() / expected.norm()) for each in before]
        self.told.beside_unchanged = all(map(torch.equal, before, after))
        self.told.beside_holds = [sum(weight.numel() for weight in each.parameters()) for each in teachers]

    def _agree(self, engine: Engine) -> bool:
        """Whether the masters of all ranks are the same, where each rank has all of them."""
        if self.config.zero_stage:
            return True
        sums = [float(master.detach().double().sum()) for master in engine._masters.values()]
        return self.ranks.all_of(sums) == [sums] * self.ranks.world

    def _finish(self, saver: Saver, saved: tuple[dict[str, Tensor], dict[str, Tensor]], step: int) -> None:
        """A save that was written while training went on, against what there was when it began."""
        self.told.complete_before = [path.name for path in checkpoint.complete_checkpoints(self.folder)]
        path = saver.finish()
        self.told.saved_weights = same(checkpoint.read_weights(path, raw=True), saved[0])
        self.told.saved_ema = same(checkpoint.read_weights(path), saved[1])
        self.told.saved_state = checkpoint.read_state(path) == state_at(step, self.ranks)
        self.told.files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        self.told.complete = [path.name for path in checkpoint.complete_checkpoints(self.folder)]

    def _poisoned(self, engine: Engine) -> None:
        """A batch of which one sample on the last rank has a loss that is not finite."""
        before, batch = whole(engine), batch_at(3, self.ranks.rank, self.ranks.world)
        batch.weights[-1] = math.nan if self.ranks.rank else 1.0
        sums = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
        train_step(engine, DIFFUSION, batch, sums, learning_rate=TRAIN.lr, seed=SEED, batch_size=TRAIN.batch_size)
        self.told.poison_applied = engine.applied
        self.told.poison_left_weights = same(whole(engine), before)

    def _resume(self, steps: int, weights: dict[str, Tensor], averages: dict[str, Tensor]) -> None:
        path = self.folder / checkpoint.checkpoint_name(steps // 2)
        other = {name: weight + 1 for name, weight in build().state_dict().items()}
        engine = Engine(build, self.config, TRAIN, self.ranks, other)
        self.told.begins_exact = same(whole(engine), other) and self._agree(engine)
        ema = Ema(engine)
        engine.load(path)
        ema.load(checkpoint.read_weights(path))
        self._poisoned(engine)
        train(engine, self.ranks, steps // 2, steps, lambda step: ema.update(TRAIN.ema_decay_at(step)))
        self.told.resumed_weights = same(whole(engine), weights)
        self.told.resumed_ema = same(whole(engine, ema.fragments), averages)


def run_case(name: str, place: Place) -> Told:
    return Case(config_of(name), place.ranks, place.folder / name, plainly()).run()


def off_load(place: Place) -> list[float]:
    """Distances between networks trained with and without the optimiser in the memory of the host, by stage."""
    distances = []
    for stage in (1, 2, 3):
        trained = []
        for zero in ({}, {"offload_optimizer": {"device": "cpu"}}):
            config = EngineConfig.model_validate({"zero_stage": stage, "deepspeed": {"zero_optimization": zero}})
            engine = Engine(build, config, TRAIN, place.ranks)
            train(engine, place.ranks, 0, 5, lambda step: None)
            trained.append(whole(engine))
        distances.append(distance(*trained))
    return distances


OFF_LOADED = Scenario("optimiser off-loaded", off_load)
ENGINE = {name: Scenario(f"engine at {name}", functools.partial(run_case, name)) for name in CASES}
SCENARIOS = [*ENGINE.values(), OFF_LOADED]
