"""Problems are counted, the first few are named, and more than the allowed share is refused."""

from __future__ import annotations

import math

import pytest

from cdt.data.format.problems import LISTED, Problems, check_max_bad
from cdt.errors import InputError


def some(kind: str, count: int) -> Problems:
    problems = Problems()
    for number in range(count):
        problems.add(kind, f"a\x1b{number}")
    return problems


def test_only_the_first_few_are_kept_and_they_are_printable() -> None:
    problems = some("damaged image", LISTED + 3)
    assert problems.counts == {"damaged image": LISTED + 3}
    assert problems.places == {"damaged image": [f"a?{number}" for number in range(LISTED)]}


def test_two_lists_are_one() -> None:
    problems = some("damaged image", 3)
    problems.update(some("damaged image", LISTED))
    problems.update(some("missing label", 1))
    assert problems.counts == {"damaged image": 3 + LISTED, "missing label": 1}
    assert len(problems.places["damaged image"]) == LISTED


def test_the_share_is_of_all_samples() -> None:
    problems = some("damaged image", 1)
    line = "damaged image: 1, as a?0"
    assert problems.judge(999, 0.001) == [line]
    with pytest.raises(InputError, match=r"1 problems beside 998 usable samples are more than --max-bad 0\.001"):
        problems.judge(998, 0.001)
    with pytest.raises(InputError, match=f"no sample can be used:\n  {line}".replace("?", r"\?")):
        problems.judge(0, 1.0)


def test_files_beside_the_samples_cost_none() -> None:
    assert len(some("hidden file", 50).judge(1, 0.0)) == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_a_share(share: float) -> None:
    with pytest.raises(InputError, match="is no share; expected 0 to 1"):
        check_max_bad(share)


def test_a_name_of_a_megabyte_is_cut_in_its_middle() -> None:
    problems = Problems()
    problems.add("missing label", f"a.tar: {'x' * 1_000_000}: it has no cls")
    (place,) = problems.places["missing label"]
    assert len(place) < 1100
    assert place.startswith("a.tar: xxx")
    assert place.endswith("xxx: it has no cls")
