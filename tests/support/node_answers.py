"""Answers of cluster nodes, made up from this machine's facts."""

from __future__ import annotations

from typing import Any

from cdt.cluster import node
from cdt.cluster.nodes import Answer


def answer(address: str, **changed: Any) -> Answer:
    """This machine's facts under another address."""
    return Answer(address, {**node.facts(), "host": "h", **changed}, node_id=f"{address}-node")
