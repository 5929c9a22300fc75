"""The journals of a run: JSON lines, only appended to."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from cdt import filenames
from cdt.files import append_text
from cdt.monitor.writer import Writer


class Journals(Writer):
    """metrics.jsonl and events.jsonl. (The coordinator writes dual.jsonl itself, before it answers.)"""

    def __init__(self, directory: Path, step: int) -> None:
        self._directory = directory

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        append(self._directory / filenames.METRICS, {"step": step, **values})

    def event(self, step: int, kind: str, text: str, details: Mapping[str, Any]) -> None:
        append(self._directory / filenames.EVENTS, _event(step, kind, text, details))


def note(directory: Path, step: int, kind: str, text: str, **details: Any) -> None:
    """Records an event from outside of the workers. On a full disk the event is lost, and nothing is raised."""
    with suppress(OSError):
        append(directory / filenames.EVENTS, _event(step, kind, text, details))


def append(path: Path, *rows: Mapping[str, Any]) -> None:
    """Appends JSON objects, one per line. JSON has no nan and no infinities: they become null."""
    known = ({name: None if isinstance(x, float) and not isfinite(x) else x for name, x in row.items()} for row in rows)
    append_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in known))


def _event(step: int, kind: str, text: str, details: Mapping[str, Any]) -> dict[str, Any]:
    return {"time": time.time(), "step": step, "event": kind, "text": text, **details}
