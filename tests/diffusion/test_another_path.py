"""A path that exists in this file alone: what it takes to add one, and that everything else speaks of log-SNR only.

Flow matching, truncated: ``x_t = (1 - t) x0 + t eps``, ``l = 2 log((1 - t) / t)``, the output is ``u = eps - x0``.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_scenarios import Plain
from paths import alpha_sigma
from small_engine import TRAIN, WINDOWS, batch_at
from torch import Tensor, nn

from cdt.diffusion.config import DiffusionConfig, SamplerConfig
from cdt.diffusion.loss import Diffusion, Weighting, nats, squared_error
from cdt.diffusion.noise import normals
from cdt.diffusion.process import Process, per_sample
from cdt.diffusion.sampler import Sampler
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.engine.ranks import Ranks
from cdt.errors import InputError
from cdt.measure.probe import Probe, ProbeSet
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums

CDT = Path(__file__).parents[2] / "cdt"
FIRST, LAST = 0.001, 0.999


class Flow(Process):
    """Times from FIRST to LAST; the network is told 1000 t, as FlowMatchEulerDiscreteScheduler does."""

    samplers = {"euler": "FlowMatchEulerDiscreteScheduler"}  # noqa: RUF012 - as in the class that it extends
    prediction = "u"

    def __init__(self) -> None:
        at = torch.tensor([1000 * LAST, 1000 * FIRST], dtype=torch.float64)
        self.logsnr_min, self.logsnr_max = self.logsnr(at).tolist()

    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(logsnr / 2), torch.sigmoid(-logsnr / 2)

    def network_time(self, logsnr: Tensor) -> Tensor:
        return 1000 * torch.sigmoid(-logsnr / 2)

    def logsnr(self, time: Tensor) -> Tensor:
        return -2 * torch.logit(time / 1000)

    def eps_of(self, output: Tensor, x: Tensor, logsnr: Tensor) -> Tensor:
        return x + per_sample(torch.sigmoid(logsnr / 2), x) * output

    def x0_of(self, output: Tensor, x: Tensor, logsnr: Tensor) -> Tensor:
        return x - per_sample(torch.sigmoid(-logsnr / 2), x) * output

    def simple_weight(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-logsnr / 2) / 2

    def fingerprint(self) -> bytes:
        return b"flow"

    def same_path(self, other: Process) -> bool:
        return isinstance(other, Flow)

    def check_steps(self, sampler: str, steps: int) -> None:
        if steps > 1000:
            raise InputError(f"sampler.steps: {steps} is more than the 1000 that this path allows")

    def scheduler(self, sampler: str, steps: int, *, bounded: bool = True) -> Any:
        import diffusers

        scheduler = getattr(diffusers, self.samplers[sampler])(shift=1.0)
        scheduler.set_timesteps(sigmas=np.linspace(LAST, FIRST, steps).tolist())
        return scheduler


class Euler(SamplerConfig):
    """A sampler that no configuration knows."""

    name: Any = "euler"


FLOW = Flow()
SIMPLE = Weighting(DiffusionConfig(weighting="simple"), FLOW)
PATHS = {
    "epsilon": VariancePreserving.from_config(DiffusionConfig()),
    "v_prediction": VariancePreserving.from_config(DiffusionConfig(prediction="v_prediction")),
    "sample": VariancePreserving.from_config(DiffusionConfig(prediction="sample")),
    "flow": FLOW,
}
OUTPUT = {
    "epsilon": lambda a, s, x0, eps: eps,
    "v_prediction": lambda a, s, x0, eps: a * eps - s * x0,
    "sample": lambda a, s, x0, eps: x0,
    "flow": lambda a, s, x0, eps: eps - x0,
}
"""What a network that knows x0 and eps answers on each path."""


class Gaussian(nn.Module):
    """The exact network of N(mean, variance) on any path."""

    def __init__(self, name: str, mean: float, variance: float) -> None:
        super().__init__()
        self.name, self.mean, self.variance = name, mean, variance

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        logsnr = PATHS[self.name].logsnr(time.double())
        a, s = (per_sample(c, x).double() for c in PATHS[self.name].coefficients(logsnr))
        total = a**2 * self.variance + s**2
        x0 = self.mean + a * self.variance / total * (x.double() - a * self.mean)
        return OUTPUT[self.name](a, s, x0, (x.double() - a * x0) / s).to(x.dtype)


@pytest.mark.parametrize("name", PATHS)
def test_eps_and_x0_come_out_of_every_kind_of_output(name: str) -> None:
    """THEORY 10's table, in float64."""
    process = PATHS[name]
    torch.manual_seed(0)
    x0, eps = torch.randn(2, 64, 1, 2, 2, dtype=torch.float64)
    logsnr = torch.linspace(-10, 10, 64, dtype=torch.float64)
    a, s = process.coefficients(logsnr)
    torch.testing.assert_close(2 * torch.log(a / s), logsnr, atol=1e-6, rtol=1e-6)
    x = process.noised(x0, logsnr, eps)
    output = OUTPUT[name](per_sample(a, x), per_sample(s, x), x0, eps)
    torch.testing.assert_close(process.eps_of(output, x, logsnr), eps, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(process.x0_of(output, x, logsnr), x0, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_one_denoiser_says_the_same_on_every_path(name: str) -> None:
    """At a given log-SNR paths differ by the scale of x_t alone."""
    process, reference = PATHS[name], PATHS["epsilon"]
    torch.manual_seed(1)
    x0, eps = torch.randn(2, 32, 1, 2, 2, dtype=torch.float64)
    logsnr = torch.linspace(-6, 6, 32, dtype=torch.float64)
    found = []
    for each in (process, reference):
        a, s = (per_sample(c, x0) for c in each.coefficients(logsnr))
        x = each.noised(x0, logsnr, eps)
        total = a**2 * 0.25 + s**2
        mean = 0.5 + a * 0.25 / total * (x - a * 0.5)
        kind = name if each is process else "epsilon"
        output = OUTPUT[kind](a, s, mean, (x - a * mean) / s)
        found.append((each.eps_of(output, x, logsnr), each.x0_of(output, x, logsnr)))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-6)


def test_coefficients_are_those_of_a_variance_preserving_path() -> None:
    logsnr = torch.linspace(-10, 10, 101)
    assert PATHS["epsilon"].coefficients(logsnr)[0].equal(alpha_sigma(logsnr)[0])
    assert PATHS["epsilon"].coefficients(logsnr)[1].equal(alpha_sigma(logsnr)[1])


def test_the_loss_gap_is_the_same_on_every_path() -> None:
    """N(0, 1) seen by the exact model of N(0, 1) and of N(1, 1): nats on a common range of log-SNR."""
    draws, D = torch.arange(4096), 4
    x0, eps = normals(1, draws, (1, 2, 2)), normals(2, draws, (1, 2, 2))
    logsnr = -6 + 12 * (draws + 0.5) / len(draws)
    gaps = []
    for name in ("v_prediction", "flow"):
        errors = [
            nats(squared_error(Gaussian(name, mean, 1.0), PATHS[name], x0, logsnr, eps), D, -6.0, 6.0).mean()
            for mean in (1.0, 0.0)
        ]
        gaps.append(float(errors[0] - errors[1]))
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)
    assert gaps[0] > 1


