"""Unquoted scalars of a configuration: a number or a boolean if the setting takes one, else their text.

So a class called 007, 1e3 or true is constrained under its own name, with or without quotes, and 1e-4 is a number where
the setting is one. The core schema of YAML 1.2 defines which scalars can be numbers.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

NULL = r"(|~|null|Null|NULL)"
BOOLEAN = r"(true|True|TRUE|false|False|FALSE)"
INTEGER = r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)"
FLOAT = r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))"
"""YAML 1.2, section 10.3.2."""


class Plain(str):
    """An unquoted scalar."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Plain:
        return self


def meaning(value: Any) -> Any:
    """The value of an unquoted scalar whose type is not known: null, a boolean, a number or text. Other values stay.

    An integer has a bounded number of digits (``cdt.yaml_text``).
    """
    if not isinstance(value, Plain):
        return value
    if re.fullmatch(NULL, value):
        return None
    if re.fullmatch(BOOLEAN, value):
        return value[0] in "tT"
    if re.fullmatch(INTEGER, value):
        return int(value, 0 if value[:2] in ("0o", "0x") else 10)
    if re.fullmatch(FLOAT, value):
        return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return str(value)


def settled(tree: Any, *wanted: Any) -> Any:
    """``tree`` with each unquoted scalar converted to what its setting takes. ``wanted``: types that it may have."""
    if isinstance(tree, Mapping):
        of = below(wanted)
        return {key: settled(value, *of(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        inside = [*items(wanted)]
        return [settled(item, *inside) for item in tree]
    return _read(tree, wanted) if isinstance(tree, Plain) else tree


def _read(word: Plain, wanted: Iterable[Any]) -> Any:
    value = meaning(word)
    if value is None or isinstance(value, str):
        return value
    takes = {*wanted, *items(wanted)}  # a single scalar is accepted for a list of one
    fitting = {bool} if isinstance(value, bool) else {int, float}
    return str(word) if takes & {str, Path} and not takes & {Any, *fitting} else value


def alternatives(annotation: Any) -> Iterator[Any]:
    """The types of an annotation that are neither a union nor annotated themselves; None is left out."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from alternatives(each)
    elif annotation not in (None, types.NoneType):
        yield annotation


def items(wanted: Iterable[Any]) -> Iterator[Any]:
    """The types of the items of a list, if ``wanted`` has types of lists."""
    for kind in wanted:
        if get_origin(kind) in (list, tuple):
            for each in get_args(kind):
                if each is not ...:
                    yield from alternatives(each)


def below(wanted: Iterable[Any]) -> Callable[[str], list[Any]]:
    """The types that the value of a key can have, by the key."""
    models = [fields(kind) for kind in wanted if isinstance(kind, type) and issubclass(kind, BaseModel)]
    of_all = [each for kind in wanted if get_origin(kind) is dict for each in alternatives(get_args(kind)[1])]
    return lambda key: [*of_all, *chain.from_iterable(model.get(key, ()) for model in models)]


@cache
def fields(model: type[BaseModel]) -> dict[str, list[Any]]:
    """The types of each field, by the names that users write."""
    return {
        name: [*alternatives(field.annotation)]
        for attribute, field in model.model_fields.items()
        for name in (attribute, field.validation_alias)
        if isinstance(name, str)
    }
