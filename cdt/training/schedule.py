"""Phases, learning rate and EMA decay as functions of the step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from cdt.schema import RESUMABLE, Config

Decay = Annotated[float, Field(ge=0, lt=1)]
Phase = Literal["warm", "dual", "cooldown", "plain"]


class TrainConfig(Config):
    batch_size: int = Field(default=128, ge=1, le=10**7)
    """Samples per step over all workers and accumulation steps."""
    warm_steps: int = Field(default=1000, ge=0, le=10**9)
    """Steps without constraints, before thresholds are calibrated; 0 with ``init``, because the model would forget."""
    dual_steps: Annotated[int, RESUMABLE] = Field(default=1000, ge=0, le=10**9)
    """Steps under the constraints, at constant learning rate."""
    cooldown_steps: Annotated[int, RESUMABLE] = Field(default=0, ge=0, le=10**9)
    """Steps with the multipliers fixed, while the learning rate falls to zero."""
    lr: Annotated[FiniteFloat, RESUMABLE] = Field(default=1e-3, gt=0, le=1000)
    """Learning rate of AdamW."""
    lr_warmup_steps: int = Field(default=100, ge=0, le=10**9)
    """Steps of linear warm-up from zero."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decay rates of AdamW's moments."""
    weight_decay: FiniteFloat = Field(default=0.0, ge=0, le=1000)
    """Of AdamW, decoupled from the gradient."""
    ema_decay: Decay = 0.999
    """Decay of the averaged weights, with which constraints are measured and samples are drawn."""
    checkpoint_steps: Annotated[int | None, RESUMABLE] = Field(default=None, ge=1, le=10**9)
    """Steps between two checkpoints; the ends of the phases are always saved."""
    checkpoint_minutes: Annotated[FiniteFloat | None, RESUMABLE] = Field(default=None, gt=0, le=1e6)
    """Also save when this much time has passed since the last save."""
    keep_checkpoints: Annotated[int, RESUMABLE] = Field(default=10, ge=1, le=10**9)
    """How many of the newest are kept; the best one and those at the ends of the phases are kept as well."""
    max_skipped: Annotated[int, RESUMABLE] = Field(default=10, ge=1, le=10**9)
    """Consecutive updates that may be skipped because the gradient is not finite; then training goes back."""
    log_steps: Annotated[int, RESUMABLE] = Field(default=10, ge=1, le=10**9)
    """Steps between two rows of metrics."""
    grid_images: Annotated[int, RESUMABLE] = Field(default=64, ge=0, le=1024)
    """Images in the sample grid that is drawn with every checkpoint; 0: none."""

    def ending_at(self, step: int) -> TrainConfig:
        """The same with dual training cut short when ``step`` steps are done."""
        return self.model_copy(update={"dual_steps": step - self.warm_steps})

    @property
    def total_steps(self) -> int:
        return self.warm_steps + self.dual_steps + self.cooldown_steps

    def phase(self, step: int, constrained: bool) -> Phase:
        """Which phase a step belongs to; runs without constraints have one phase until the cool-down."""
        if step >= self.warm_steps + self.dual_steps:
            return "cooldown"
        if not constrained:
            return "plain"
        return "warm" if step < self.warm_steps else "dual"

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, constant through dual training, linear cool-down.

        A rate that decayed during dual training would lower every loss, and the multipliers would fall for it.
        """
        warmup = min(1.0, (step + 1) / self.lr_warmup_steps) if self.lr_warmup_steps else 1.0
        remaining = self.total_steps - step
        cooldown = min(1.0, remaining / self.cooldown_steps) if self.cooldown_steps else 1.0
        return self.lr * warmup * cooldown

    def ema_decay_at(self, step: int) -> float:
        """The EMA decay, rising from 0.1 so that the average forgets the initial weights."""
        return min(self.ema_decay, (1 + step) / (10 + step))

    @property
    def phase_ends(self) -> set[int]:
        """The steps after which a phase is over."""
        return {self.warm_steps, self.warm_steps + self.dual_steps, self.total_steps} - {0}

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due when ``step`` steps are done."""
        return step in self.phase_ends or bool(self.checkpoint_steps and step % self.checkpoint_steps == 0)
