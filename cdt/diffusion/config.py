"""Settings of the noise process and of the sampler."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cdt.diffusion.samplers import SamplerName
from cdt.schema import RESUMABLE, Config, LogSnr


class BetasConfig(Config):
    """Betas as a scheduler of diffusers states them, under its names."""

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    """How beta grows over the timesteps."""
    beta_start: float = Field(default=0.0001, gt=0, lt=1)
    """The first beta, where the schedule has one."""
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    """The last beta, where the schedule has one."""
    trained_betas: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(default=None, max_length=100_000)
    """All betas, in place of a schedule."""


class DiffusionConfig(Config):
    process: ClassVar[str] = "vp"
    """The kind of path, a key of ``cdt.diffusion.processes.PROCESSES``."""

    schedule: Literal["cosine", "linear_beta", "betas"] = "cosine"
    """How log-SNR falls over time: ``cosine`` (cut to a log-SNR range), DDPM's ``linear_beta``, or given ``betas``."""
    betas: BetasConfig | None = None
    """Those of a pretrained model's scheduler, for the schedule ``betas``."""
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """What the network's output means (diffusers' names)."""
    weighting: Literal["elbo", "simple", "min_snr"] = "elbo"
    """Weight of the primal loss over log-SNR. Constraint statistics are in nats whatever this is."""
    min_snr_gamma: float = Field(default=5.0, gt=0, le=1e6)
    """Where ``min_snr`` caps the signal-to-noise ratio (arXiv 2303.09556)."""
    timesteps: int = Field(default=1000, ge=10, le=100_000)
    """Number of integer timesteps T of the exported noise schedule."""
    logsnr_min: LogSnr | None = None
    """Log-SNR at the noise end of the cosine schedule; default -10 (+ shift). The others have their own."""
    logsnr_max: LogSnr | None = None
    """Log-SNR at the data end of the cosine schedule; default 10 (+ shift)."""
    logsnr_shift: LogSnr = 0.0
    """Moves the whole cosine schedule: ``-2 log k`` for images enlarged k times (arXiv 2301.11093)."""

    @model_validator(mode="after")
    def _range_makes_sense(self) -> DiffusionConfig:
        if (self.schedule == "betas") != (self.betas is not None):
            raise ValueError("schedule: betas and the mapping `betas` belong together: give both or neither")
        given = None if self.betas is None else self.betas.trained_betas
        if given is not None and len(given) != self.timesteps:
            raise ValueError(f"trained_betas has {len(given)} values for {self.timesteps} timesteps")
        if self.schedule != "cosine":
            if self.logsnr_min is not None or self.logsnr_max is not None or self.logsnr_shift:
                raise ValueError(f"{self.schedule} fixes the log-SNR range: drop logsnr_min, logsnr_max, logsnr_shift")
        elif self.cosine_range[0] >= self.cosine_range[1]:
            low, high = self.cosine_range
            raise ValueError(f"logsnr_min must be below logsnr_max: they are {low:g} and {high:g}, the shift included")
        return self

    @property
    def cosine_range(self) -> tuple[float, float]:
        """Log-SNR at the noise end and at the data end of the cosine schedule."""
        low = -10.0 + self.logsnr_shift if self.logsnr_min is None else self.logsnr_min
        high = 10.0 + self.logsnr_shift if self.logsnr_max is None else self.logsnr_max
        return low, high


class SamplerConfig(Config):
    name: Annotated[SamplerName, RESUMABLE] = "dpmpp_2m"
    """Solver: DPM-Solver++ 2M and UniPC are second order and need fewest steps; ``ddpm`` is stochastic."""
    steps: Annotated[int, RESUMABLE] = Field(default=40, ge=1, le=100_000)
    """Network evaluations per sample."""
