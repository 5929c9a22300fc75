from __future__ import annotations

from itertools import product
from math import factorial, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cdt.evaluate.histogram import (
    class_counts,
    confident_share,
    expected_total_variation,
    total_variation,
    wilson_interval,
)


def test_counts_and_confidence() -> None:
    probabilities = np.array([[0.95, 0.05, 0.0], [0.4, 0.35, 0.25], [0.0, 0.9, 0.1]])
    assert class_counts(probabilities).tolist() == [2, 1, 0]
    assert confident_share(probabilities) == pytest.approx(1 / 3)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(draw: tuple[int, int]) -> None:
    count, total = draw
    low, high = wilson_interval([count], total)
    expected = binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert low[0] == pytest.approx(expected.low, abs=1e-12)
    assert high[0] == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low[0] <= count / total <= high[0] <= 1


def test_total_variation() -> None:
    assert total_variation([1, 0], [0, 1]) == 1
    assert total_variation([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]) == pytest.approx(0.3)


def brute_force_expected_total_variation(target: list[float], draws: int) -> float:
    expectation = 0.0
    for counts in product(range(draws + 1), repeat=len(target)):
        if sum(counts) == draws:
            ways = factorial(draws) / prod(map(factorial, counts))
            probability = ways * prod(p**c for p, c in zip(target, counts, strict=True))
            expectation += probability * total_variation(np.array(counts) / draws, target)
    return expectation


@pytest.mark.parametrize("target", [[0.2, 0.3, 0.5], [0.25] * 4, [1.0, 0.0], [0.0, 0.99, 0.01]])
@pytest.mark.parametrize("draws", [1, 2, 5, 8])
def test_expected_total_variation_is_exact(target: list[float], draws: int) -> None:
    assert expected_total_variation(target, draws) == pytest.approx(brute_force_expected_total_variation(target, draws))


def test_expected_total_variation_at_scale() -> None:
    draws = np.random.default_rng(0).multinomial(600, [0.1] * 10, size=4000) / 600
    simulated = np.abs(draws - 0.1).sum(axis=1) / 2
    assert expected_total_variation([0.1] * 10, 600) == pytest.approx(
        simulated.mean(), abs=5 * simulated.std() / 4000**0.5
    )
