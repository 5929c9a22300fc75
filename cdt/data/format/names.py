"""Names of classes and attributes, and numbers: what all that comes later can print, store and find again."""

from __future__ import annotations

import math
import re
from decimal import Decimal

MAX_NAME = 200
"""Characters of a name."""
MAX_WHOLE = 2**53
"""Whole numbers up to this stay exact beside fractions, as float64."""

OF_SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""Folders and files that operating systems leave beside images, besides hidden ones."""
NOT_UTF8 = "is not UTF-8"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or of the operating system."""
    return name.startswith(".") or name in OF_SYSTEMS


NUMBER = re.compile(r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]{1,4})?")


def number(text: str) -> int | float | None:
    """The number that is written; None if it is none, or one that a float64 would change beyond its precision.

    Whole numbers, however they are written, are kept exactly or not at all; so are those too small or too large.
    """
    if len(text) > 400 or not NUMBER.fullmatch(text):
        return None
    exact = Decimal(text)
    whole = exact == exact.to_integral_value() if exact.adjusted() < 400 else True
    value = float(exact)
    if whole:
        return None if abs(exact) > MAX_WHOLE else value if set(text) & set(".eE") else int(text)
    return value if value and math.isfinite(value) else None


def name_problem(name: str) -> str | None:
    """Why a name cannot be used; None if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME:
        return f"has {len(name)} characters; at most {MAX_NAME}"
    if not name.isprintable():
        return "has control characters"
    return None
