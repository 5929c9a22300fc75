"""The position of a stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamState:
    """The position of a stream: small, and sufficient to continue it exactly."""

    batch: int
    """Batches consumed."""
    counters: dict[str, int]
    """Samples drawn so far, by stream."""
    history: list[tuple[int, list[float]]]
    """The present multipliers and the scheduled ones: (first batch, lambda)."""
