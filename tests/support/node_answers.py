"""Answers of cluster nodes, made up from this machine's facts."""

from __future__ import annotations

from typing import Any

from cdt.cluster import node
from cdt.cluster.nodes import Answer


def answer(address: str, **changed: Any) -> Answer:
    """This machine's facts under another address, with a torch for GPUs."""
    return Answer(address, {**node.facts(), "host": "h", "cuda": "12.9", **changed}, node_id=f"{address}-node")
