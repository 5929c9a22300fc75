"""Settings from YAML and ``key=value``, and back to YAML.

In a tree of settings, keys are text. Unquoted scalars are converted by ``parse``, which knows the type of each setting.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cdt.errors import InputError
from cdt.explain import MOST_ERRORS, explain, shown
from cdt.files import read_bytes
from cdt.words import BOOLEAN, FLOAT, INTEGER, NULL, meaning, settled
from cdt.yaml_text import MAX_DEPTH, MAX_NODES, read_yaml

T = TypeVar("T", bound=BaseModel)

LARGEST = 2**18
"""Bytes of a configuration that a user wrote: some five thousand constraints. Each takes time to read."""
RESOLVED = 16
"""A configuration that a run wrote has all defaults and absolute paths: it may be this many times as large."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    style = None if text.isprintable() else '"'  # PyYAML's other styles lose some line breaks
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _sequence(dumper: _Dumper, items: list) -> yaml.Node:
    flat = not any(isinstance(item, list | dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


for _name, _pattern in {"null": NULL, "bool": BOOLEAN, "int": INTEGER, "float": FLOAT}.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"{_pattern}\Z"), None)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _sequence)


def load_yaml(path: str | Path, *, resolved: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping. ``parse`` says what its plain words mean.

    ``resolved``: a run wrote it.

    Raises InputError: the file cannot be read, is no regular file or too large; what ``read_yaml`` refuses (with its
    line); not a mapping.
    """
    times = RESOLVED if resolved else 1
    documents = read_yaml(read_bytes(path, times * LARGEST), str(path), times * MAX_NODES)
    tree = meaning(documents[0]) if documents else None
    if not isinstance(tree, dict | None):
        raise InputError(f"{path}: one mapping of keys to values is needed, as in `seed: 0`")
    return tree or {}


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``tree`` with each ``a.b=value`` put in, in order; values are YAML, missing parents are made.

    Raises InputError: no ``=``, no key, no value, what ``read_yaml`` refuses in the value, a path that leads through a
    value or is too long.
    """
    result = copy.deepcopy(dict(tree))
    for override in overrides:
        path, equals, text = override.partition("=")
        said = repr(override) if len(override) <= 200 else f"{override[:199]!r}…"
        *parents, name = path.split(".")
        if not equals or "" in (*parents, name):
            raise InputError(f"{said}: overrides are written key=value, as in diffusion.schedule=cosine")
        if len(parents) > MAX_DEPTH:
            raise InputError(f"{said}: a path of {len(parents) + 1} keys; settings have at most {MAX_DEPTH}")
        values = read_yaml(text, said)
        if not values:
            raise InputError(f"{said}: no value; write {path}=null for none or {path}='\"\"' for an empty text")
        node = result
        for depth, parent in enumerate(parents, start=1):
            if meaning(node.get(parent)) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                at = ".".join(parents[:depth])
                raise InputError(f"{said}: {at} is {shown(meaning(node))}, which has no keys; override {at} as a whole")
        node[name] = values[0]
    return result


def parse(model: type[T], tree: Mapping[str, Any], *, where: str) -> T:
    """The settings of ``tree``, its plain words as they want them; ``where`` names their origin in messages.

    Raises InputError with one line per problem: its dotted path, what is wrong, what is allowed.
    """
    try:
        return model.model_validate(settled(tree, model))
    except ValidationError as error:
        problems = explain(model, error)
        more = "more than " * (error.error_count() > MOST_ERRORS)
    if len(problems) > 1:
        problems.insert(0, f"{more}{len(problems)} problems")
    raise InputError(f"{where}: " + "\n  ".join(problems))


def dump_yaml(config: BaseModel) -> str:
    """The settings as YAML, defaults included, in the order of the fields; :func:`parse` reads an equal config."""
    tree = config.model_dump(mode="json", by_alias=True)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
