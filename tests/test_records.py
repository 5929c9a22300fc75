"""Files of ours, read back: of a known type, or refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from cdt.errors import InputError
from cdt.records import Count, Number, read_record


class _Row(TypedDict):
    count: Count
    value: Number


KIND = TypeAdapter(_Row)


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text('{"count": 3, "value": 1, "later": []}')
    assert read_record(tmp_path / "row.json", KIND) == {"count": 3, "value": 1.0}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "Invalid JSON"),
        (b"null", "should be an object"),
        (b"[]", "should be an object"),
        (b'{"count": 3}', "value: Field required"),
        (b'{"count": true, "value": 1}', "count: "),
        (b'{"count": "3", "value": 1}', "count: "),
        (b'{"count": 1e400, "value": 1}', "count: "),
        (b'{"count": -1, "value": 1}', "count: "),
        (b'{"count": 3, "value": NaN}', "value: .* finite"),
        (b'{"count": 3, "value": 1e999}', "value: .* finite"),
        (b'{"count": ' + b"9" * 5000 + b', "value": 1}', "out of range"),
        (b"[" * 100_000, "recursion limit"),
        (b'{"\xff": 1}', "Invalid JSON"),
    ],
)
def test_what_is_damaged_is_told_in_a_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"row\.json cannot be read: .*{told}") as caught:
        read_record(path, KIND)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "row.json")
    with pytest.raises(InputError, match="not a regular file"):
        read_record(tmp_path / "row.json", KIND)
    with pytest.raises(InputError, match="No such file"):
        read_record(tmp_path / "none.json", KIND)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "row.json").write_bytes(b" " * 100)
    with pytest.raises(InputError, match="larger than 99 bytes"):
        read_record(tmp_path / "row.json", KIND, limit=99)
