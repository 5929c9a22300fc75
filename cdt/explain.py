"""Pydantic's validation errors in users' words: where, what is wrong, what is allowed, and the nearest match."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cdt.spelling import nearest

Node = Mapping[str, Any]
"""A node of pydantic's core schema."""
ANY: Node = {"type": "any"}

KINDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "dict": "a mapping",
    "list": "a list",
    "set": "a list",
    "tuple": "a list",
}
LIMITS = {
    "gt": "> {}",
    "ge": ">= {}",
    "lt": "< {}",
    "le": "<= {}",
    "multiple_of": "a multiple of {}",
    "min_length": "of length >= {}",
    "max_length": "of length <= {}",
    "pattern": "that matches {}",
}


MOST_ERRORS = 50
"""Of pydantic's, that are explained: nobody reads more, and of a long list each item may be wrong."""
LONGEST = 400
"""Characters of what a validator says: it may quote what it refuses."""


class Problem(NamedTuple):
    path: tuple[str, ...]
    text: str
    refusal: bool = False
    """The value as such is not allowed, as opposed to a fault that a validator named."""

    def further_than(self, refused: Problem) -> bool:
        below = len(self.path) > len(refused.path) or not self.refusal
        return below and self.path[: len(refused.path)] == refused.path


def explain(model: type[BaseModel], error: ValidationError) -> list[str]:
    """``path: what is wrong; what is allowed``, one line per problem, in the order of the fields.

    Of a union pydantic reports every branch. Those that refuse the value as such say the same, so one line is left of
    them, and none where another branch got further into the value. Only the first ``MOST_ERRORS`` are looked at.
    """
    schema = _Schema(model)
    problems = [schema.problem(details) for details in error.errors(include_url=False)[:MOST_ERRORS]]
    kept = [p for p in problems if not any(p.refusal and other.further_than(p) for other in problems)]
    return list(
        dict.fromkeys(
            f"{'.'.join(map(one_line, path))}: {text}" if path else text
            for path, text in ((path, one_line(text, LONGEST)) for path, text, _ in kept)
        )
    )


def shown(value: object) -> str:
    """A value as one writes it in YAML, cut to 60 characters; of a large one no more is looked at."""
    text = ""
    for part in json.JSONEncoder(default=str, ensure_ascii=False).iterencode(value):
        text += part
        if len(text) > 60:
            break
    return one_line(text)


def one_line(text: str, longest: int = 60) -> str:
    """``text`` without line breaks and control characters, cut to so many characters."""
    cut = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


