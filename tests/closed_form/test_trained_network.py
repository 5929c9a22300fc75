"""A small network trained on a mixture in two dimensions, with the dual side as runs have it.

The multipliers end where the network's own loss, measured at fixed multipliers, meets the threshold; and its samples
have the shares that the mixture of those multipliers has.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from exact import begin, shares_problem
from mixtures import D, Mixture, class_losses, exemplars, random_draws
from paths import sample
from torch import Tensor, nn

from cdt.constraints import Calibration, MinFrequency
from cdt.constraints.window import auto_window
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.process import Process
from cdt.dual import Sums, dual_step, mixture_probabilities

THREE = Mixture(
    means=torch.tensor([[-0.7, -0.4], [0.7, -0.4], [0.0, 0.8]], dtype=torch.float64),
    variances=torch.tensor([0.02, 0.03, 0.02], dtype=torch.float64),
    shares=torch.tensor([0.05, 0.55, 0.4], dtype=torch.float64),
)
SHARE, FLOOR = 0.05, 0.2
DIFFUSION = Diffusion.from_config(DiffusionConfig(prediction="v_prediction", logsnr_min=-8, logsnr_max=5))
PROCESS = DIFFUSION.process
WINDOW = 3.5
"""What ``window: auto`` finds for class 0."""
DRAWS = random_draws(2048)
PERIOD = 20
"""Steps"""
BATCH = 256


class Net(nn.Module):
    """v of x [B, 1, 1, D] at a timestep [B]."""

    def __init__(self, process: Process, width: int = 48) -> None:
        super().__init__()
        self._process = process
        self.layers = nn.Sequential(
            nn.Linear(D + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, D),
        )  # fmt: skip

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        logsnr = self._process.logsnr(timestep)[:, None] / 4
        features = torch.cat([x.flatten(1), logsnr, logsnr.sin(), logsnr.cos()], dim=1)
        return self.layers(features).reshape(x.shape)


class Run:
    """Training whose mixture is set by one multiplier, of class 0; and what is measured of the averaged weights."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self._draw = torch.Generator().manual_seed(seed)
        self._net = Net(PROCESS)
        self.ema = copy.deepcopy(self._net)
        self._optimiser = torch.optim.Adam(self._net.parameters(), lr=2e-3)

    def fork(self) -> Run:
        """The same network, optimiser and stream of samples."""
        return copy.deepcopy(self)

    def train(self, steps: int, multiplier: float, decay: float = 0.995) -> None:
        base, stream = mixture_probabilities(np.array([multiplier]))
        frequencies = base * THREE.shares + stream * torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        for _ in range(steps):
            classes = torch.multinomial(frequencies, BATCH, replacement=True, generator=self._draw)
            x0 = THREE.sample(classes, torch.randn(BATCH, D, generator=self._draw))
            u = (torch.arange(BATCH) + torch.rand(BATCH, generator=self._draw)) / BATCH
            eps = torch.randn(x0.shape, generator=self._draw)
            loss = DIFFUSION.losses(self._net, x0, u, eps, torch.float32).primal.mean()
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            with torch.no_grad():
                for averaged, now in zip(self.ema.parameters(), self._net.parameters(), strict=True):
                    averaged.lerp_(now, 1 - decay)

    @torch.no_grad()
    def probe(self) -> np.ndarray:
        """Draws of the loss of class 0 on the window under the averaged weights, nats."""
        return class_losses(THREE, self.ema, 0, WINDOW, PROCESS, DRAWS).numpy()

    def generated_share(self) -> float:
        """Of class 0, among samples of the averaged weights."""
        x = sample(
            self.ema, PROCESS, (1, 1, D), 8000, seed=1, sampler="dpmpp_2m", steps=20, batch_size=8000, bounded=False
        )
        return (THREE.nearest(x) == 0).double().mean().item()


def frequency(multiplier: float) -> float:
    """``f = (pi + lambda) / (1 + lambda)``"""
    return (SHARE + multiplier) / (1 + multiplier)


def test_the_window_is_the_automatic_one() -> None:
    found = auto_window(exemplars(THREE, [0]), exemplars(THREE, [1, 2]), SHARE, -8, 5, seed=0)
    assert found == WINDOW


def own_root(warm: Run, threshold: float) -> float:
    """lambda at which the network's loss is the threshold, from its losses at two fixed multipliers.

    Each has time to follow, then its loss is averaged. Between them the loss is linear in log f.
    """
    logs, excess = [], []
    for multiplier in (0.12, 0.2):
        run, losses = warm.fork(), []
        run.train(1000, multiplier)
        for _ in range(25):
            run.train(PERIOD, multiplier)
            losses.append(run.probe().mean())
        logs.append(math.log(frequency(multiplier)))
        excess.append(np.mean(losses) - threshold)
    assert excess[0] > 0 > excess[1]
    slope = (excess[1] - excess[0]) / (logs[1] - logs[0])
    assert slope == pytest.approx(-1, abs=0.2)  # as KL(q_c || p) = -log f_c has
    f = math.exp(logs[0] - excess[0] / slope)
    return (f - SHARE) / (1 - f)


@pytest.mark.slow  # half a minute per seed
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_multipliers_end_at_the_root_of_the_network_s_own_loss_and_samples_have_their_shares(seed: int) -> None:
    warm = Run(seed)
    warm.train(2000, 0.0)
    baseline = warm.probe()
    constraint = MinFrequency.model_validate({"class": "0", "min_frequency": FLOOR})
    threshold = constraint.threshold(Calibration(float(baseline.mean()), SHARE, WINDOW))

    run, state = warm.fork(), begin(np.zeros(1))
    problem = shares_problem(np.array([SHARE]), np.array([threshold]), eta=0.1, baseline=baseline.mean(), cap=10.0)
    for _ in range(150):
        run.train(PERIOD, float(state.lambdas[0]))
        paired = run.probe() - baseline
        sums = Sums(*np.array([[paired.sum()], [np.square(paired).sum()], [float(len(paired))]]))
        state = dual_step(problem, state, sums)

    multiplier = float(state.average[0])
    assert multiplier == pytest.approx(own_root(warm, threshold), rel=0.05)
    assert run.generated_share() == pytest.approx(frequency(multiplier), abs=0.02)
    assert warm.generated_share() == pytest.approx(SHARE, abs=0.02)
