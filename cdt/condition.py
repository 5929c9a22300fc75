"""What a conditional network is given besides noise level and noisy sample; None where there is no condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """The conditions of B samples. What a network does not take is None."""

    labels: Tensor | None = None
    """Classes: [B], int64."""
    tokens: Tensor | None = None
    """Embedded tokens of a text: [B, S, C]."""
    mask: Tensor | None = None
    """Which tokens count: [B, S], bool."""
    pooled: Tensor | None = None
    """One embedding of the whole text: [B, C]."""

    def to(self, device: torch.device) -> Condition:
        return Condition(**{name: value.to(device, non_blocking=True) for name, value in self._given().items()})

    def of(self, samples: Tensor | slice) -> Condition:
        """Those of some of the samples, by their places in the batch."""
        return Condition(**{name: value[samples] for name, value in self._given().items()})

    def split(self, parts: int) -> list[Condition]:
        """Those of equal micro-batches."""
        chunks = {name: value.chunk(parts) for name, value in self._given().items()}
        return [Condition(**{name: values[k] for name, values in chunks.items()}) for k in range(parts)]

    @classmethod
    def joined(cls, parts: Sequence[Condition]) -> Condition:
        """One batch after the other; all have the same fields."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._given()})

    def _given(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}


class Conditions(ABC):
    """The conditions of all samples of an index, by row."""

    @abstractmethod
    def of(self, rows: np.ndarray) -> Condition:
        """Those of these rows [B], as they are measured and sampled with."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """Of all that they depend on: what is stored for them is found again by it."""

    def at(self, rows: np.ndarray, positions: np.ndarray) -> Condition:
        """Those that training sees at these global positions [B]: a condition may be dropped, by position alone."""
        return self.of(rows)
