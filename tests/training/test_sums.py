from __future__ import annotations

import numpy as np
import torch

from cdt.constraints import MaxLoss, MinFrequency, Population, Requirements
from cdt.data.stream import Batch
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion, Losses
from cdt.engine.ranks import Ranks
from cdt.training.sums import PeriodSums, constraint_sums, once_per_cell

DIFFUSION = Diffusion.from_config(DiffusionConfig())
LOW, HIGH = DIFFUSION.process.logsnr_min, DIFFUSION.process.logsnr_max
SHAPE = (3, 4, 5)
CELLS = 4
WINDOWS = np.array([HIGH, 0.0, -3.5, 2.25])


def draws(count: int, seed: int) -> tuple[Batch, Losses]:
    rng = np.random.default_rng(seed)
    batch = Batch(
        images=torch.zeros(count, *SHAPE),
        positions=torch.arange(count),
        streams=torch.from_numpy(rng.integers(0, 3, count)),
        cells=torch.from_numpy(rng.integers(0, CELLS - 1, count)),  # the last cell is never drawn
        weights=torch.ones(count),
        rows=torch.arange(count),
    )
    logsnr = torch.from_numpy(rng.uniform(LOW, HIGH, count).astype(np.float32))
    error = torch.from_numpy(rng.lognormal(size=count).astype(np.float32)).requires_grad_()
    return batch, Losses(logsnr, error, error * 7)


def by_brute_force(parts: list[tuple[Batch, Losses]]) -> np.ndarray:
    """Draw by draw in Python's own floats: [K + 1, 3]."""
    sums = np.zeros((CELLS + 1, 3))
    for batch, losses in parts:
        columns = (batch.cells, batch.streams, losses.logsnr, losses.squared_error)
        for cell, stream, logsnr, error in zip(*(column.tolist() for column in columns), strict=True):
            loss = error * 60 * (HIGH - LOW) / 2
            inside = loss if logsnr <= np.float32(WINDOWS[cell]) else 0.0
            sums[cell] += [inside, inside**2, 1]
            if stream == 0:
                sums[-1] += [loss, loss**2, 1]
    return sums


def test_each_cell_is_added_to_once() -> None:
    """A GPU adds in any order; one summand that is not 0 gives the same bits in all of them."""
    columns = torch.from_numpy(np.random.default_rng(0).lognormal(size=(40, 3)))
    cells = torch.from_numpy(np.random.default_rng(1).integers(0, 5, 40))
    single = once_per_cell(columns, cells)
    assert (single != 0).any(dim=1).sum() == 5
    for cell in range(5):
        found, expected = single[cells == cell], columns[cells == cell].sum(dim=0)
        torch.testing.assert_close(found[0], expected)
        assert (found[1:] == 0).all()


def test_sums_by_cell_are_windowed_and_the_base_is_not() -> None:
    parts = [draws(count, seed) for seed, count in enumerate((50, 1, 33))]
    sums = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
    for batch, losses in parts:
        sums.add(batch, losses)
    taken = sums.take()
    assert taken.dtype == np.float64
    np.testing.assert_allclose(taken, by_brute_force(parts), rtol=1e-12)
    assert taken[CELLS - 1].tolist() == [0, 0, 0]
    assert taken[:-1, 2].sum() == 84


def test_a_new_period_begins_at_zero() -> None:
    sums = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
    sums.add(*draws(20, 0))
    first = sums.take()
    sums.add(*draws(30, 1))
    np.testing.assert_allclose(sums.take(), by_brute_force([draws(30, 1)]), rtol=1e-12)
    np.testing.assert_allclose(first, by_brute_force([draws(20, 0)]), rtol=1e-12)
    assert not sums.take().any()


