"""The moving average of the weights, kept in fp32 by fragments: no rank holds more of it than of the weights."""

from __future__ import annotations

from torch import Tensor

from cdt.engine.engine import Engine
from cdt.engine.torch_private import lerp_


class Ema:
    """``ema <- decay ema + (1 - decay) weights`` on this rank's fragments; what is not trained is the engine's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        fragments = engine.fragments()
        self.fragments = fragments | {name: fragments[name].clone() for name in engine.trained}

    def update(self, decay: float) -> None:
        fragments, trained = self._engine.fragments(), self._engine.trained
        averages = [self.fragments[name].values for name in trained]
        weights = [fragments[name].values for name in trained]
        lerp_(averages, weights, 1 - decay)

    def load(self, whole: dict[str, Tensor]) -> None:
        """Takes this rank's fragments from whole weights by name."""
        for name, fragment in self.fragments.items():
            end = fragment.start + fragment.values.numel()
            fragment.values.copy_(whole[name].flatten()[fragment.start : end])
