from __future__ import annotations

import pytest
import torch

from cdt.errors import InputError
from cdt.judges.networks import ARCHITECTURES, ClassifierNetwork


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 7, 9), (1, 28, 28), (3, 64, 48), (3, 100, 100), (3, 256, 256)])
def test_features_at_any_size(architecture: str, shape: tuple[int, int, int]) -> None:
    features = ARCHITECTURES[architecture](shape).eval()
    assert features(torch.zeros(2, *shape)).shape == (2, features.num_features)
    assert 4 <= min(features.map(torch.zeros(1, *shape)).shape[2:]) <= 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_image_is_judged_alike_in_any_company(architecture: str) -> None:
    torch.manual_seed(0)
    network, images = ClassifierNetwork(architecture, (3, 16, 16), 5), torch.randn(4, 3, 16, 16)
    alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(network(images), alone, atol=1e-5)
    assert network.training


def test_an_unknown_architecture() -> None:
    with pytest.raises(InputError, match="no architecture 'vgg' of classifiers; known are: residual, plain"):
        ClassifierNetwork("vgg", (1, 8, 8), 2)
