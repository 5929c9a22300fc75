"""Names that can be printed and stored later."""

from __future__ import annotations

import os

import pytest

from cdt.data.format.names import MAX_NAME, is_hidden, name_problem, number


@pytest.mark.parametrize("name", ["0", "007", "cat", "Ölbaum", "猫", "two words", "a/b", "on", "x" * MAX_NAME])
def test_names(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        (" \u3000", "is empty"),
        ("a\nb", "has control characters"),
        ("\x1b[2J", "has control characters"),
        ("a\u202eb", "has control characters"),
        (os.fsdecode(b"caf\xe9"), "is not UTF-8"),
        ("x" * (MAX_NAME + 1), f"has {MAX_NAME + 1} characters; at most {MAX_NAME}"),
    ],
)
def test_what_is_no_name(name: str, problem: str) -> None:
    assert name_problem(name) == problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("0", 0), ("-7", -7), ("+3", 3), ("007", 7), (str(2**53), 2**53), ("-9007199254740992", -(2**53))],
        *[("0.1", 0.1), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("1E-9", 1e-9), ("16777217.0", 16777217.0)],
        *[("9007199254740993", None), ("9007199254740993.0", None), ("9007199254740993e0", None), ("1e400", None)],
        *[("1" * 31, None), ("1e-400", None), ("1e309", None), ("nan", None), ("inf", None), ("1_000", None)],
        *[("\uff11\uff12", None), ("\u0663", None), ("", None), ("0x10", None), ("1e99999", None), ("1 2", None)],
    ],
)
def test_numbers_are_what_is_written_or_none(text: str, value: float | None) -> None:
    found = number(text)
    assert found == value
    assert type(found) is type(value)


def test_hidden_files_and_those_of_operating_systems() -> None:
    assert all(map(is_hidden, (".git", "._a.png", "__MACOSX", "Thumbs.db")))
    assert not any(map(is_hidden, ("a.png", "macosx", "a.")))
