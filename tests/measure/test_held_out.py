from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch
from paths import alpha_sigma
from torch import Tensor, nn

from cdt.constraints import Population, Requirements
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader, normalise
from cdt.diffusion.sampler import Sampler
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.engine.ranks import Ranks
from cdt.errors import InputError
from cdt.measure.held_out import held_out_split
from cdt.measure.instrument import Setup
from cdt.measure.probed import ProbedLosses

MANY = {"class": ["2", "3", "5", "6"], "max_loss": 300.0}
FEW = {"class": "4", "max_loss": 300.0}


@pytest.mark.parametrize(
    ("split", "asked", "found"),
    [
        ("validation", "auto", "validation"),
        ("val", "auto", "val"),
        ("test", "auto", None),
        ("test", "test", "test"),
        ("validation", None, None),
    ],
)
def test_a_split_that_is_made_for_it_is_probed_unasked(
    split: str, asked: str | None, found: str | None, tmp_path: Path
) -> None:
    shards = tiny.write_shards(tmp_path / "data", split={"train": 0.85, split: 0.15})
    config = tiny.config(shards, tmp_path / "run", probe={"split": asked})
    assert held_out_split(config.probe, Index.load(shards)) == found


@pytest.fixture
def setup(tmp_path: Path, alone: Ranks) -> Setup:
    shards = tiny.write_shards(tmp_path / "data", split={"train": 0.9, "val": 0.1})
    config = tiny.config(
        shards,
        tmp_path / "run",
        constraints={"many": MANY, "few": FEW},
        diffusion={"prediction": "epsilon"},
        probe={"draws": 64},
    )
    index = Index.load(shards)
    population = Population(index.classes, index.class_names, index.attributes, "digits")
    requirements = Requirements.bind(config.constraints, population)
    process = VariancePreserving.from_config(config.diffusion)
    return Setup(
        requirements,
        index,
        ImageReader(index, 512),
        process,
        alone,
        data=config.data,
        probe=config.probe,
        sampler=Sampler(config.sampler, process, index.shape),
        seed=config.run.seed,
        chunk=config.train.batch_size,
    )


@pytest.fixture
def probed(setup: Setup) -> ProbedLosses:
    made = ProbedLosses(setup)
    made.resume(np.array([2.0, 2.0]), np.zeros(80))
    return made


def test_a_baseline_of_other_images_is_refused(setup: Setup) -> None:
    with pytest.raises(InputError, match="the checkpoint has the losses of 79 images, the probe 80"):
        ProbedLosses(setup).resume(np.array([2.0, 2.0]), np.zeros(79))


def memory(setup: Setup, rows: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    """The best denoiser for nothing but these training images: it gives back one of them."""
    known = torch.as_tensor(normalise(setup.reader.images(rows)))

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = (value[:, None, None, None] for value in alpha_sigma(setup.process.logsnr(timestep)))
        distance = (x[:, None] - alpha[:, None] * known).flatten(2).square().sum(dim=2)
        posterior = torch.softmax(-distance / (2 * sigma.flatten()[:, None] ** 2), dim=1)
        return (x - alpha * torch.einsum("bn,n...->b...", posterior, known)) / sigma

    return network


def test_who_memorises_has_a_gap_and_who_ignores_the_images_has_none(setup: Setup, probed: ProbedLosses) -> None:
    """64 images of each population see the same noise, so a network that does not look at them has exactly no gap."""
    lambdas = np.zeros(2)
    silent: Any = torch.zeros_like
    ignoring = probed.held_out_gaps(cast(nn.Module, lambda x, timestep: silent(x)), lambdas, 9)
    assert ignoring["many"][0] == pytest.approx(0, abs=1e-9)
    rows = setup.requirements.rows["many"]
    (gap, error) = probed.held_out_gaps(cast(nn.Module, memory(setup, rows)), lambdas, 9)["many"]
    assert gap > 2 * error > 0


def test_only_constraints_with_enough_held_out_samples_are_compared(probed: ProbedLosses) -> None:
    silent: Any = torch.zeros_like
    assert list(probed.held_out_gaps(cast(nn.Module, lambda x, timestep: silent(x)), np.ones(2), 9)) == ["many"]
    assert probed.describe_samples() == (
        "losses are measured on samples of split val for many; on training samples for few"
    )
