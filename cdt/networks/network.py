"""What every network is: a raw prediction, and how others can use it once it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from cdt.condition import Condition
from cdt.errors import InputError


class Network(nn.Module, ABC):
    """``network(x [B, C, H, W], time [B], condition)``: the prediction that the process names.

    A new kind is one file with a subclass and how it is built, and one line in ``cdt.networks.build.BUILDERS``.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    """The fields of a ``Condition`` that it is conditioned on."""
    library: ClassVar[str]
    """What loads an export, as model hubs name it."""
    usage: ClassVar[str]
    """Python code that loads an export; {name} is its directory, {steps} the sampler's."""
    unusable_samplers: ClassVar[dict[str, str]] = {}
    """Samplers that a loaded export cannot run, each with the reason and the remedy."""

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """Raises InputError for conditions that it does not take."""
        self.check_condition(condition)
        return self.output(x, time, condition)

    @abstractmethod
    def output(self, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        """The prediction [B, C, H, W], in x's dtype; the weights may have another one."""

    @abstractmethod
    def save(self, directory: Path, scheduler: Any) -> None:
        """Writes weights and settings, and a scheduler of diffusers, into an existing directory.

        Raises OSError and SafetensorError.
        """

    def check_condition(self, condition: Condition | None) -> None:
        """Raises InputError unless it takes what the condition has."""
        given = set() if condition is None else {name for name, value in vars(condition).items() if value is not None}
        if surplus := given - self.takes:
            taken = f"takes {', '.join(sorted(self.takes))}" if self.takes else "is unconditional"
            raise InputError(f"network: {type(self).__name__} {taken}; it cannot be given {', '.join(sorted(surplus))}")
