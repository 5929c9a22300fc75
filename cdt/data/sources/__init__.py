"""Where images come from. A new source is one file here and one line in the table."""

from __future__ import annotations

from collections.abc import Callable

from cdt.data.sources.digits import open_digits
from cdt.data.sources.folder import open_folder
from cdt.data.sources.hf import open_hf
from cdt.data.sources.idx import open_idx
from cdt.data.sources.source import Record, Source

SOURCES: dict[str, Callable[..., Source]] = {
    "digits": open_digits,
    "idx": open_idx,
    "folder": open_folder,
    "hf": open_hf,
}

__all__ = ["SOURCES", "Record", "Source"]