def test_small_losses_are_not_lost_in_large_sums() -> None:
    """float32 would stop counting at 2^24 times the addend."""
    sums = PeriodSums(np.array([HIGH]), DIFFUSION, torch.device("cpu"))
    batch, losses = draws(2, 0)
    batch = Batch(**{**vars(batch), "cells": torch.zeros(2, dtype=torch.int64)})
    sums.add(batch, Losses(losses.logsnr, torch.tensor([1e9, 1e-3]), losses.primal))
    assert sums.take()[0, 0] == (float(np.float32(1e9)) + float(np.float32(1e-3))) * 60 * (HIGH - LOW) / 2


def test_overlapping_constraints_add_up_their_cells() -> None:
    """A constraint's mean is that of its cells in the data's proportions, whatever the stream preferred."""
    rng = np.random.default_rng(1)
    classes, male = np.repeat([0, 1, 2], [60, 30, 10]), rng.integers(0, 2, 100)
    population = Population(classes, ["a", "b", "c"], {"male": male}, "here")
    constraints = {
        "some": MinFrequency(classes=("b", "c"), min_frequency=0.4, window=0.0),
        "men": MaxLoss(where={"male": 1}, max_loss=3.0, window=0.0),
        "rare": MaxLoss(classes=("c",), max_loss=3.0, window=0.0),
    }
    requirements = Requirements.bind(constraints, population)
    K = len(requirements.cell_shares)
    drawn = rng.choice(100, size=500, p=np.where(classes == 1, 3, 1) / np.where(classes == 1, 3, 1).sum())
    drawn = drawn[classes[drawn] != 2]  # nothing of c in this period
    losses = rng.lognormal(size=len(drawn))
    cell_sums = np.zeros((K, 3))
    for row, loss in zip(drawn, losses, strict=True):
        cell_sums[requirements.cells[row]] += [loss, loss**2, 1]

    sums = constraint_sums(requirements, cell_sums)
    for i, (name, rows) in enumerate(requirements.rows.items()):
        inside = np.isin(drawn, rows)
        assert sums.count[i] == inside.sum()
        if name == "rare":
            assert (sums.total[i], sums.squares[i]) == (0, 0)
            continue
        cells = requirements.cells[rows]
        seen = [cell for cell in np.unique(cells) if cell_sums[cell, 2]]
        weight = np.array([(cells == cell).sum() for cell in seen])
        for total, power in ((sums.total[i], 1), (sums.squares[i], 2)):
            means = [np.mean(losses[requirements.cells[drawn] == cell] ** power) for cell in seen]
            np.testing.assert_allclose(total / inside.sum(), weight @ means / weight.sum(), rtol=1e-12)
    assert np.isnan(sums.mean()).tolist() == [False, False, True]


def test_without_constraints_there_are_no_sums() -> None:
    population = Population(np.zeros(5, dtype=int), ["a"], {}, "here")
    sums = constraint_sums(Requirements.bind({}, population), np.array([[1.0, 1.0, 1.0]]))
    assert sums.mean().shape == (0,)


def test_sums_go_on_rank_by_rank_or_all_at_the_first(alone: Ranks) -> None:
    sums = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
    assert sums.everyones(alone) is None
    sums.add(*draws(20, 0))
    saved = sums.everyones(alone)
    assert saved is not None
    second = (2 * np.asarray(saved[0])).tolist()
    for ranks, everyones, factor in (
        (alone, saved, 1),
        (alone, [saved[0], second], 3),
        (Ranks(1, 2, alone.device), [saved[0], second], 2),
        (Ranks(1, 2, alone.device), saved, 0),
    ):
        again = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
        again.go_on_from(everyones, ranks)
        np.testing.assert_array_equal(again.take(), factor * np.asarray(saved[0]))


def test_losses_that_are_not_finite_are_left_out() -> None:
    (batch, losses), spoiled = draws(30, 4), [3, 7, 8]
    sums = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
    losses.squared_error.data[spoiled] = torch.tensor([torch.nan, torch.inf, torch.nan])
    sums.add(batch, losses)
    taken = sums.take()
    assert np.isfinite(taken).all()
    assert taken[:-1, 2].sum() == 27
