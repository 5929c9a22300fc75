"""Settings of what constraints are measured on."""

from __future__ import annotations

from pydantic import Field

from cdt.schema import Config


class ProbeConfig(Config):
    draws: int = Field(default=256, ge=8, le=10**6)
    """Draws per constraint: noise levels and noise on its images."""
    limit: int = Field(default=8192, ge=8, le=10**8)
    """Draws per period. With more constraints than this allows, the binding ones are measured each period and the
    others in turn."""
    split: str | None = "auto"
    """A held-out split of the shards. Constraints with at least 32 samples there are measured on them, others on
    training samples, as all are with ``null``. ``auto``: the split ``validation`` (or ``valid``, or ``val``), if there
    is one."""
    generated_samples: int = Field(default=500, ge=16, le=10**7)
    """Samples drawn per period where shares of generated samples are measured."""
