from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdt.constraints import GeneratedFrequency, MinFrequency
from cdt.diffusion.config import DiffusionConfig, SamplerConfig
from cdt.diffusion.sampler import Sampler
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.engine.ranks import Ranks
from cdt.errors import InputError
from cdt.judges import train_classifier
from cdt.measure.generated import GeneratedShares, judged_columns

SHAPE = (1, 4, 4)
PROCESS = VariancePreserving.from_config(DiffusionConfig())


class Knows:
    """A judge of three classes and of an attribute's values."""

    labels = ("four", "five", "nine", "male=1", "age=0.1234567")

    def probabilities(self, images: Tensor) -> Tensor:
        return torch.full((len(images), len(self.labels)), 1 / len(self.labels))


def constraint(tree: dict[str, Any]) -> GeneratedFrequency:
    budget = {"generated_frequency": {"min": 0.2, "classifier": "judge.safetensors"}}
    return GeneratedFrequency.model_validate({**tree, **budget})


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"class": "five"}, [1]),
        ({"class": ["four", "nine"]}, [0, 2]),
        ({"where": {"male": 1}}, [3]),
        ({"where": {"age": 0.1234567}}, [4]),
    ],
)
def test_what_a_classifier_calls_the_samples_of_a_constraint(tree: dict[str, Any], expected: list[int]) -> None:
    assert judged_columns(Knows(), "a", constraint(tree).statistic) == expected


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"class": "four", "where": {"male": 1}}, "constraints.a: a classifier cannot tell class four and male = 1"),
        ({"where": {"male": 1, "age": 0.5}}, "constraints.a: a classifier cannot tell male = 1 and age = 0.5"),
        ({"class": "fuor"}, "constraints.a.class: the judge does not know 'fuor'; did you mean 'four'?"),
        ({"where": {"male": 0}}, "constraints.a.where: the judge does not know 'male=0'"),
    ],
)
def test_what_a_classifier_cannot_tell_is_refused(tree: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        judged_columns(Knows(), "a", constraint(tree).statistic)
    assert str(caught.value).startswith(told)


class Bright(nn.Module):
    """An eps-prediction that makes every sample a constant brightness."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        logsnr = PROCESS.logsnr(timestep)[:, None, None, None]
        a, s = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        return (x - a * self.level) / s


def test_shares_are_mean_posteriors_of_fresh_samples(tmp_path: Path, alone: Ranks) -> None:
    """Bright images are of class light: a generator of bright ones has nearly all its mass there."""
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0)) * 0.1
    labels = torch.arange(64) % 2
    images = noise + (labels * 1.6 - 0.8).view(-1, 1, 1, 1)
    judge = tmp_path / "judge.safetensors"
    train_classifier(images, labels, ["dark", "light"], architecture="plain", seed=0, steps=60).save(judge)

    def judged(name: str) -> GeneratedFrequency:
        budget = {"min": 0.5, "classifier": str(judge)}
        return GeneratedFrequency.model_validate({"class": name, "generated_frequency": budget})

    constraints = {
        "light": judged("light"),
        "free": MinFrequency.model_validate({"class": "dark", "min_frequency": 0.1}),
        "dark": MinFrequency.model_validate({"class": "dark", "min_frequency": 0.1, "classifier": str(judge)}),
        "other": judged("dark"),
    }
    sampler = Sampler(SamplerConfig(steps=4), PROCESS, SHAPE)
    shares = GeneratedShares(constraints, sampler, alone, samples=24, seed=3)
    everything = np.arange(4)
    warm = shares.calibrate(Bright(0.8), windows=np.zeros(4))
    assert warm.shares.keys() == {0, 2, 3}
    assert warm.shares[0] > 0.9
    assert warm.shares[2] == warm.shares[3] < 0.1
    assert warm.losses == {i: pytest.approx(-np.log(warm.shares[i])) for i in (0, 3)}
    bright = shares.measure(Bright(0.8), everything, period=1)
    assert bright.count.tolist() == [24, 0, 0, 24]  # that of dark is wanted at calibration only
    mean = bright.mean()
    assert mean[0] > 0.9
    np.testing.assert_allclose(mean[0] + mean[3], 1, rtol=1e-6)
    dark = shares.measure(Bright(-0.8), everything, period=1)
    assert dark.mean()[0] < 0.1
    again = shares.measure(Bright(0.8), np.arange(0), period=1)
    np.testing.assert_array_equal(again.total, bright.total)


class OneOf(Ranks):
    """A rank that is asked alone: its sums are its own."""

    def sum(self, values: np.ndarray) -> np.ndarray:
        return values


def test_as_many_samples_count_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Ranks draw equally many; on 7 ranks that is 28 samples for 24, of which 4 do not count."""
    judge, images = tmp_path / "judge.safetensors", torch.randn(64, *SHAPE)
    train_classifier(images, torch.arange(64) % 2, ["dark", "light"], architecture="plain", seed=0, steps=1).save(judge)
    budget = {"min": 0.5, "classifier": str(judge)}
    constraints = {"light": GeneratedFrequency.model_validate({"class": "light", "generated_frequency": budget})}
    sampler = Sampler(SamplerConfig(steps=2), PROCESS, SHAPE)

    def measured(world: int) -> np.ndarray:
        ranks = (OneOf(rank, world, torch.device("cpu")) for rank in range(world))
        shares = (GeneratedShares(constraints, sampler, each, samples=24, seed=3) for each in ranks)
        sums = (share.measure(Bright(0.8), np.arange(1), period=1) for share in shares)
        return np.sum([(each.count[0], each.total[0]) for each in sums], axis=0)

    one, seven = measured(1), measured(7)
    assert one[0] == seven[0] == 24
    assert seven[1] == pytest.approx(one[1])


def test_without_a_classifier_nothing_is_drawn(alone: Ranks) -> None:
    free = {"free": MinFrequency.model_validate({"class": "dark", "min_frequency": 0.1})}
    shares = GeneratedShares(free, Sampler(SamplerConfig(), PROCESS, SHAPE), alone, samples=24, seed=3)

    class Never(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            raise AssertionError

    assert shares.measure(Never(), np.arange(1), period=1).count.tolist() == [0]
    assert shares.calibrate(Never(), np.zeros(1)).shares == {}
