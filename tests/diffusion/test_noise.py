"""Counter-based noise: known answers, distributions, and independence of how positions are asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from cdt.diffusion.noise import normals, philox, stratified

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ONES] * 4, [ONES] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: list[int], key: list[int], expected: str) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    words = philox(key[0] | key[1] << 32, (c0, c1, c2, c3))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_noise_is_normal() -> None:
    """Four moments and the whole distribution, each within what 400,000 draws allow (fixed seed)."""
    draws = normals(0, torch.arange(100), (4, 1000)).flatten().double().numpy()
    n = len(draws)
    assert draws.mean() == pytest.approx(0, abs=4 / math.sqrt(n))
    assert draws.var() == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert stats.skew(draws) == pytest.approx(0, abs=4 * math.sqrt(6 / n))
    assert stats.kurtosis(draws) == pytest.approx(0, abs=4 * math.sqrt(24 / n))
    assert stats.kstest(draws, "norm").pvalue > 0.01
    assert np.abs(draws).max() > 4.2


def test_noise_is_uncorrelated_within_and_between_samples_and_seeds() -> None:
    one, two = (normals(seed, torch.arange(500), (16,)).double() for seed in (1, 2))
    together = torch.cat([one, two], dim=1)
    correlations = torch.corrcoef(together.T) - torch.eye(32, dtype=torch.float64)
    assert correlations.abs().max().item() < 4.5 / math.sqrt(500)
    between = (one[:-1] * one[1:]).mean().item()
    assert between == pytest.approx(0, abs=4 / math.sqrt(one.numel()))


def test_levels_do_not_repeat_what_the_noise_used() -> None:
    positions = torch.arange(5000)
    u = stratified(3, positions, 1).double()
    eps = normals(3, positions, (4,)).double()
    table = torch.cat([u[:, None], eps, eps**2], dim=1)
    assert (torch.corrcoef(table.T)[0, 1:].abs() < 4 / math.sqrt(5000)).all()


@given(
    positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=30).map(torch.tensor),
    seed=st.integers(0, 2**64 - 1),
    batch_size=st.integers(1, 300),
    data=st.data(),
)
def test_draws_are_the_same_whatever_batch_they_are_asked_in(
    positions: Tensor, seed: int, batch_size: int, data: st.DataObject
) -> None:
    """To the last bit."""
    subset = torch.tensor(data.draw(st.lists(st.integers(0, len(positions) - 1), min_size=1, max_size=10)))
    whole = normals(seed, positions, (3, 5, 7))
    assert torch.equal(normals(seed, positions[subset], (3, 5, 7)), whole[subset])
    levels = stratified(seed, positions, batch_size)
    assert torch.equal(stratified(seed, positions[subset], batch_size), levels[subset])


def test_each_position_and_each_seed_has_noise_of_its_own() -> None:
    """All 64 bits of either count."""
    positions = torch.tensor([0, 1, 2**31, 2**32, 2**32 + 1, 2**62])
    draws = torch.cat([normals(seed, positions, (2,)) for seed in (0, 1, 2**32, 2**63 - 1)])
    assert len(torch.unique(draws[:, 0])) == len(draws)


def test_shape_and_type() -> None:
    positions = torch.arange(3)
    for shape in [(1, 1, 1), (3, 5, 5), (2,)]:
        draws = normals(0, positions, shape)
        assert draws.shape == (3, *shape)
        assert draws.dtype == torch.float32
    assert normals(0, positions[:0], (1, 8, 8)).shape == (0, 1, 8, 8)
    assert stratified(0, positions, 3).dtype == torch.float32


@given(seed=st.integers(0, 2**64 - 1), batch=st.integers(0, 2**40), batch_size=st.integers(1, 700))
def test_each_stratum_holds_one_position_of_the_global_batch(seed: int, batch: int, batch_size: int) -> None:
    u = stratified(seed, batch * batch_size + torch.arange(batch_size), batch_size).sort().values
    edges = torch.arange(batch_size + 1) / batch_size
    assert (edges[:-1] <= u).all()
    assert (u <= edges[1:]).all()


def test_over_the_batches_each_slot_sees_all_levels() -> None:
    u = stratified(5, torch.arange(4000 * 16), 16).reshape(4000, 16)
    for slot in range(16):
        assert stats.kstest(u[:, slot].double().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("batch_size", [32, 90, 100, 128, 145, 243, 1000, 4096])
@pytest.mark.parametrize("part", [2, 4, 8])
def test_runs_of_neighbours_are_spread_over_all_levels(batch_size: int, part: int) -> None:
    """The samples of one class, or of one rank: no gap wider than 3 times what an even spread would leave."""
    u = stratified(1, torch.arange(batch_size), batch_size)
    steps = torch.diff(u) % 1
    assert (steps - (math.sqrt(5) - 1) / 2).abs().max().item() * batch_size < 4
    run = batch_size // part
    for start in range(0, batch_size - run + 1, max(run // 2, 1)):
        levels = u[start : start + run].sort().values
        gaps = torch.diff(torch.cat([levels, levels[:1] + 1]))
        assert gaps.max().item() * run < 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_an_accelerator_draws_the_same_to_rounding() -> None:
    """The words are integers and agree bit by bit; logarithm, square root and cosine differ in their last places."""
    positions = torch.tensor([0, 1, 77, 2**33 + 5])
    there = positions.cuda()
    ours, theirs = (philox(5, (p, p + 1, p * 3 % 2**32, p // 7)) for p in (positions, there))
    for word, other in zip(ours, theirs, strict=True):
        assert torch.equal(word, other.cpu())
    noise, other = (normals(5, p, (3, 32, 32)).cpu() for p in (positions, there))
    torch.testing.assert_close(noise, other, rtol=0, atol=1e-5)
    levels, other = (stratified(5, p, 2).cpu() for p in (positions, there))
    torch.testing.assert_close(levels, other, rtol=0, atol=1e-6)
