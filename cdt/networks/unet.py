"""The convolutional network: diffusers' UNet2DModel, built from a few settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from cdt.condition import Condition
from cdt.errors import InputError
from cdt.networks.config import UNetConfig
from cdt.networks.network import Network

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

BOTTOM = (2, 64)
"""Smallest and largest side, in pixels, of the last level: below it, attention mixes the whole image."""


class UNet(Network):
    """diffusers' network ``unet``; exported as a pipeline of diffusers.

    With one generator ``torch.Generator().manual_seed(sample_seed(seed, k))`` per image, ``num_inference_steps=steps``
    and ``output_type="np"`` the pipeline gives the images of ``Sampler``.
    """

    library = "diffusers"
    usage = """
from diffusers import DDPMPipeline

images = DDPMPipeline.from_pretrained("{name}")(batch_size=16, num_inference_steps={steps}).images
"""
    unusable_samplers: ClassVar[dict[str, str]] = {
        "unipc": "diffusers' DDPMPipeline cannot run unipc; export with dpmpp_2m, ddim or ddpm"
    }

    def __init__(self, unet: UNet2DModel, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.unet = unet
        if checkpointing:
            unet.enable_gradient_checkpointing()

    def output(self, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        return self.unet(x.to(self.unet.dtype), time, return_dict=False)[0].to(x.dtype)

    def save(self, directory: Path, scheduler: Any) -> None:
        """A DDPMPipeline of diffusers."""
        from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline  # seconds to import

        DDPMPipeline(unet=self.unet, scheduler=scheduler).save_pretrained(directory)


def build_unet(config: UNetConfig, shape: tuple[int, int, int], *, checkpointing: bool = False) -> UNet:
    """A UNet for images of ``shape`` [C, H, W]; InputError where the levels or norm groups do not fit."""
    check_levels(len(config.channels), shape)
    C, H, W = shape
    misfits = [channels for channels in config.channels if channels % config.norm_groups]
    if misfits:
        raise InputError(
            f"network.norm_groups: {config.norm_groups} does not divide {misfits} of network.channels; "
            f"{math.gcd(*config.channels)} divides all"
        )
    levels = range(len(config.channels))
    absent = [level for level in config.attention if level not in levels]
    if absent:
        raise InputError(f"network.attention: there is no level {absent}; network.channels has levels {list(levels)}")
    attended = {*config.attention, levels[-1]}
    from diffusers.models.unets.unet_2d import UNet2DModel  # seconds to import: configurations are read without it

    unet = UNet2DModel(
        sample_size=(H, W) if H != W else H,
        in_channels=C,
        out_channels=C,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if level in config.attention else "DownBlock2D" for level in levels),
        up_block_types=tuple("AttnUpBlock2D" if level in config.attention else "UpBlock2D" for level in levels[::-1]),
        # As wide as the channels allow, up to the usual 64.
        attention_head_dim=math.gcd(64, *(config.channels[level] for level in attended)),
        norm_num_groups=config.norm_groups,
        dropout=config.dropout,
    )
    return UNet(unet, checkpointing=checkpointing)


def check_levels(levels: int, shape: tuple[int, int, int]) -> None:
    """InputError unless the image halves evenly ``levels - 1`` times, down to a side within ``BOTTOM``."""
    _, H, W = shape

    def fits(n: int) -> bool:
        halved = 2 ** (n - 1)
        low, high = BOTTOM
        return H % halved == W % halved == 0 and low <= min(H, W) // halved and max(H, W) // halved <= high

    if not fits(levels):
        fitting = [n for n in range(1, max(H, W).bit_length() + 1) if fits(n)]
        remedy = f"{fitting[0]} to {fitting[-1]} would" if fitting else "resize them, for example to a power of two"
        raise InputError(f"network.channels: {levels} levels do not fit images of {H}x{W}; {remedy}")
