"""The kinds of damage that data can have."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "missing shard",
    "unreadable shard",
    "truncated shard",
    "wrong checksum",
    "missing image",
    "missing label",
    "unreadable file",
    "damaged image",
    "wrong shape or type",
    "not finite",
    "too large",
]


class BadDataError(ValueError):
    """Why a sample is unusable, in one line."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind: Kind = kind
