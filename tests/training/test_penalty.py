"""A requirement that no data shows: its multiplier is the weight of a surrogate in the loss. Its kind is made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from cdt.checkpoints.checkpoint import TrainState, network_weights
from cdt.cluster.trainer import launch
from cdt.config import RunConfig
from cdt.constraints import Calibration, Constraint, Penalty
from cdt.data.stream import Batch, MixtureStream
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.process import per_sample
from cdt.dual import Sums, dual_step
from cdt.dual.config import DualConfig
from cdt.errors import InputError
from cdt.training import step
from cdt.training.binding import Bound, bind
from cdt.training.calibrate import first_state, pose_problem
from cdt.training.check import check
from cdt.training.job import Job
from cdt.training.sums import PeriodSums

D = 4
A = torch.tensor([[1.0, -0.5, 0.0, 0.2], [0.0, 0.8, 0.3, -1.0]], dtype=torch.float64)


def weight(logsnr: Tensor) -> Tensor:
    """w_pen"""
    return torch.sigmoid(logsnr)


class Still(Constraint):
    """``loss_i <= c`` on the constraint's samples, pursued by asking for predictions with a small ``|A x0|^2``."""

    budget: ClassVar[str] = "still"
    rule: ClassVar[str] = "ascent"

    still: float

    @property
    def actuator(self) -> Penalty:
        return Penalty(lambda x0, logsnr: (x0.flatten(1)[:, :D] @ A.T.to(x0)).square().sum(dim=1), weight)

    def threshold(self, calibration: Calibration) -> float:
        return self.still

    def describe(self) -> str:
        return f"{self.samples.describe()}: still"


STILL = Still.model_validate({"class": [5], "still": 1.0})


class Linear(nn.Module):
    """x0_theta = W x_t, in whatever the process wants to hear; without an engine's machinery."""

    accumulation, dtype = 2, torch.float32

    def __init__(self, diffusion: Diffusion, W: Tensor, logsnr: Tensor) -> None:
        super().__init__()
        a, s = diffusion.process.coefficients(logsnr.double())
        identity = torch.eye(D, dtype=torch.float64)
        output = {"sample": W, "v_prediction": (a * identity - W) / s, "epsilon": (identity - a * W) / s}
        self.matrix = nn.Parameter(output[diffusion.process.prediction].float())

    @property
    def network(self) -> Linear:
        return self

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).reshape(x.shape)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, learning_rate: float) -> None:
        """The gradient is what is looked at."""


