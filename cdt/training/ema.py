"""The moving average of the weights, kept in fp32 by fragments: no rank holds more of it than of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from cdt.training.engine import Engine, Fragment


class Ema:
    """``ema <- decay ema + (1 - decay) weights`` on this rank's fragments."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.fragments = {
            name: Fragment(fragment.start, fragment.values.detach().clone())
            for name, fragment in engine.fragments().items()
        }

    def update(self, decay: float) -> None:
        averages = [fragment.values for fragment in self.fragments.values()]
        weights = [fragment.values for fragment in self._engine.fragments().values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def load(self, whole: dict[str, Tensor]) -> None:
        """Takes this rank's fragments from whole weights by name."""
        for name, fragment in self.fragments.items():
            end = fragment.start + fragment.values.numel()
            fragment.values.copy_(whole[name].flatten()[fragment.start : end])
