"""What cdt uses of Ray Train although Ray does not promise to keep it; ray_private.py has that of Ray's core."""

from __future__ import annotations

from typing import Any

from ray.train.torch.config import _TorchBackend as TorchBackend
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

__all__ = ["TorchBackend", "WorkerGroupCallback", "process_of"]


def process_of(worker: Any) -> tuple[str, int]:
    """(node id, process id) of one of the workers that a ``WorkerGroupCallback`` is given."""
    return worker.metadata.node_id, worker.metadata.pid
