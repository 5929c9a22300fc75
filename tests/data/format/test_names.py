"""Names that can be printed and stored later."""

from __future__ import annotations

import os

import pytest

from cdt.data.format.names import MAX_NAME, is_hidden, name_problem


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


def test_hidden_files_and_those_of_operating_systems() -> None:
    assert all(map(is_hidden, (".git", "._a.png", "__MACOSX", "Thumbs.db")))
    assert not any(map(is_hidden, ("a.png", "macosx", "a.")))
