"""The teacher beside the engine: who goes through it, what replayed samples regress onto, what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdt.data.stream import Batch
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion, predict_eps
from cdt.diffusion.noise import normals, stratified
from cdt.origin.teacher import Stopwatch, Teacher
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums

DIFFUSION = Diffusion.from_config(DiffusionConfig(prediction="v_prediction"))
SHAPE = (1, 4, 4)
REPLAYED = torch.tensor([False, True, False])
CELLS = torch.tensor([0, 1, 2, 1, 0, 0])


class Gain(nn.Module):
    """One weight, and the inputs that it saw."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        self.seen.append(x)
        return (self.gain * x.to(self.gain.dtype)).to(x.dtype)


def teacher(network: nn.Module, dtype: torch.dtype = torch.float32, partitioned: bool = False) -> Teacher:
    return Teacher(network, DIFFUSION.process, REPLAYED, dtype, partitioned=partitioned)


def drawn(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    positions = torch.arange(count)
    logsnr = -10 + 20 * stratified(0, positions, count)
    return normals(1, positions, SHAPE), logsnr, normals(2, positions, SHAPE)


@pytest.mark.parametrize("partitioned", [False, True])
def test_replayed_samples_alone_go_through_it(partitioned: bool) -> None:
    network = Gain(0.5).requires_grad_(False)
    x, logsnr, eps = drawn()
    target = teacher(network, partitioned=partitioned).target(CELLS)(x, logsnr, eps)
    expected = predict_eps(network, DIFFUSION.process, x, logsnr, torch.float32)
    old = REPLAYED[CELLS]
    assert torch.equal(target[old], expected[old])
    assert torch.equal(target[~old], eps[~old])
    assert torch.equal(network.seen[0], x[old])


@pytest.mark.parametrize(("partitioned", "forwards"), [(False, 0), (True, 1)])
def test_without_replay_in_a_batch_only_a_partitioned_one_runs(partitioned: bool, forwards: int) -> None:
    """A rank that skipped its forward would leave the others waiting for its part of the weights."""
    network = Gain(0.5)
    x, logsnr, eps = drawn(3)
    target = teacher(network, partitioned=partitioned).target(torch.tensor([0, 2, 2]))(x, logsnr, eps)
    assert torch.equal(target, eps)
    assert [len(seen) for seen in network.seen] == [1] * forwards


def test_low_precision_is_the_teacher_s_alone() -> None:
    exact, low = Gain(0.3), Gain(0.3).bfloat16()
    x, logsnr, eps = drawn()
    fine = teacher(exact).target(CELLS)(x, logsnr, eps)
    coarse = teacher(low, torch.bfloat16).target(CELLS)(x, logsnr, eps)
    assert low.seen[0].dtype == torch.bfloat16
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, fine)
    torch.testing.assert_close(coarse, fine, atol=0.05, rtol=0.02)


class Plain:
    """What an engine is to a step."""

    accumulation, dtype = 2, torch.float32

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, learning_rate: float) -> None:
        pass


def test_a_step_regresses_replay_onto_the_teacher_and_the_rest_onto_noise() -> None:
    """Loss, statistics and gradient against the formula, over two micro-batches."""
    student, frozen = Gain(0.8), Gain(0.5)
    positions = torch.arange(6)
    batch = Batch(normals(3, positions, SHAPE), positions, REPLAYED[CELLS].long(), CELLS, torch.ones(6), positions)
    sums = PeriodSums(np.full(3, DIFFUSION.process.logsnr_max), DIFFUSION, torch.device("cpu"))
    engine = Plain(student)
    loss = train_step(engine, DIFFUSION, batch, sums, teacher(frozen), learning_rate=0.1, seed=4, batch_size=6)  # pyright: ignore[reportArgumentType]

    u, eps = stratified(4, positions, 6), normals(4, positions, SHAPE)
    logsnr = -10 + 20 * u
    a, s = (torch.sigmoid(sign * logsnr).sqrt()[:, None, None, None] for sign in (1, -1))
    x = a * batch.images + s * eps
    gain = torch.tensor(0.8, requires_grad=True)
    onto = torch.where(REPLAYED[CELLS][:, None, None, None], a * 0.5 * x + s * x, eps)
    errors = (onto - (a * gain * x + s * x)).square().mean(dim=(1, 2, 3))
    errors.mean().backward()
    torch.testing.assert_close(loss, errors.mean().detach())
    torch.testing.assert_close(student.gain.grad, gain.grad)
    assert frozen.gain.grad is None
    taken = sums.take()
    nats = errors.detach().double().numpy() * 16 * 20 / 2
    np.testing.assert_allclose(taken[1, 0], nats[[1, 3]].sum(), rtol=1e-5)
    np.testing.assert_allclose(taken[-1, 0], nats[[0, 2, 4, 5]].sum(), rtol=1e-5)


def test_the_stopwatch_begins_anew_when_it_is_read() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch.running():
        sum(range(10_000))
    assert watch.take() > 0
    assert watch.take() == 0
