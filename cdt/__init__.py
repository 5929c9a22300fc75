"""Constrained diffusion by dual training: diffusion models that meet stated requirements (arXiv 2408.15094)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdt.config import RunConfig
    from cdt.diffusion.sampler import sample_seed
    from cdt.runs.run import Run, load
    from cdt.runs.start import resume, train

_HOMES = {
    "RunConfig": "cdt.config",
    "Run": "cdt.runs.run",
    "load": "cdt.runs.run",
    "resume": "cdt.runs.start",
    "sample_seed": "cdt.diffusion.sampler",
    "train": "cdt.runs.start",
}

__all__ = ["Run", "RunConfig", "load", "resume", "sample_seed", "train"]


def __getattr__(name: str) -> Any:
    # Ray, torch and diffusers take seconds to import: only what is used is loaded.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