def exact_moments(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """x0 with this covariance and eps with that of noise, uncorrelated, to the last digit: [4 D^2, 1, 2, 2] each."""
    signs = torch.cat([torch.eye(D), -torch.eye(D)]).double() * D**0.5
    points = signs @ torch.linalg.cholesky(covariance).T
    pairs = torch.cartesian_prod(torch.arange(2 * D), torch.arange(2 * D))
    return tuple(each[pairs[:, k]].float().reshape(-1, 1, 2, 2) for k, each in enumerate((points, signs)))  # type: ignore[return-value]


def gradient(
    diffusion: Diffusion,
    engine: Linear,
    x0: Tensor,
    multipliers: list[float] | None,
    monkeypatch: pytest.MonkeyPatch,
    u: float,
    eps: Tensor,
) -> Tensor:
    """Of one training step, by the output's matrix."""
    n = len(x0)
    index = torch.arange(n)
    batch = Batch(x0, index, torch.zeros_like(index), torch.zeros_like(index), torch.ones(n), index)
    if multipliers is not None:
        batch = Batch(**{**vars(batch), "penalties": torch.tensor(multipliers)})
    monkeypatch.setattr(step, "stratified", lambda seed, positions, size: torch.full((len(positions),), u))
    monkeypatch.setattr(step, "normals", lambda seed, positions, shape: eps[positions])
    engine.zero_grad()
    sums = PeriodSums(np.array([1.0]), diffusion, torch.device("cpu"))
    penalties = [STILL.actuator] * len(multipliers or [])
    step.train_step(engine, diffusion, batch, sums, learning_rate=0.0, seed=0, batch_size=n, penalties=penalties)
    found = engine.matrix.grad
    assert found is not None
    return found.clone()


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "epsilon"])
@pytest.mark.parametrize("weighting", ["elbo", "simple"])
@pytest.mark.parametrize("level", [-2.0, 0.0, 1.5])
def test_the_gradient_vanishes_at_the_closed_form(
    prediction: Any, weighting: Any, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For q = N(0, S) and r = |A x0|^2: ``W = (w I + mu A'A)^-1 w a S (a^2 S + s^2 I)^-1``; two penalties add up."""
    diffusion = Diffusion.from_config(DiffusionConfig(prediction=prediction, weighting=weighting))
    process = diffusion.process
    u = (level - process.logsnr_min) / (process.logsnr_max - process.logsnr_min)
    logsnr = process.level(torch.tensor([u]))
    root = torch.tensor([[1.0, 0, 0, 0], [0.4, 0.8, 0, 0], [-0.3, 0.1, 0.6, 0], [0.2, 0, 0.5, 0.9]]).double()
    S, identity = root @ root.T, torch.eye(D, dtype=torch.float64)
    a, s = process.coefficients(logsnr.double())
    w = logsnr.double().exp() * diffusion.weighting(logsnr).double() / D
    mu = (0.7 + 0.4) * weight(logsnr).double()
    wiener = a * S @ torch.linalg.inv(a**2 * S + s**2 * identity)
    W = torch.linalg.inv(w * identity + mu * A.T @ A) @ (w * wiener)
    x0, eps = exact_moments(S)
    at = (diffusion, Linear(diffusion, W, logsnr), x0)
    parts = [gradient(*at, multipliers, monkeypatch, u, eps) for multipliers in (None, [0.7, 0.4], [0.0, 0.0])]
    plain, whole, nothing = (part.norm().item() for part in parts)
    assert whole < 1e-4 * plain
    assert torch.equal(parts[0], parts[2])
    best = (diffusion, Linear(diffusion, wiener, logsnr), x0)
    assert gradient(*best, None, monkeypatch, u, eps).norm() < 1e-4 * plain
    assert nothing == plain > 0


def test_predictions_are_kept_where_they_are_asked_for_and_losses_are_the_same() -> None:
    diffusion = Diffusion.from_config(DiffusionConfig(prediction="v_prediction"))
    x0, u, eps = torch.randn(6, 1, 2, 2), torch.linspace(0.1, 0.9, 6), torch.randn(6, 1, 2, 2)
    engine = Linear(diffusion, torch.eye(D).double() * 0.3, torch.tensor([0.0]))
    plain, kept = (diffusion.losses(engine, x0, u, eps, torch.float32, keep_x0=keep) for keep in (False, True))
    assert plain.x0 is None
    assert kept.x0 is not None
    assert torch.equal(plain.primal, kept.primal)
    a, s = (per_sample(each, x0) for each in diffusion.process.coefficients(plain.logsnr))
    x = a * x0 + s * eps
    torch.testing.assert_close(kept.x0, a * x - s * engine(x, u))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A floor, whose multiplier draws, and behind it a penalty."""
    floor = {"four": {"class": 4, "min_frequency": 0.2, "window": 0.5}}
    written = tiny.config(tiny.write_shards(tmp_path / "data"), tmp_path / "run", constraints=floor)
    return written.model_copy(update={"constraints": {"still": STILL, **written.constraints}})


def stream_of(config: RunConfig, bound: Bound, **options: Any) -> MixtureStream:
    r = bound.requirements
    mixture_of = bound.mixture_of(config.data.estimator)
    lambdas = np.zeros(len(r.names))
    data = config.data.model_copy(update={"lambda_lag": 3, "loader_workers": options.pop("workers", 0)})
    index = bound.rows()
    return MixtureStream(data, index, r.rows, r.cells, mixture_of, lambdas=lambdas, batch_size=16, seed=1, **options)


@pytest.mark.parametrize("estimator", ["resample", "separate", "reweight"])
def test_lambda_sums_multipliers_that_draw(config: RunConfig, estimator: str) -> None:
    bound = bind(config)
    mixture = bound.mixture_of(estimator)
    found, without = (mixture(np.array([penalty, 0.5])) for penalty in (3.0, 0.0))
    for name in ("probabilities", "stream_weights", "base_weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(without, name))
    if estimator == "resample":
        np.testing.assert_allclose(found.probabilities, [1 / 1.5, 0, 0.5 / 1.5])
    assert found.penalties is not None
    assert found.penalties.tolist() == [3.0]
    assert list(bound.penalties) == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_multipliers_arrive_with_the_batch_at_which_they_are_in_force_also_on_resume(
    config: RunConfig, workers: int
) -> None:
    """Steered before batches 2 and 4 with a lag of 3; a checkpoint before batch 6 still knows what is to come."""
    bound = bind(config)
    stream = stream_of(config, bound, workers=workers)
    arrived, state = [], None
    for number in range(10):
        if number in (2, 4):
            stream.steer(np.array([0.25 * number, 0.1]))
        if number == 4:
            state = stream.state()
        batch = next(stream)
        assert batch.penalties is not None
        assert {part.penalties for part in batch.split(4)} == {batch.penalties}
        arrived.append(batch.penalties.tolist())
    assert arrived == [[0.0]] * 5 + [[0.5]] * 2 + [[1.0]] * 3
    assert state is not None
    saved = TrainState(step=4, world=1, dual_steps=9, stream=state)
    again = stream_of(config, bound, rank=1, world=2)
    again.restore(TrainState.from_json({**vars(saved), "stream": vars(state)}).stream)
    assert [next(again).penalties.tolist() for _ in range(6)] == arrived[4:]  # type: ignore[union-attr]


def test_without_penalties_batches_bring_none(config: RunConfig) -> None:
    plain = config.model_copy(update={"constraints": {"four": config.constraints["four"]}})
    batch = next(stream_of(plain, bind(plain)))
    assert batch.penalties is None
    assert batch.to(torch.device("cpu")).split(2)[0].penalties is None


def test_its_multiplier_begins_at_zero_and_moves_in_the_dual_step_by_the_statistic(config: RunConfig) -> None:
    requirements = bind(config).requirements
    state = first_state(requirements, DualConfig())
    assert state.lambdas[0] == 0 < state.lambdas[1]
    calibrations = [Calibration(loss=5.0, share=0.1, window=0.5)] * 2
    problem = pose_problem(requirements, calibrations, DualConfig(eta=0.5), 9)
    assert problem.draws.tolist() == [False, True]
    assert problem.undrawn == ["still"]
    assert problem.shares[0] == 0 < problem.shares[1]
    n = np.full(2, 8.0)
    after = dual_step(problem, state, Sums(n * -3.0, n * 9.5, n))  # loss 5 - 3, threshold 1
    assert after.lambdas[0] == pytest.approx(0.5 * (2 - 1))
    assert dual_step(problem, after, Sums(n * -4.5, n * 20.5, n)).lambdas[0] == pytest.approx(0.5 + 0.5 * (0.5 - 1))
    low = dual_step(problem, state, Sums(n * -4.5, n * 20.5, n))
    assert low.lambdas[0] == 0


def test_it_has_no_share_that_the_mass_rule_could_move(config: RunConfig) -> None:
    check(config)
    mass = config.model_copy(update={"dual": DualConfig(rule="mass")})
    with pytest.raises(InputError, match=r"dual.rule: mass moves shares of the mixture, and still has none there"):
        check(mass)


@pytest.mark.filterwarnings(  # of the libraries, while they are imported
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:__array__ implementation"
)
def test_a_run_with_a_penalty_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    config: RunConfig, tmp_path: Path
) -> None:
    """Its multiplier rises from 0 with every dual step, and changes what is trained."""
    train = config.train.model_copy(update={"warm_steps": 2, "dual_steps": 8, "checkpoint_steps": 2})
    dual = DualConfig(period=1, eta=1e-3)
    data = config.data.model_copy(update={"lambda_lag": 2})
    config = config.model_copy(update={"train": train, "dual": dual, "data": data})

    def ran(name: str, config: RunConfig, checkpoint: Path | None = None) -> tuple[Path, list[dict[str, Any]]]:
        (tmp_path / name).mkdir()
        launch(Job(config, tmp_path / name, checkpoint), lambda report: None)
        rows = [json.loads(line) for line in (tmp_path / name / "dual.jsonl").read_text().splitlines()]
        return tmp_path / name / "checkpoints", [row for row in rows if row["constraint"] == "still"]

    whole, rows = ran("whole", config)
    lambdas = [row["lambda"] for row in rows]
    assert lambdas == sorted(set(lambdas))
    assert lambdas[0] > 0
    resumed, again = ran("resumed", config, whole / "step-000000006")
    assert again == [row for row in rows if row["step"] > 6]
    met = {**config.constraints, "still": STILL.model_copy(update={"still": 1e9})}
    free, rows = ran("free", config.model_copy(update={"constraints": met}))
    assert {row["lambda"] for row in rows} == {0.0}
    weights = [network_weights(each / "step-000000010") for each in (whole, resumed, free)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert any(not torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())
