from __future__ import annotations

import pytest

from cdt.spelling import did_you_mean, nearest, place_of


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


def test_an_accent_is_the_same_however_it_is_encoded() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert place_of(composed, ["tea", decomposed]) == 1
    assert place_of(decomposed, ["tea", composed]) == 1
    assert place_of(decomposed, [composed, decomposed]) == 1
    assert place_of("cafe", [composed, decomposed]) is None
    assert place_of("x", []) is None
