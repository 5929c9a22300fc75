"""What cdt uses of torch although torch does not promise to keep it. Nothing else in cdt touches torch's internals.

tests/engine/test_private.py says what each of them is used for.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lerp_(starts: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Moves each of ``starts`` towards its end by that part of the way, in place, with one kernel for many tensors."""
    torch._foreach_lerp_(starts, ends, weight)  # pyright: ignore[reportPrivateImportUsage]


def address(storage: torch.UntypedStorage) -> int:
    """Distinguishes storages, also on the meta device, where all data pointers are 0."""
    return storage._cdata
