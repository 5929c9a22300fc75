"""Settings of the pretrained model's samples and of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cdt.diffusion.config import SamplerConfig
from cdt.schema import Config


class ReplayConfig(Config):
    shards: Literal["auto"] | Path = "auto"
    """``auto``: samples of the pretrained model, drawn once into ``replay`` of CDT_CACHE or the user's cache, where
    other runs find them. Or a directory of shards: of ``cdt sample RUN -o DIR``, or of the original data."""
    samples: int = Field(default=5000, ge=1, le=100_000_000)
    """How many are drawn to train on."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of what is drawn."""
    sampler: SamplerConfig = SamplerConfig()
    """How they are drawn."""
    target: Literal["teacher", "noise"] = "teacher"
    """What training regresses onto at replayed samples: the pretrained network's prediction, or the noise."""
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the pretrained network during training; what is measured is always measured in fp32."""
    teacher_offload: bool = False
    """Whether the pretrained network's weights lie in the hosts' memory, divided over the ranks, and come to the
    devices layer by layer: for one that is too large to stand beside the network at stages 0 to 2. At stage 3 it is
    divided anyway, and off-loaded where ``engine.deepspeed`` off-loads the weights in training."""
    teacher_draws: int | None = Field(default=None, ge=1)
    """Draws of noise per sample at which the teacher is asked once, before training, and its answers are stored: for a
    teacher that is too large to stand beside the network. ``null``: it is asked in every step, at new draws."""
    objective: bool = False
    """Whether the pretrained model's samples are the objective, and the new data come in by constraints alone."""

    @model_validator(mode="after")
    def _asks_a_teacher(self) -> ReplayConfig:
        if self.teacher_draws is not None and self.target == "noise":
            raise ValueError("teacher_draws: target noise asks no teacher; drop one of them")
        return self
