"""Settings of the pretrained model's samples and of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cdt.diffusion.config import SamplerConfig
from cdt.schema import Config


class ReplayConfig(Config):
    shards: Literal["auto"] | Path = "auto"
    """``auto``: samples of the pretrained model, drawn once and kept in ``replay`` of CDT_CACHE or of the user's cache
    for other runs. Or a directory of shards: from ``cdt sample RUN -o DIR``, or of the original data."""
    samples: int = Field(default=5000, ge=1, le=100_000_000)
    """How many are drawn for training."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the samples that are drawn."""
    sampler: SamplerConfig = SamplerConfig()
    """How they are drawn."""
    target: Literal["teacher", "noise"] = "teacher"
    """The training target at replayed samples: the pretrained network's prediction, or the noise."""
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the pretrained network in training; statistics are always measured in fp32."""
    teacher_offload: bool = False
    """Whether the pretrained network's weights are sharded over the ranks and kept in CPU memory; each layer is copied
    to the GPU when it is used. For one that does not fit next to the network at stages 0 to 2. At stage 3 it is sharded
    anyway, and off-loaded if ``engine.deepspeed`` off-loads the weights in training."""
    teacher_draws: int | None = Field(default=None, ge=1, le=10**6)
    """Draws of noise per sample. The teacher is evaluated at them once, before training, and its answers are stored:
    for a teacher that does not fit next to the network. ``null``: it is evaluated in every step, at new draws."""
    objective: bool = False
    """Whether the pretrained model's samples are the objective, and the new data enter only through constraints."""

    @model_validator(mode="after")
    def _asks_a_teacher(self) -> ReplayConfig:
        if self.teacher_draws is not None and self.target == "noise":
            raise ValueError("teacher_draws: with target noise there is no teacher; drop one of them")
        return self
