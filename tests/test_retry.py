from __future__ import annotations

import pytest

from cdt import retry
from cdt.retry import Retries, retried


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", found.append)
    return found


class FailingError(Exception):
    pass


def test_waits_double_up_to_the_longest(waits: list[float]) -> None:
    retries = Retries(5, 0.5, 3.0)
    assert [retries.again() for _ in range(5)] == [True] * 4 + [False]
    assert waits == [1.0, 2.0, 3.0, 3.0]


def test_progress_starts_the_count_again(waits: list[float]) -> None:
    retries = Retries(2, 1.0, 60.0)
    for _ in range(4):
        retries.progressed()
        assert retries.again()
    assert not retries.again()
    assert waits == [2.0] * 4


def test_the_first_success_is_returned(waits: list[float]) -> None:
    answers = iter([ValueError("one"), OSError("two"), 7])

    def attempt() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retried(attempt, Retries(3, 1.0, 60.0), FailingError, ()) == 7
    assert waits == [2.0, 4.0]


def test_the_last_reason_is_told(waits: list[float]) -> None:
    def attempt() -> int:
        raise ValueError("broken\nand more")

    with pytest.raises(FailingError, match=r"^3 tries failed, the last one: broken$"):
        retried(attempt, Retries(3, 1.0, 60.0), FailingError, ())
    assert len(waits) == 2


def test_what_lasts_is_not_tried_again(waits: list[float]) -> None:
    def attempt() -> int:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        retried(attempt, Retries(3, 1.0, 60.0), FailingError, (FileNotFoundError,))
    assert waits == []
