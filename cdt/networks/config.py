"""Settings of networks: one class per kind; ``kind`` selects it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cdt.schema import Config

MOST_WEIGHTS = 10**12
"""Of a network: far beyond what has been trained of such kinds. Each setting may be sane and their product not."""


def check_size(least_weights: int) -> None:
    """Raises ValueError for a network that has more weights than any machine can train."""
    if least_weights > MOST_WEIGHTS:
        raise ValueError(f"it would have at least {least_weights:.1e} weights; at most {MOST_WEIGHTS:.0e} are allowed")


class UNetConfig(Config):
    kind: Literal["unet"] = "unet"
    channels: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(default=(64, 128), min_length=1, max_length=16)
    """Channels of each level, from full resolution down; each level halves the resolution of the one before."""
    layers_per_block: int = Field(default=2, ge=1, le=100)
    """Residual layers in each level."""
    attention: tuple[Annotated[int, Field(ge=0, le=15)], ...] = Field(default=(), max_length=16)
    """Levels with self-attention, 0 being full resolution; the block below the last level always has it."""
    norm_groups: int = Field(default=8, ge=1, le=65_536)
    """Groups of the group norms; they must divide the channels of every level."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in the residual layers while training."""

    @property
    def least_weights(self) -> int:
        """A lower bound of how many weights it has: those of the 3x3 convolutions on the way down and up."""
        layers = 2 * self.layers_per_block + 1
        return sum(2 * 9 * layers * width**2 for width in self.channels)

    @model_validator(mode="after")
    def _is_no_giant(self) -> UNetConfig:
        check_size(self.least_weights)
        return self


class DiTConfig(Config):
    kind: Literal["dit"] = "dit"
    patch: int = Field(default=2, ge=1, le=10_000)
    """Side of a patch in pixels; it must divide the image's height and width."""
    width: int = Field(default=192, ge=8, le=65_536)
    """Length of a token: a multiple of 4, for the position embedding, and of ``heads``."""
    depth: int = Field(default=6, ge=1, le=1000)
    """Number of transformer blocks."""
    heads: int = Field(default=3, ge=1, le=65_536)
    """Attention heads in each block."""
    mlp_ratio: float = Field(default=4.0, gt=0, le=100)
    """Hidden width of a block's MLP over ``width``."""

    @property
    def least_weights(self) -> int:
        """A lower bound of how many weights it has, whatever the images."""
        return self.depth * self.width * (10 * self.width + 2 * self.hidden)

    @property
    def hidden(self) -> int:
        """Hidden width of a block's MLP."""
        return int(self.width * self.mlp_ratio)

    @model_validator(mode="after")
    def _width_divides(self) -> DiTConfig:
        check_size(self.least_weights)
        if not self.hidden:
            raise ValueError(f"mlp_ratio {self.mlp_ratio:g} of width {self.width} leaves no hidden width")
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
    rank: int = Field(default=8, ge=1, le=65_536)
    """Of what is added to the weights of a layer."""
    layers: Literal["all", "attention"] = "all"
    """Which ones have an adapter: every linear and convolutional layer, or the linear ones of attention."""
