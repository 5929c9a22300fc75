"""The processes by name."""

from __future__ import annotations

from collections.abc import Callable

from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.process import Process
from cdt.diffusion.variance_preserving import VariancePreserving

PROCESSES: dict[str, Callable[[DiffusionConfig], Process]] = {"vp": VariancePreserving.from_config}


def make_process(config: DiffusionConfig) -> Process:
    """The process that a configuration states."""
    return PROCESSES[config.process](config)
