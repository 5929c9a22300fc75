"""Networks ``F(x, timestep)``: raw, unconditional predictions. They know nothing of losses, multipliers or ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import nn

from cdt.networks.adapter import AdapterConfig, adapted, check_peft, merged, with_weights
from cdt.networks.dit import DiT, DiTConfig, load_dit
from cdt.networks.pretrained import PretrainedConfig, load_pretrained
from cdt.networks.unet import UNet, UNetConfig, build_unet

__all__ = [
    "AdapterConfig",
    "DiT",
    "DiTConfig",
    "NetworkConfig",
    "PretrainedConfig",
    "UNet",
    "UNetConfig",
    "adapted",
    "build_network",
    "check_peft",
    "load_dit",
    "merged",
    "with_weights",
]

NetworkConfig = Annotated[UNetConfig | DiTConfig | PretrainedConfig, Field(discriminator="kind")]

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "unet": build_unet,
    "dit": DiT,
    "diffusers": load_pretrained,
}


def build_network(config: NetworkConfig, shape: tuple[int, int, int], *, checkpointing: bool = False) -> nn.Module:
    """The network of a ``NetworkConfig`` for data of ``shape`` [C, H, W]; InputError where the two do not fit.

    It maps x [B, C, H, W] and float timesteps [B] to [B, C, H, W], in x's dtype whatever the weights' dtype.
    ``checkpointing`` recomputes activations in the backward pass instead of storing them.
    """
    return BUILDERS[config.kind](config, shape, checkpointing=checkpointing)
