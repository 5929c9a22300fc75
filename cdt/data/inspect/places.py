"""Paths and URLs of tars, from patterns with braces and from lists of patterns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from cdt.data.urls import is_remote
from cdt.errors import InputError

MAX_PLACES, MAX_BRACES = 1_000_000, 100
INNERMOST = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(?:(-?\d{1,18})\.\.(-?\d{1,18})|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?\d+)?")
COUNTED = re.compile(r"\0(\d+)\0")


def expand(urls: Iterable[str]) -> list[str]:
    """Places of tars from patterns and lists. Raises InputError for an empty or repeated one, and for too many."""
    places = list(islice(_places(urls), MAX_PLACES + 1))
    if not places:
        raise InputError("no shards were named")
    if len(places) > MAX_PLACES:
        raise InputError(f"more than {MAX_PLACES:,} shards were named, the last of them {places[-1]}")
    if (repeated := Counter(places).most_common(1)[0])[1] > 1:
        raise InputError(f"{repeated[0]} is named {repeated[1]} times")
    return places


def _places(patterns: Iterable[str]) -> Iterator[str]:
    for pattern in patterns:
        is_remote(pattern)
        if pattern.startswith("@"):
            yield from _places(_lines(Path(pattern[1:])))
            continue
        if pattern.count("{") > MAX_BRACES:
            raise InputError(f"{pattern[:200]}: its braces cannot be read, they are more than {MAX_BRACES}")
        if most_places(pattern) > MAX_PLACES:
            raise InputError(f"{pattern[:200]} expands to more than {MAX_PLACES:,} shards")
        try:
            yield from braceexpand(pattern)
        except ValueError as error:
            raise InputError(f"{pattern[:200]}: its braces cannot be read") from error


def most_places(pattern: str) -> int:
    """An upper bound of the number of expansions, at most ``MAX_PLACES`` + 1; braceexpand makes all at once."""

    def bounded(number: int) -> int:
        return min(number, MAX_PLACES + 1)

    def product(part: str) -> int:
        number = 1
        for counted in COUNTED.findall(part):
            number = bounded(number * int(counted))
        return number

    def replaced(braces: re.Match[str]) -> str:
        if ends := RANGE.fullmatch(braces[1]):
            first, last = (int(ends[1]), int(ends[2])) if ends[1] else (ord(ends[3]), ord(ends[4]))
            return f"\0{bounded(abs(last - first) + 1)}\0"
        return f"\0{bounded(sum(product(part) for part in braces[1].split(',')))}\0"

    pattern, found = pattern.replace("\0", ""), 1
    while found:
        pattern, found = INNERMOST.subn(replaced, pattern)
    return product(pattern)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no list in UTF-8: {error}") from error
    if nested := next((line for line in lines if line.startswith("@")), None):
        raise InputError(f"{path} names another list, {nested}; expected paths and URLs of tars")
    return lines
