"""The rows of a run's journals and of calibration.json: what each must have, and those that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from cdt import filenames
from cdt.errors import InputError
from cdt.files import read_bytes
from cdt.records import Count, Number, read_record

LIMIT = 1 << 32
"""Bytes of a journal: of a hundred thousand constraints a period takes some millions."""
_OPEN = ConfigDict(extra="allow")
_FAR = 2**43
"""Seconds: more than any clock says."""
Measured = Number | None


@with_config(_OPEN)
class _Metrics(TypedDict):
    step: Count
    loss: Measured


@with_config(_OPEN)
class _BadSample(TypedDict):
    kind: str
    shard: str
    key: str
    reason: NotRequired[str]


@with_config(_OPEN)
class _Event(TypedDict):
    time: Annotated[Number, Field(ge=0, le=_FAR)]
    step: Count
    event: str
    text: str
    samples: NotRequired[list[_BadSample]]


_Dual = with_config(_OPEN)(
    TypedDict(
        "_Dual",
        {
            "period": Count,
            "step": Count,
            "constraint": str,
            "lambda": Number,
            "loss": Measured,
            "stderr": Measured,
            "count": Number,
            "threshold": Measured,
            "slack": Measured,
            "satisfied": bool | None,
            "share": NotRequired[Measured],
        },
    )
)


@with_config(_OPEN)
class _Calibrated(TypedDict):
    constraint: str
    window: Measured


_JOURNALS: dict[str, TypeAdapter[Any]] = {
    filenames.METRICS: TypeAdapter(_Metrics),
    filenames.EVENTS: TypeAdapter(_Event),
    filenames.DUAL: TypeAdapter(_Dual),
}
_CALIBRATION = TypeAdapter(list[_Calibrated])


class Journal(NamedTuple):
    """What can be read of one."""

    rows: list[dict[str, Any]]
    unusable: int
    """Lines that are no rows of this journal. A last line that is not finished is not counted."""


def read_journal(directory: Path, name: str) -> Journal:
    """dual.jsonl, metrics.jsonl or events.jsonl; without rows before it was begun.

    Raises InputError when it cannot be read at all.
    """
    try:
        content = read_bytes(directory / name, LIMIT)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Journal([], 0)
        raise
    *lines, unfinished = content.split(b"\n")
    kind = _JOURNALS[name]
    rows = [row for line in lines if (row := _row(line, kind)) is not None]
    unusable = len(lines) - len(rows)
    if (last := _row(unfinished, kind)) is not None:
        rows.append(last)
    return Journal(rows, unusable)


def _row(line: bytes, kind: TypeAdapter[Any]) -> dict[str, Any] | None:
    try:
        return kind.validate_json(line, strict=True)
    except ValidationError:
        return None


def read_calibration(directory: Path) -> list[dict[str, Any]]:
    """What calibration.json states of each constraint; [] before calibration. Raises InputError if it is damaged."""
    try:
        return [{**row} for row in read_record(directory / filenames.CALIBRATION, _CALIBRATION)]
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
