from __future__ import annotations

import numpy as np
import pytest
import torch
from probe_scenarios import PROBED, probed
from real_ranks import RealRanks
from small_engine import SEED

from cdt.data.format.index import Index
from cdt.data.plan.order import stream_key
from cdt.data.read.reader import ImageReader
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.noise import normals
from cdt.engine.ranks import Ranks
from cdt.measure.probe import Probe, ProbeSet

PROCESS = Diffusion.from_config(DiffusionConfig()).process


def of_classes(digits: Index, windows: dict[str, float], count: int | None = None) -> list[ProbeSet]:
    reader = ImageReader(digits, 512)
    rows = {name: np.flatnonzero(digits.classes == int(name))[:count] for name in windows}
    return [ProbeSet(name, rows[name], reader, window) for name, window in windows.items()]


def silent(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Its error is the noise's own square."""
    return torch.zeros_like(x)


def test_two_ranks_measure_what_one_does(real_ranks: RealRanks, digits: Index, alone: Ranks) -> None:
    """27 draws do not divide by two: one rank measures a draw again, which must not count."""
    single, both = probed(digits, alone), real_ranks(PROBED)
    for told in both:
        assert told.windows == single.windows
        assert told.count == [9, 9, 9]
        for name in ("total", "squares", "gathered"):
            np.testing.assert_allclose(getattr(told, name), getattr(single, name), rtol=1e-9)
        totals, counts = told.again
        np.testing.assert_allclose(totals, 0, atol=1e-9)  # the same draws again, paired image by image
        assert counts == [9, 0, 9]
    assert [told.forwards for told in both] == [4, 4]
    asked = [question for told in both for question in told.exemplars]
    assert sorted(asked) == sorted(single.exemplars)


def test_draws_are_nats_on_the_window(digits: Index, alone: Ranks) -> None:
    """D (high - low) / 2 |eps|^2 / D for a network that always answers 0; noise levels stratified by constraint."""
    windows, draws = {"0": 10.0, "1": -2.5}, 16
    probe = Probe(of_classes(digits, windows), draws, PROCESS, alone, seed=3, chunk=5)
    seen: list[torch.Tensor] = []

    def listening(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(timestep)
        return silent(x, timestep)

    measured = probe.measure(listening, np.arange(2))
    eps = normals(stream_key(3, "probe"), torch.arange(2 * draws), (1, 8, 8)).numpy()
    high = np.array(list(windows.values()))
    scale = np.repeat((high - PROCESS.logsnr_min) / 2, draws)
    expected = (eps.astype(np.float64) ** 2).sum((1, 2, 3)) * scale
    np.testing.assert_allclose(measured.values, expected, rtol=1e-6)  # as many images as draws: each has one
    levels = PROCESS.logsnr(torch.cat(seen)).numpy().reshape(2, draws)
    strata = (levels - PROCESS.logsnr_min) / (high[:, None] - PROCESS.logsnr_min) * draws
    assert np.sort(np.floor(strata.clip(0, draws - 1e-3))).astype(int).tolist() == [list(range(draws))] * 2

    sums = probe.sums(measured)
    np.testing.assert_allclose(sums.total, expected.reshape(2, draws).sum(1), rtol=1e-6)
    np.testing.assert_allclose(sums.squares, (expected.reshape(2, draws) ** 2).sum(1), rtol=1e-6)
    assert sums.count.tolist() == [draws, draws]


def test_observations_are_images_not_draws(digits: Index, alone: Ranks) -> None:
    """Of 3 images with 4 draws each the mean of every image counts once, so the error is that of 3 observations."""
    draws = 12
    probe = Probe(of_classes(digits, {"4": 0.0}, count=3), draws, PROCESS, alone, seed=SEED, chunk=7)
    sums = probe.sums(probe.measure(silent, np.arange(1)))
    eps = normals(stream_key(SEED, "probe"), torch.arange(draws), (1, 8, 8)).numpy().astype(np.float64)
    by_image = (eps**2).sum((1, 2, 3)).reshape(3, 4).mean(1) * -PROCESS.logsnr_min / 2
    assert sums.count.tolist() == [3]
    np.testing.assert_allclose(sums.mean(), by_image.mean(), rtol=1e-6)
    np.testing.assert_allclose(sums.standard_error(), by_image.std(ddof=1) / np.sqrt(3), rtol=1e-6)


def test_the_same_draws_every_time_and_others_by_another_seed(digits: Index, alone: Ranks) -> None:
    sets = of_classes(digits, {"4": 0.0})
    probes = [Probe(sets, 12, PROCESS, alone, seed=seed, chunk=7) for seed in (SEED, SEED, SEED + 1)]
    first, again, other = (probe.measure(silent, np.arange(1)).values for probe in probes)
    np.testing.assert_array_equal(first, again)
    assert not np.isin(first, other).any()


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 2], [1, 2]])
def test_some_constraints_are_measured_as_in_a_probe_of_all(digits: Index, alone: Ranks, chosen: list[int]) -> None:
    probe = Probe(of_classes(digits, {"0": 1.0, "4": 0.0, "5": -1.0}), 10, PROCESS, alone, seed=SEED, chunk=7)
    everything = probe.measure(silent, np.arange(3))
    some = probe.measure(silent, np.array(chosen))
    np.testing.assert_allclose(some.values[some.here], everything.values[some.here], rtol=1e-6)
    counts = probe.sums(some).count
    assert counts.tolist() == [10.0 * (i in chosen) for i in range(3)]


def test_without_constraints_nothing_is_measured(alone: Ranks) -> None:
    probe = Probe([], 8, PROCESS, alone, seed=0, chunk=4)

    def never(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    measured = probe.measure(never, np.arange(0))
    assert measured.values.shape == probe.gather(measured).shape == probe.sums(measured).count.shape == (0,)


def test_sets_of_a_teacher_measure_the_distance_to_what_it_predicted(digits: Index, alone: Ranks) -> None:
    """The same draws as before, with the teacher's eps for the noise's; it is asked once, however often is measured."""
    plain, taught = of_classes(digits, {"0": 4.0, "1": 4.0}, 5)
    sets = [plain, ProbeSet(taught.name, taught.rows, taught.reader, taught.window, of_teacher=True)]
    probe = Probe(sets, 12, PROCESS, alone, seed=3, chunk=5)
    asked = 0

    def gain(factor: float, x: torch.Tensor) -> torch.Tensor:
        return factor * x

    def teacher(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(x)
        return gain(0.7, x)

    probe.teach(teacher)
    assert asked == 12
    same = probe.sums(probe.measure(lambda x, timestep: gain(0.7, x), np.arange(2))).mean()
    assert same[1] == pytest.approx(0, abs=1e-9)
    assert same[0] > 1
    halfway, away = (
        probe.sums(probe.measure(lambda x, timestep, f=factor: gain(f, x), np.array([1]))).mean()[1]
        for factor in (0.6, 0.5)
    )
    assert away == pytest.approx(4 * halfway, rel=1e-4)
    assert asked == 12
