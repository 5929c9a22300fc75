"""Names in messages: the one that is meant, else the nearest one; long lists; what a terminal can show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING
from unicodedata import normalize

if TYPE_CHECKING:
    import numpy as np

SHOWN = 20
"""Names that a message lists."""
LONGEST = 100
"""Characters of a word that is compared with others: the comparison takes time."""


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known name that is spelled most like ``word``, capitals aside; None if none is close."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=1) if isinstance(word, str) and len(word) <= LONGEST else []
    return by_lower[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], listed: str) -> str:
    """``did you mean 'cat'?``, or ``listed: cat, dog`` (the first twenty) if nothing is close."""
    known = list(known)
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else f"{listed}: {', '.join(known[:SHOWN]) or 'none'}"


def place_of(name: str, known: Sequence[str]) -> int | None:
    """The place of a name; None if it is not known.

    An accent may be a letter's part or a character of its own (NFC, NFD): file systems and editors differ in that, and
    nobody sees it. So such a name is found if no other one looks the same.
    """
    if name in known:
        return known.index(name)
    alike = [number for number, other in enumerate(known) if normalize("NFC", other) == normalize("NFC", name)]
    return alike[0] if len(alike) == 1 else None


def first_few(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``: how messages list many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def digits(value: float | np.floating | np.integer) -> str:
    """A number with all of its digits, the fewest that tell it from others of its type: 1, 9007199254740992, 0.1."""
    return str(int(value)) if float(value).is_integer() else str(value)


def printable(text: str) -> str:
    """Without control sequences, and without bytes that are not UTF-8."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
