from __future__ import annotations

import pytest

from cdt.spelling import did_you_mean, nearest


@pytest.mark.parametrize(("word", "near"), [("fuor", "four"), ("FIVE", "five"), ("seventy", "seven"), ("xyz", None)])
def test_the_nearest_name(word: str, near: str | None) -> None:
    assert nearest(word, ["four", "five", "seven"]) == near


def test_numbers_are_near_to_nothing() -> None:
    assert nearest(4, ["4"]) is None


def test_otherwise_the_names_are_listed() -> None:
    assert did_you_mean("fuor", ["four"], "known are") == "did you mean 'four'?"
    assert did_you_mean("x", ["four", "five"], "known are") == "known are: four, five"
    assert did_you_mean("x", [], "known are") == "known are: none"
    assert did_you_mean("x", map(str, range(100)), "it has").count(",") == 19