class _Schema:
    """Pydantic's core schema of a model: what stands at the location of an error, and what is allowed there."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root = cast(Node, model.__pydantic_core_schema__)
        self.definitions: dict[str, Node] = {node["ref"]: node for node in self.root.get("definitions", [])}

    def problem(self, error: ErrorDetails) -> Problem:
        path, field, branch = self.locate(error["loc"])
        context = error.get("ctx", {})
        match error["type"]:
            case "extra_forbidden":
                known = list(_fields(branch))
                return Problem(path, "unknown key" + (_nearest(path[-1], known) or f"; known here: {', '.join(known)}"))
            case "missing":
                allowed = [word for word in self.allowed(field) if word != "null"]
                return Problem(path, _fault("missing", None, allowed))
            case "value_error" | "assertion_error":
                return Problem(path, str(context["error"]))
            case "union_tag_invalid" | "union_tag_not_found" if isinstance(branch["discriminator"], str):
                wrong = f"got {shown(context['tag'])}" if "tag" in context else "missing"
                path = (*path, branch["discriminator"])
                return Problem(path, _fault(wrong, context.get("tag"), list(branch["choices"])))
        allowed = self.allowed(field)
        wrong = f"got {shown(error['input'])}"
        return Problem(path, _fault(wrong, error["input"], allowed) if allowed else f"{wrong}; {error['msg']}", True)

    def locate(self, location: tuple[int | str, ...]) -> tuple[tuple[str, ...], Node, Node]:
        """The path as users write it, the schema there, and the branch of that schema which the error is about.

        At unions a location also has the tag or the name of a branch, which no user ever wrote.
        """
        path: list[str] = []
        field = branch = self.root
        for step, following in zip_longest(location, location[1:]):
            branch = self.unwrapped(branch)
            match branch["type"]:
                case "tagged-union":
                    branch = branch["choices"][step]
                    continue
                case "union":
                    branch = self.choice(branch, str(step))
                    continue
                case "list" | "set" | "tuple":
                    path[-1] += f"[{step}]"
                    items = branch.get("items_schema", ANY)
                    field = items[min(int(step), len(items) - 1)] if isinstance(items, list) else items
                case "dict":
                    path.append(str(step))
                    field = branch.get("keys_schema" if following == "[key]" else "values_schema", ANY)
                case "model-fields" if step in _fields(branch):
                    path.append(str(step))
                    field = _fields(branch)[str(step)]
                case _ if step != "[key]":
                    path.append(str(step))
                    break
            branch = field
        return tuple(path), field, self.unwrapped(branch)

    def choice(self, union: Node, label: str) -> Node:
        """The branch of a union that pydantic calls ``label``, as in ``function-after[check(), UNetConfig]``."""
        for choice in map(self.unwrapped, _choices(union)):
            if re.search(rf"\b{choice.get('model_name', choice['type'])}\b", label):
                return choice
        return ANY

    def unwrapped(self, node: Node) -> Node:
        """``node`` without what changes neither its keys nor its kind: defaults, validators, null, references."""
        while inner := self.inner(node):
            node = inner
        return node

    def inner(self, node: Node) -> Node | None:
        match node["type"]:
            case "definition-ref":
                return self.definitions[node["schema_ref"]]
            case "lax-or-strict":
                return node["lax_schema"]
            case "json-or-python":
                return node["python_schema"]
        return node.get("schema")

    def allowed(self, node: Node) -> list[str]:
        """The words and kinds of values that ``node`` takes; empty where its schema does not tell."""
        if node["type"] == "nullable":
            return ["null", *self.allowed(node["schema"])]
        if inner := self.inner(node):
            return self.allowed(inner)
        kind = KINDS.get(node["type"])
        match node["type"]:
            case "literal":
                return [word if isinstance(word, str) else shown(word) for word in node["expected"]]
            case "none":
                return ["null"]
            case "bool":
                return ["true", "false"]
            case "union":
                return list(chain.from_iterable(map(self.allowed, _choices(node))))
            case "tagged-union" if isinstance(node["discriminator"], str):
                return [f"a mapping with {node['discriminator']}: {' | '.join(node['choices'])}"]
            case "tagged-union":
                return list(chain.from_iterable(map(self.allowed, node["choices"].values())))
            case "model-fields":
                return [f"a mapping with the keys {', '.join(_fields(node))}"]
            case "tuple" if "variadic_item_index" not in node:
                return [f"a list of {len(node['items_schema'])} values"]
            case "float" if node.get("allow_inf_nan") is False:
                kind = "a finite number"
        limits = [phrase.format(_limit(node[name])) for name, phrase in LIMITS.items() if name in node]
        return [" ".join([kind, " and ".join(limits)]).rstrip()] if kind else []


def _limit(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(union: Node) -> list[Node]:
    return [choice[0] if isinstance(choice, tuple) else choice for choice in union["choices"]]


def _fields(node: Node) -> dict[str, Node]:
    """Fields of a model by the names that users write."""
    return {field.get("validation_alias", name): field["schema"] for name, field in node.get("fields", {}).items()}


def _fault(wrong: str, value: object, allowed: Sequence[str]) -> str:
    unique = list(dict.fromkeys(allowed))
    either = " or ".join(filter(None, [", ".join(unique[:-1]), unique[-1]]))
    return f"{wrong}; must be {either}{_nearest(value, unique)}"


def _nearest(word: object, known: Iterable[str]) -> str:
    near = nearest(word, [candidate for candidate in known if " " not in candidate])
    return f"; did you mean {near}?" if near else ""
