"""Settings of what constraints are measured on."""

from __future__ import annotations

from pydantic import Field

from cdt.schema import Config


class ProbeConfig(Config):
    draws: int = Field(default=256, ge=8)
    """Draws per constraint: noise levels and noise on its images."""
    limit: int = Field(default=8192, ge=8)
    """Draws per period: with more constraints than that allows, the binding ones are measured each period and the
    others in turn."""
    split: str | None = "auto"
    """A split of the shards, not trained on, whose samples are taken for constraints with at least 32 there; ``null``:
    training samples. ``auto``: the split ``validation`` (or ``valid``, or ``val``) where there is one."""
    generated_samples: int = Field(default=500, ge=16)
    """Samples drawn per period where shares of generated samples are measured."""
