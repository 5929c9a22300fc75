"""Settings of networks: one class per kind; ``kind`` selects it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cdt.schema import Config


class UNetConfig(Config):
    kind: Literal["unet"] = "unet"
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(64, 128), min_length=1)
    """Channels of each level, from full resolution down; each level halves the resolution of the one before."""
    layers_per_block: int = Field(default=2, ge=1)
    """Residual layers in each level."""
    attention: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Levels with self-attention, 0 being full resolution; the block below the last level always has it."""
    norm_groups: int = Field(default=8, ge=1)
    """Groups of the group norms; they must divide the channels of every level."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in the residual layers while training."""


class DiTConfig(Config):
    kind: Literal["dit"] = "dit"
    patch: int = Field(default=2, ge=1)
    """Side of a patch in pixels; it must divide the image's height and width."""
    width: int = Field(default=192, ge=8)
    """Length of a token: a multiple of 4, for the position embedding, and of ``heads``."""
    depth: int = Field(default=6, ge=1)
    """Number of transformer blocks."""
    heads: int = Field(default=3, ge=1)
    """Attention heads in each block."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of a block's MLP over ``width``."""

    @model_validator(mode="after")
    def _width_divides(self) -> DiTConfig:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width must be a multiple of 4 and of heads ({self.heads}), {self.width} is not")
        return self


class PretrainedConfig(Config):
    kind: Literal["diffusers"] = "diffusers"
    path: Path
    """Directory that holds a UNet2DModel, itself or in the subfolder ``unet`` of a pipeline. ``diffusion.schedule`` and
    ``diffusion.prediction`` must be those that it was trained with."""


NetworkConfig = Annotated[UNetConfig | DiTConfig | PretrainedConfig, Field(discriminator="kind")]


class AdapterConfig(Config):
    rank: int = Field(default=8, ge=1)
    """Of what is added to the weights of a layer."""
    layers: Literal["all", "attention"] = "all"
    """Which ones have an adapter: every linear and convolutional layer, or the linear ones of attention."""
