"""JSON files that cdt writes and reads back, validated by type. A damaged file is reported in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from cdt.errors import InputError
from cdt.files import read_bytes

T = TypeVar("T")

LIMIT = 1 << 28
"""Bytes: the most that are read of such a file, unless its kind is known to be larger or smaller."""
Count = Annotated[int, Field(ge=0, lt=2**62)]
"""How many of something there are, or a position."""
Number = Annotated[float, Field(allow_inf_nan=False)]
OBJECT = TypeAdapter(dict[str, Any])
"""For files of other programs: only the fields that are needed are checked, one by one."""


def read_record(path: Path, kind: TypeAdapter[T], limit: int = LIMIT) -> T:
    """The content of a file that cdt wrote.

    Raises InputError, which names the file and the first thing in it that is wrong: not JSON, something missing, or of
    another type or range.
    """
    return parsed(read_bytes(path, limit), kind, f"{path} cannot be read")


def parsed(content: bytes | str, kind: TypeAdapter[T], prefix: str) -> T:
    """JSON of a known type. Raises InputError, whose message begins with ``prefix``."""
    try:
        return kind.validate_json(content, strict=True)
    except ValidationError as error:
        raise InputError(f"{prefix}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first of them, in one line of bounded length."""
    first: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return " ".join(f"{where}: {first['msg']}".removeprefix(": ").split())[:200]
