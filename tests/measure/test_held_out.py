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
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.engine.ranks import Ranks
from cdt.measure.held_out import held_out_split
from cdt.measure.statistics import Statistics

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
    assert held_out_split(config, Index.load(shards)) == found


@pytest.fixture
def statistics(tmp_path: Path, alone: Ranks) -> Statistics:
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
    found = Statistics(config, index, ImageReader(index, 512), requirements, process, alone)
    found.set_windows(np.array([2.0, 2.0]))
    return found


def memory(statistics: Statistics, rows: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    """The best denoiser for nothing but these training images: it gives back one of them."""
    known = torch.as_tensor(normalise(statistics._reader.images(rows)))

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = (value[:, None, None, None] for value in alpha_sigma(statistics._process.logsnr(timestep)))
        distance = (x[:, None] - alpha[:, None] * known).flatten(2).square().sum(dim=2)
        posterior = torch.softmax(-distance / (2 * sigma.flatten()[:, None] ** 2), dim=1)
        return (x - alpha * torch.einsum("bn,n...->b...", posterior, known)) / sigma

    return network


def test_who_memorises_has_a_gap_and_who_ignores_the_images_has_none(statistics: Statistics) -> None:
    """64 images of each population see the same noise, so a network that does not look at them has exactly no gap."""
    lambdas = np.zeros(2)
    silent: Any = torch.zeros_like
    ignoring = statistics.held_out_gaps(cast(nn.Module, lambda x, timestep: silent(x)), lambdas)
    assert ignoring["many"][0] == pytest.approx(0, abs=1e-9)
    rows = statistics._requirements.rows["many"]
    (gap, error) = statistics.held_out_gaps(cast(nn.Module, memory(statistics, rows)), lambdas)["many"]
    assert gap > 2 * error > 0


def test_only_constraints_with_enough_held_out_samples_are_compared(statistics: Statistics) -> None:
    silent: Any = torch.zeros_like
    assert list(statistics.held_out_gaps(cast(nn.Module, lambda x, timestep: silent(x)), np.ones(2))) == ["many"]
    assert statistics.told_of_samples() == (
        "losses are measured on samples of split val for many; on training samples for few"
    )
