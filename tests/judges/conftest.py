from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from cdt.judges import Classifier, train_classifier


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    grey, targets = map(torch.tensor, load_digits(return_X_y=True))
    return grey.float().view(-1, 1, 8, 8) / 8 - 1, targets


@pytest.fixture(scope="session", params=["residual", "plain"])
def judge(request: pytest.FixtureRequest, digits: tuple[Tensor, Tensor]) -> Classifier:
    return train_classifier(*digits, tuple("0123456789"), architecture=request.param, seed=0, steps=100)
