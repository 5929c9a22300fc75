"""Settings from YAML and ``key=value``, and back to YAML.

Plain words mean what the core schema of YAML 1.2 says: ``1e-4`` is a number, ``no`` and ``1:30`` are text. Keys are
always text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cdt.errors import InputError
from cdt.explain import explain, shown

T = TypeVar("T", bound=BaseModel)

PLAIN_WORDS = {  # YAML 1.2, section 10.3.2
    "null": r"(|~|null|Null|NULL)",
    "bool": r"(true|True|TRUE|false|False|FALSE)",
    "int": r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)",
    "float": r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))",
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - in place of YAML 1.1's, which the base class has

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key must be a word", key.start_mark)
            if key.value in mapping:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} appears twice here", key.start_mark)
            mapping[key.value] = self.construct_object(value, deep=True)  # deep: refuses what contains itself
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    style = None if text.isprintable() else '"'  # PyYAML's other styles lose some line breaks
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _sequence(dumper: _Dumper, items: list) -> yaml.Node:
    flat = not any(isinstance(item, list | dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


for _name, _pattern in PLAIN_WORDS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"{_pattern}\Z"), None)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _sequence)


def _documents(text: str | bytes, where: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, _Loader))
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{where}{line}: {problem}") from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises InputError: the file cannot be read, a syntax error or a repeated key (with its line), not one mapping.
    """
    try:
        documents = _documents(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    tree = documents[0] if documents else None
    if len(documents) > 1 or not isinstance(tree, dict | None):
        raise InputError(f"{path}: one mapping of keys to values is needed, as in `seed: 0`")
    return tree or {}


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``tree`` with each ``a.b=value`` put in, in order; values are YAML, missing parents are made.

    Raises InputError: no ``=``, no key, no value, bad YAML in the value, a path that leads through a value.
    """
    result = copy.deepcopy(dict(tree))
    for override in overrides:
        path, equals, text = override.partition("=")
        *parents, name = path.split(".")
        if not equals or "" in (*parents, name):
            raise InputError(f"{override!r}: overrides are written key=value, as in diffusion.schedule=cosine")
        values = _documents(text, repr(override))
        if len(values) != 1:
            raise InputError(f"{override!r}: no value; write {path}=null for none or {path}='\"\"' for an empty text")
        node = result
        for depth, parent in enumerate(parents, start=1):
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                at = ".".join(parents[:depth])
                raise InputError(f"{override!r}: {at} is {shown(node)}, which has no keys; override {at} as a whole")
        node[name] = values[0]
    return result


def parse(model: type[T], tree: Mapping[str, Any], *, where: str) -> T:
    """The settings of ``tree``; ``where`` names their origin in messages.

    Raises InputError with one line per problem: its dotted path, what is wrong, what is allowed.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = explain(model, error)
    if len(problems) > 1:
        problems.insert(0, f"{len(problems)} problems")
    raise InputError(f"{where}: " + "\n  ".join(problems))


def dump_yaml(config: BaseModel) -> str:
    """The settings as YAML, defaults included, in the order of the fields; :func:`parse` reads an equal config."""
    tree = config.model_dump(mode="json", by_alias=True)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
