"""Did you mean: the nearest of the names that are known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 20
"""Names that a message lists."""


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known name that is spelled most like ``word``, capitals aside; None if none is close."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=1) if isinstance(word, str) else []
    return by_lower[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], listed: str) -> str:
    """``did you mean 'cat'?``, or ``listed: cat, dog`` (the first twenty) if nothing is close."""
    known = list(known)
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else f"{listed}: {', '.join(known[:SHOWN]) or 'none'}"
