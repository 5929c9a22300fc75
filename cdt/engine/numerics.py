"""How a GPU computes: products of fp32 in TF32 or not, and whether the same sum has the same bits each time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


def allow_tf32(allowed: bool) -> None:
    """Whether products of fp32 are rounded to 10 bits: alike in convolutions and in matrices.

    The defaults of torch differ: convolutions are rounded, matrices are not.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def reproducible(required: bool) -> Iterator[None]:
    """Inside this context, if ``required``, only kernels run that give the same bits each time.

    To be entered before the first product on a GPU: cuBLAS reads its workspace then. RuntimeError of torch where an
    operation has no such kernel.
    """
    if not required:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
