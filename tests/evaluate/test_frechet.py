from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from cdt.errors import InputError
from cdt.evaluate.frechet import frechet_distance


class Pixels(nn.Flatten):
    """The pixels themselves as features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def images_with_moments(mean: np.ndarray, covariance: np.ndarray, n: int, seed: int) -> Tensor:
    """n images [n, d, 1, 1] whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T @ np.linalg.cholesky(covariance).T + mean
    return torch.from_numpy(x)[:, :, None, None]


def random_covariance(d: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(d, d))
    return a @ a.T + np.eye(d)


def test_gaussians_in_closed_form() -> None:
    d = 5
    means, covariances = (np.zeros(d), np.arange(d) / 2), (random_covariance(d, 0), random_covariance(d, 1))
    real, generated = (images_with_moments(means[i], covariances[i], 300 + i, seed=i) for i in (0, 1))
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(Pixels(d), real, generated, batch_size=64) == pytest.approx(expected, rel=1e-9)


def test_same_images_have_distance_zero() -> None:
    images = torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert 0 <= frechet_distance(Pixels(12), images, images) < 1e-5


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(InputError, match="2 images a side: 5 real, 1 generated"):
        frechet_distance(Pixels(4), torch.zeros(5, 1, 2, 2), torch.zeros(1, 1, 2, 2))
