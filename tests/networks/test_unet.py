"""The UNet adapter: sizes that fit, settings that do not, float timesteps."""

from __future__ import annotations

import pytest
import torch

from cdt.errors import InputError
from cdt.networks.config import UNetConfig
from cdt.networks.unet import build_unet

SMALL = UNetConfig(channels=(8, 16), layers_per_block=1, norm_groups=4)


@pytest.mark.parametrize(
    ("shape", "levels"),
    [((1, 8, 8), 3), ((3, 8, 16), 2), ((1, 28, 28), 3), ((4, 32, 32), 4), ((3, 256, 256), 5), ((1, 2, 2), 1)],
)
def test_images_from_2_to_256_pixels(shape: tuple[int, int, int], levels: int) -> None:
    config = UNetConfig(channels=(8,) * levels, layers_per_block=1, attention=(levels - 1,))
    network = build_unet(config, shape)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        prediction = network(x, torch.tensor([0.0, 998.5]))
    assert prediction.shape == x.shape
    assert prediction.isfinite().all()


def test_timesteps_are_continuous_and_agree_with_diffusers_at_integers() -> None:
    network = build_unet(SMALL, (1, 8, 8)).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        at_10 = network(x, torch.full((2,), 10.0))
        assert torch.equal(at_10, network.unet(x, torch.tensor(10)).sample)
        assert (network(x, torch.full((2,), 10.5)) - at_10).abs().max() > 1e-5


def test_the_defaults_fit_8x8() -> None:
    assert build_unet(UNetConfig(), (1, 8, 8)).unet.config["sample_size"] == 8


def test_bfloat16_weights_give_a_float32_prediction() -> None:
    network = build_unet(SMALL, (1, 8, 8)).bfloat16()
    x = torch.randn(1, 1, 8, 8)
    before, after = (network(x, torch.tensor([t])) for t in (998.0, 999.0))
    assert before.dtype == torch.float32
    assert not torch.equal(before, after)


def test_checkpointing_changes_no_gradient() -> None:
    x, timestep = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 700.0])
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = build_unet(SMALL, (1, 8, 8), checkpointing=checkpointing)
        assert network.unet.is_gradient_checkpointing == checkpointing
        network(x, timestep).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("levels", "shape", "remedy"),
    [
        (4, (1, 8, 8), "4 levels do not fit images of 8x8; 1 to 3 would"),
        (4, (1, 28, 28), "28x28; 1 to 3 would"),
        (1, (3, 256, 256), "1 levels do not fit images of 256x256; 3 to 8 would"),
        (2, (1, 131, 131), "power of two"),
        (2, (1, 1, 1), "power of two"),
    ],
)
def test_levels_that_do_not_fit_are_refused_with_those_that_do(
    levels: int, shape: tuple[int, int, int], remedy: str
) -> None:
    with pytest.raises(InputError, match=remedy):
        build_unet(UNetConfig(channels=(8,) * levels), shape)


def test_norm_groups_must_divide_the_channels() -> None:
    with pytest.raises(InputError, match=r"8 does not divide \[12\] of network.channels; 4 divides all"):
        build_unet(UNetConfig(channels=(8, 12)), (1, 8, 8))


def test_attention_must_name_a_level() -> None:
    with pytest.raises(InputError, match=r"no level \[2\]; network.channels has levels \[0, 1\]"):
        build_unet(UNetConfig(channels=(8, 16), attention=(1, 2)), (1, 8, 8))