def test_two_steps_of_training() -> None:
    engine, diffusion = Plain(), Diffusion(FLOW, SIMPLE)
    sums, before = PeriodSums(WINDOWS, diffusion, torch.device("cpu")), [w.clone() for w in engine.network.parameters()]
    for step in range(2):
        loss = train_step(
            engine, diffusion, batch_at(step, 0, 1), sums, learning_rate=1e-3, seed=1, batch_size=TRAIN.batch_size
        )
        assert torch.isfinite(loss)
    assert any(not torch.equal(old, new) for old, new in zip(before, engine.network.parameters(), strict=True))
    assert sums.take()[-1, 2] > 0


def test_the_training_loss_is_flow_matchings_own() -> None:
    """``|u_theta - u|^2`` at t uniform, estimated at log-SNR uniform: ``e^(-l/2)/2`` times the squared eps error."""
    u, count = (torch.arange(20_000) + 0.5) / 20_000, 20_000
    x0, eps = normals(3, torch.arange(count), (1, 1, 1)), normals(4, torch.arange(count), (1, 1, 1))
    network = Gaussian("flow", 0.3, 2.0)
    losses = Diffusion(FLOW, SIMPLE).losses(network, x0, u, eps, torch.float32)
    ours = float((losses.primal * (FLOW.logsnr_max - FLOW.logsnr_min)).mean())
    t = FIRST + u * (LAST - FIRST)
    x = (1 - per_sample(t, x0)) * x0 + per_sample(t, x0) * eps
    direct = float((network(x, 1000 * t) - (eps - x0)).square().mean() * (LAST - FIRST))
    assert ours == pytest.approx(direct, rel=0.02)


def test_samples_have_the_distribution_that_the_network_knows() -> None:
    x = Sampler(Euler(steps=200), FLOW, (1, 16, 16), bounded=False).draw(Gaussian("flow", 0.5, 0.04), 64, seed=0)
    assert x.mean() == pytest.approx(0.5, abs=0.01)
    assert x.std() == pytest.approx(0.2, abs=0.005)


def test_the_probe_measures_in_nats(alone: Ranks) -> None:
    """An exact model of N(0, 1) against one that is off by 1/2: D/2 log(1 + SNR) weighted, known in closed form."""

    class Normals:
        def images(self, rows: np.ndarray) -> np.ndarray:
            return normals(9, torch.as_tensor(rows), (1, 2, 2)).numpy()

    rows, high = np.arange(256), 3.0
    probe = Probe([ProbeSet("a", rows, Normals(), high)], 2048, FLOW, alone, seed=0, chunk=512)
    losses = [float(probe.sums(probe.measure(Gaussian("flow", mean, 1.0), probe.all)).mean()[0]) for mean in (0.5, 0.0)]
    # KL(N(0, 1) * N_l || N(1/2, 1) * N_l) at the window's end, in D = 4 dimensions, less that at the noise end
    signal = [1 / (1 + np.exp(-level)) for level in (high, FLOW.logsnr_min)]
    assert losses[0] - losses[1] == pytest.approx(4 * 0.25 / 2 * (signal[0] - signal[1]), rel=0.05)


def test_only_processes_know_the_coefficients() -> None:
    """No module without a process takes ``coefficients``, or a sigmoid, which those of a log-SNR are made of."""
    knowing, processes = set(), {"process.py"}
    for path in CDT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(attr="sigmoid" | "coefficients" | "alphas_cumprod"):
                    knowing.add(path.name)
                case ast.ClassDef(bases=[ast.Name(id="Process")]):
                    processes.add(path.name)
                case _:
                    pass
    assert knowing == processes
    assert len(processes) > 1


def test_a_sampler_of_another_path_is_refused() -> None:
    for process, sampler in ((FLOW, "dpmpp_2m"), (PATHS["epsilon"], "euler")):
        with pytest.raises(InputError, match=rf"sampler.name: {sampler} does not sample along this path; take "):
            process.check_sampler(sampler, 10)
        FLOW.check_sampler("euler", 10)
