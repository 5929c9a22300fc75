"""Networks ``F(x, time, condition)``: raw predictions. They know nothing of losses, multipliers or ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdt.networks.dit import load_dit

__all__ = ["load_dit"]


def __getattr__(name: str) -> Any:
    # The model card of an exported DiT names it here. torch takes seconds to import: configurations are read without.
    if name != "load_dit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cdt.networks.dit import load_dit

    return load_dit
