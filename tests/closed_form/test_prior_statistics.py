"""Both statistics of the prior constraint are the divergence from the pretrained model, on exact denoisers.

The pretrained model is a mixture of Gaussians; what it was fine-tuned to is another one.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import begin, shares_problem
from mixtures import Mixture, mixture_divergence, mixture_samples

from cdt.constraints import Calibration, MaxKl, Prior
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.process import Process
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.dual import Sums, dual_step, mixture_probabilities
from cdt.evaluate.divergence import divergence_of
from cdt.training.calibrate import share_at_budget

FOUR = Mixture(
    means=torch.tensor([[-0.9, 0.0], [0.0, 0.9], [0.9, 0.0], [0.0, -0.9]], dtype=torch.float64),
    variances=torch.tensor([0.01, 0.02, 0.01, 0.015], dtype=torch.float64),
    shares=torch.tensor([0.3, 0.3, 0.4, 0.0], dtype=torch.float64),
)
"""The pretrained model has three modes; the new data is the fourth."""
PROCESS = VariancePreserving.from_config(DiffusionConfig())
V = VariancePreserving.from_config(DiffusionConfig(schedule="linear_beta", prediction="v_prediction"))
SAMPLES = 6000


def to_new_data(share: float) -> Mixture:
    """The pretrained model with a share for the fourth mode."""
    return FOUR.reweighted(np.append(FOUR.shares[:3].numpy() * (1 - share), share))


WITHIN = FOUR.reweighted(np.array([0.5, 0.25, 0.25, 0.0]))
BROADER = Mixture(FOUR.means, FOUR.variances * 2, FOUR.shares)
MODELS = {"a new mode": to_new_data(0.4), "other shares": WITHIN, "broader modes": BROADER}


@pytest.mark.parametrize("window", [10.0, 2.0], ids=["full range", "window"])
@pytest.mark.parametrize("process", [PROCESS, V], ids=["eps", "v"])
@pytest.mark.parametrize("name", MODELS)
def test_both_statistics_are_the_divergence_within_their_standard_errors(
    name: str, process: Process, window: float
) -> None:
    model, window = MODELS[name], min(window, process.logsnr_max)
    exact = mixture_divergence(FOUR, model, window) - mixture_divergence(FOUR, model, process.logsnr_min)
    networks = model.denoiser(process), FOUR.denoiser(process)
    samples = mixture_samples(FOUR, SAMPLES)
    distance, loss = (
        divergence_of(*networks, process, samples, window=window, statistic=statistic, batch_size=SAMPLES)
        for statistic in ("distance", "loss")
    )
    assert distance.nats == pytest.approx(exact, abs=3 * distance.standard_error)
    assert loss.nats == pytest.approx(exact, abs=3 * loss.standard_error)
    assert exact > 5 * distance.standard_error


def test_the_divergence_to_a_new_mode_is_the_log_of_what_is_left() -> None:
    """With disjoint supports a budget b leaves the new data a share of up to ``1 - exp(-b)``."""
    for budget in (0.1, 0.5, 2.0):
        assert mixture_divergence(FOUR, to_new_data(1 - math.exp(-budget)), 10) == pytest.approx(budget, rel=1e-4)


@pytest.mark.parametrize("name", ["other shares", "broader modes"])
def test_within_the_old_support_the_distance_has_a_tenth_of_the_variance_or_less(name: str) -> None:
    networks = MODELS[name].denoiser(PROCESS), FOUR.denoiser(PROCESS)
    samples = mixture_samples(FOUR, SAMPLES)
    distance, loss = (
        divergence_of(*networks, PROCESS, samples, window=10.0, statistic=statistic, batch_size=SAMPLES)
        for statistic in ("distance", "loss")
    )
    assert distance.standard_error**2 <= loss.standard_error**2 / 10


def test_dual_ascent_gives_the_new_data_what_the_budget_leaves() -> None:
    """Projected ascent on the measured distance, exact denoisers for training that has converged."""
    prior = Prior.model_validate({"prior": {"max_kl": 0.5}, "window": None})
    threshold = prior.threshold(Calibration(loss=0.0, share=0.0, window=10.0))
    problem = shares_problem(np.zeros(1), np.array([threshold]), rules="ascent", eta=prior.eta, cap=10.0)
    state = begin(np.array([0.3]))
    samples, teacher = mixture_samples(FOUR, 2000), FOUR.denoiser(PROCESS)
    for _ in range(60):
        new, _ = mixture_probabilities(state.lambdas)
        network = to_new_data(float(new)).denoiser(PROCESS)
        found = divergence_of(network, teacher, PROCESS, samples, window=10.0, batch_size=8000)
        state = dual_step(problem, state, Sums(*np.array([[found.nats * 8], [found.nats**2 * 8], [8.0]])))
    assert state.losses[0] == pytest.approx(0.5, abs=0.01)
    new, old = mixture_probabilities(state.lambdas)
    assert new == pytest.approx(1 - share_at_budget(prior), abs=0.03)
    assert old == pytest.approx(math.exp(-0.5), abs=0.03)


def test_with_the_pretrained_model_as_the_objective_the_new_data_get_what_they_ask_for() -> None:
    """``max_kl: b`` on the new mode, above a model that knows nothing else, asks for a share of ``exp(-b)``."""
    new_alone = FOUR.reweighted(np.array([0.0, 0.0, 0.0, 1.0]))
    asked = MaxKl.model_validate({"class": "new", "max_kl": 1.0, "reference": "runs/new-alone", "window": None})
    floor = 3.0
    threshold = asked.threshold(Calibration(loss=9.0, share=0.0, window=10.0, reference=floor))
    problem = shares_problem(np.zeros(1), np.array([threshold]), rules="ascent", eta=0.1, cap=10.0)
    state = begin(np.array([1.0]))
    samples, reference = mixture_samples(new_alone, 2000), new_alone.denoiser(PROCESS)
    for _ in range(60):
        _, new = mixture_probabilities(state.lambdas)
        network = to_new_data(float(new)).denoiser(PROCESS)
        found = divergence_of(
            network, reference, PROCESS, samples, window=10.0, statistic="loss", seed=1, batch_size=8000
        )
        loss = floor + found.nats
        state = dual_step(problem, state, Sums(*np.array([[loss * 8], [loss**2 * 8], [8.0]])))
    _, new = mixture_probabilities(state.lambdas)
    assert new == pytest.approx(share_at_budget(asked), abs=0.03)
    assert new == pytest.approx(math.exp(-1.0), abs=0.03)
