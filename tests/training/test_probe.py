from __future__ import annotations

from typing import Any

import numpy as np
import torch
from two_ranks import SEED, probed

from cdt.data.index import Index
from cdt.data.plan import stream_key
from cdt.data.reader import ImageReader
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.noise import normals, stratified
from cdt.diffusion.process import DiffusionConfig
from cdt.training.probe import Probe
from cdt.training.ranks import Ranks

PROCESS = Diffusion(DiffusionConfig()).process


def test_two_ranks_measure_what_one_does(two_ranks: list[dict[str, Any]], digits: Index, alone: Ranks) -> None:
    """27 draws do not divide by two: one rank measures a draw again, which must not count."""
    single = probed(digits, alone)
    for rank in two_ranks:
        told = rank["probed"]
        assert told["windows"] == single["windows"]
        assert told["count"] == [9, 9, 9]
        for name in ("total", "squares", "gathered"):
            np.testing.assert_allclose(told[name], single[name], rtol=1e-9)
        assert told["mine_is_mine"]
    assert [rank["probed"]["forwards"] for rank in two_ranks] == [4, 4]
    asked = [question for rank in two_ranks for question in rank["probed"]["exemplars"]]
    assert sorted(asked) == sorted(single["exemplars"])


def test_draws_are_nats_on_the_window(digits: Index, alone: Ranks) -> None:
    """For a network that always answers 0 the error is the noise's own square: D (high - low) / 2 |eps|^2 / D."""
    rows = {name: np.flatnonzero(digits.classes == c) for c, name in enumerate(("zero", "one"))}
    windows, draws = np.array([10.0, -2.5]), 16
    probe = Probe(rows, windows, draws, ImageReader(digits, 512), PROCESS, alone, seed=3, chunk=5)
    seen: list[torch.Tensor] = []

    def silent(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(timestep)
        return torch.zeros_like(x)

    values = probe.measure(silent)
    eps = normals(stream_key(3, "probe"), torch.arange(2 * draws), (1, 8, 8)).numpy()
    scale = np.repeat((windows - PROCESS.logsnr_min) / 2, draws)
    np.testing.assert_allclose(values, (eps.astype(np.float64) ** 2).sum((1, 2, 3)) * scale, rtol=1e-6)
    levels = PROCESS.logsnr(torch.cat(seen)).numpy().reshape(2, draws)
    strata = (levels - PROCESS.logsnr_min) / (windows[:, None] - PROCESS.logsnr_min) * draws
    assert np.sort(np.floor(strata.clip(0, draws - 1e-3))).astype(int).tolist() == [list(range(draws))] * 2

    sums = probe.sums(values)
    by_constraint = values.reshape(2, draws)
    np.testing.assert_allclose(sums.total, by_constraint.sum(1))
    np.testing.assert_allclose(sums.squares, (by_constraint**2).sum(1))
    assert sums.count.tolist() == [draws, draws]


def test_the_same_draws_every_time(digits: Index, alone: Ranks) -> None:
    rows = {"few": np.flatnonzero(digits.classes == 4)[:3]}  # fewer samples than draws: they come again, noised anew
    first, again, other = (
        Probe(rows, np.array([0.0]), 12, ImageReader(digits, 512), PROCESS, alone, seed=seed, chunk=7).measure(
            lambda x, timestep: x / 2
        )
        for seed in (SEED, SEED, SEED + 1)
    )
    np.testing.assert_array_equal(first, again)
    assert len(set(first.tolist())) == 12
    assert not np.isin(first, other).any()


def test_without_constraints_nothing_is_measured(digits: Index, alone: Ranks) -> None:
    probe = Probe({}, np.zeros(0), 8, ImageReader(digits, 512), PROCESS, alone, seed=0, chunk=4)

    def never(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    values = probe.measure(never)
    assert values.shape == probe.gather(values).shape == probe.sums(values).count.shape == (0,)


def test_a_draw_depends_on_its_own_constraint_alone(digits: Index, alone: Ranks) -> None:
    """u is stratified per constraint: draw j of constraint i stands at position i n + j."""
    key = stream_key(SEED, "probe")
    u = stratified(key, torch.arange(24), 8).reshape(3, 8)
    assert [sorted((row * 8).floor().int().tolist()) for row in u] == [list(range(8))] * 3
