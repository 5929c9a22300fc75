"""The posterior cross-entropy against Gaussians, and the window that it leads to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import root_scalar
from scipy.stats import norm

from cdt.constraints.window import SEPARATED, auto_window, posterior_cross_entropy

LEVELS = np.array([-8.0, -4.0, -2.0, 0.0, 2.0, 4.0])


def gaussian_draws(count: int, dimensions: int) -> np.ndarray:
    """Standard normal in the first coordinate, evenly in probability; zero in the others."""
    eps = np.zeros((count, dimensions))
    eps[:, 0] = norm.ppf((np.arange(count) + 0.5) / count)
    return eps


@pytest.mark.parametrize("share", [0.5, 0.1, 0.9])
def test_two_exemplars_are_two_gaussians(share: float) -> None:
    """The posterior of N(a x0, s^2) against N(a x1, s^2) is a sigmoid of a normal variable."""
    inside, outside = np.array([[0.5, 0.2]]), np.array([[-0.4, 0.2]])
    distance = 0.9
    found = posterior_cross_entropy(inside, outside, share, LEVELS, gaussian_draws(20_000, 2))
    z = np.linspace(-10, 10, 20_001)
    for level, value in zip(LEVELS, found, strict=True):
        logit = math.log(share / (1 - share)) + math.exp(level) * distance**2 / 2 + math.exp(level / 2) * distance * z
        expected = np.trapezoid(norm.pdf(z) * np.logaddexp(0, -logit), z)
        assert value == pytest.approx(expected, abs=2e-4)


def test_two_clouds_of_exemplars_are_two_gaussians() -> None:
    """N(+-m, v) noised: N(+-a m, a^2 v + s^2), whose posterior is a sigmoid of a normal variable as well."""
    m, v, share = 0.8, 0.2, 0.3
    cloud = math.sqrt(v) * norm.ppf((np.arange(400) + 0.5) / 400)[:, None]
    eps = np.random.default_rng(0).permutation(gaussian_draws(4000, 1))
    found = posterior_cross_entropy(cloud + m, cloud - m, share, LEVELS[:4], eps)
    z = np.linspace(-10, 10, 20_001)
    for level, value in zip(LEVELS, found, strict=False):
        a2 = 1 / (1 + math.exp(-level))
        snr = a2 * (2 * m) ** 2 / (a2 * v + 1 - a2)  # squared distance of the means in standard deviations
        logit = math.log(share / (1 - share)) + snr / 2 + math.sqrt(snr) * z
        expected = np.trapezoid(norm.pdf(z) * np.logaddexp(0, -logit), z)
        assert value == pytest.approx(expected, rel=0.04, abs=0.01)


def images(size: int, mean: float, count: int, seed: int) -> np.ndarray:
    """Smooth random images [count, 1, size, size] with a bright or a dark centre."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    bump = np.exp(-4 * (x**2 + y**2))
    tilt = rng.normal(scale=0.1, size=(count, 2, 1, 1))
    return (mean * bump + tilt[:, 0] * x + tilt[:, 1] * y)[:, None]


def missing(level: float, distance: float, share: float) -> float:
    """Posterior cross-entropy of two Gaussians ``distance`` apart, of which one has ``share``."""
    z = np.linspace(-10, 10, 20_001)
    snr = math.exp(level) * distance**2
    logit = math.log(share / (1 - share)) + snr / 2 + math.sqrt(snr) * z
    return float(np.trapezoid(norm.pdf(z) * np.logaddexp(0, -logit), z))


def window(inside: np.ndarray, outside: np.ndarray, share: float = 0.1) -> float:
    return auto_window(inside, outside, share, -20.0, 10.0, seed=0)


def test_noise_hides_the_class_and_detail_gives_it_away() -> None:
    """The cross-entropy falls from log(1 / share) at the noise end to 0 at the data end."""
    inside, outside = (images(8, mean, 50, seed).reshape(50, -1) for seed, mean in enumerate((0.3, -0.3)))
    eps = np.random.default_rng(0).standard_normal((256, 64))
    entropy = posterior_cross_entropy(inside, outside, 0.1, np.arange(-20.0, 11.0), eps)
    assert entropy[0] == pytest.approx(math.log(10), abs=1e-3)
    assert entropy[-1] == pytest.approx(0, abs=1e-6)
    assert (np.diff(entropy) < 1e-3).all()


def test_the_window_ends_where_the_classes_separate() -> None:
    inside, outside = images(8, 0.3, 50, 0), images(8, -0.3, 50, 1)
    end = window(inside, outside)
    eps = np.random.default_rng(1).standard_normal((4096, 64))
    flat = inside.reshape(50, -1), outside.reshape(50, -1)
    before, after = posterior_cross_entropy(*flat, 0.1, np.array([end - 0.5, end + 0.5]), eps)
    assert after < SEPARATED < before
    assert end * 4 == round(end * 4)


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_images_shifts_the_window_by_minus_two_log_k(factor: int) -> None:
    """Without new detail: k^2 pixels say what one said, so the same is known at 1 / k^2 of the SNR."""
    small = images(8, 0.3, 100, 0), images(8, -0.3, 100, 1)
    large = [np.kron(group, np.ones((1, 1, factor, factor))) for group in small]
    assert window(large[0], large[1]) - window(*small) == pytest.approx(-2 * math.log(factor), abs=0.5)


@pytest.mark.parametrize("share", [0.3, 0.1, 0.01])
def test_images_of_any_size_get_the_window_of_the_definition(share: float) -> None:
    """Bright against dark centres whose tilts are the same: two Gaussians, ``2 mean |bump|`` apart.

    The same content drawn with more pixels, and enlarged without new detail.
    """
    content = [tuple(images(size, mean, 100, 0) for mean in (0.3, -0.3)) for size in (8, 16, 32)]
    enlarged = tuple(np.kron(group, np.ones((1, 1, 3, 3))) for group in content[0])
    exact = []
    for inside, outside in (*content, enlarged):
        distance = float(np.linalg.norm((inside - outside)[0]))
        exact.append(root_scalar(lambda at, d=distance: missing(at, d, share) - SEPARATED, bracket=(-20, 10)).root)
        # The next quarter, to what 256 draws allow.
        assert exact[-1] - 0.3 < window(inside, outside, share) < exact[-1] + 0.25 + 0.3
    assert exact[3] - exact[0] == pytest.approx(-2 * math.log(3))


def test_rarer_classes_need_a_longer_window() -> None:
    inside, outside = images(8, 0.3, 100, 0), images(8, -0.3, 100, 1)
    ends = [window(inside, outside, share) for share in (0.5, 0.1, 0.01)]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]


def test_a_window_is_never_empty() -> None:
    """Of a share of 0.97 even pure noise misses only 0.03 nats."""
    assert window(images(8, 0.3, 50, 0), images(8, -0.3, 50, 1), share=0.97) > -19


def test_classes_that_never_separate_take_the_full_range() -> None:
    same = images(8, 0.3, 50, 0)
    assert window(same, same) == 10.0


def test_when_all_samples_are_inside_the_window_is_the_full_range() -> None:
    inside = images(8, 0.3, 50, 0)
    assert auto_window(inside, inside[:0], 1.0, -20.0, 10.0, seed=0) == 10.0
