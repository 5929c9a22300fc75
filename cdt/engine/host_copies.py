"""Copies of the data to save in CPU memory, so that training does not wait for the disk."""

from __future__ import annotations

import copy
from enum import Enum
from typing import Any

import torch
from torch import Tensor


class Copies:
    """Buffers that are reused at the next save: allocating pages costs more than copying, pinned pages much more."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """A copy, valid until the next copy with this name."""
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
            self._kept[name] = kept
        return kept.copy_(tensor.detach())

    def tree(self, name: str, tree: Any) -> Any:
        """Copies DeepSpeed's state. Its enums become numbers: some versions of Python pickle them as a getattr call."""
        if isinstance(tree, Tensor):
            return self.of(name, tree)
        if isinstance(tree, dict):
            return type(tree)((key, self.tree(f"{name}/{key}", value)) for key, value in tree.items())
        if type(tree) in (list, tuple):
            return type(tree)(self.tree(f"{name}/{place}", value) for place, value in enumerate(tree))
        return tree.value if isinstance(tree, Enum) else copy.deepcopy(tree)
