"""Settings of the dual side: how multipliers start and move."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from cdt.schema import RESUMABLE, Config


class DualConfig(Config):
    period: Literal["epoch"] | Annotated[int, Field(ge=1, le=10**9)] = "epoch"
    """How often the multipliers move: every epoch (``data.epoch_samples``), or this number of steps."""
    rule: Literal["auto", "mass", "ascent", "fixed"] = "auto"
    """``auto``: the mass rule for shares, projected ascent for budgets in nats. ``fixed``: lambda does not move."""
    eta: Annotated[FiniteFloat | None, RESUMABLE] = Field(default=None, gt=0, le=1e6)
    """Step size, per nat of violation; default 0.02 for the mass rule (0.2 where shares of generated samples are
    measured), 0.01 for projected ascent."""
    kp: Annotated[FiniteFloat | None, RESUMABLE] = Field(default=None, ge=0, le=1e6)
    """Weight of the change of the violation (nuPI), in periods: damps oscillations; default 0, and 1 where shares of
    generated samples are measured."""
    nu: Annotated[FiniteFloat, RESUMABLE] = Field(default=0.0, ge=0, lt=1)
    """Smoothing of the violation whose change kp weighs."""
    gamma: Annotated[FiniteFloat, RESUMABLE] = Field(default=0.0, ge=0, le=1e6)
    """Resilience: relaxes constraints that are costly to satisfy, lambda stays bounded; gamma is then the real
    threshold."""
    start: Literal["closed_form", "zero"] = "closed_form"
    """Initial multipliers of floors on shares: the solution for disjoint classes and an exact model, or 0."""
    cap: Annotated[FiniteFloat, RESUMABLE] = Field(default=10.0, gt=0, le=1e9)
    """The largest multiplier; one that stays at it is reported."""
    estimate: Literal["probe", "training"] = "probe"
    """What the dual step uses: fixed draws under the EMA weights, or the losses of the period's training batches."""
    stop_when_satisfied_for: Annotated[int | None, RESUMABLE] = Field(default=None, ge=1, le=10**9)
    """End dual training when all requirements were satisfied for this many consecutive periods."""
