"""YAML text as a tree of mappings, lists and scalars of bounded size. Tags and merge keys are refused.

The tree is built from the events of PyYAML's parser, without its composer and constructors. So tags construct no
objects, the depth is bounded, and aliases count as many nodes as they expand to.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)

from cdt.errors import InputError
from cdt.words import INTEGER, Plain

Tree: TypeAlias = "dict[str, Tree] | list[Tree] | str"

MAX_DEPTH = 32
"""Depth of nesting; settings need six."""
MAX_NODES = 50_000
"""Number of scalars, mappings and lists of a configuration, with aliases expanded. PyYAML takes some 20 µs for each."""
MAX_DIGITS = 400
"""Of a whole number: beyond that, it is not even a float."""
TEXT_TAGS = {None, "!", "tag:yaml.org,2002:str"}
"""Scalars with one of these tags are text."""
COLLECTION_TAGS = {None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass
class _Open:
    """A mapping or a list that has begun."""

    made: dict[str, Any] | list[Any]
    anchor: str | None
    nodes_before: int
    key: str | None = None
    """Of a mapping: the key whose value comes next."""


def read_yaml(text: str | bytes, where: str, most: int = MAX_NODES) -> list[Tree]:
    """The only document, in a list; an empty list if there is none. Plain words are ``Plain``, quoted ones are text.

    Bytes are UTF-8, or UTF-16 with its mark. ``where`` names the text in messages, ``most`` is the number of nodes that
    it may have.

    Raises InputError, with the line: a syntax error, a repeated key, a key that is no word, a second document; more
    nodes than that, or a greater depth than settings can have; tags (but ``!!str``), merge keys, aliases that stand for
    what they are in; characters that no file can have in its name.
    """
    try:
        return _Builder(most).trees(text)
    except yaml.reader.ReaderError as error:
        unit = "character" if error.encoding == "unicode" else "byte"
        raise InputError(f"{where}: {str(error).splitlines()[0]}, at {unit} {error.position + 1}") from None
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{place}: {error.problem}") from None
    except (ValueError, OverflowError):  # no such character, no such version
        raise InputError(f"{where}: the number of an escape or of a directive is out of range") from None


class _Builder:
    def __init__(self, most: int) -> None:
        self.most = most
        self.found: list[Tree] = []
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Tree, int]] = {}
        """By name: the value, and its number of nodes."""
        self.nodes = self.documents = 0

    def trees(self, text: str | bytes) -> list[Tree]:
        for event in yaml.parse(text, yaml.SafeLoader):
            self.take(event)
        return self.found

    def take(self, event: Event) -> None:
        match event:
            case DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    raise _refusal(event, "a second document begins here; one mapping of keys to values is needed")
            case AliasEvent():
                self.put(event, self.alias(event))
            case ScalarEvent():
                self.put(event, self.word(event), event.anchor)
            case CollectionStartEvent():
                self.begin(event)
            case CollectionEndEvent():
                ended = self.open.pop()
                if ended.anchor is not None:
                    self.anchors[ended.anchor] = ended.made, self.nodes - ended.nodes_before
            case _:
                pass

    def begin(self, event: CollectionStartEvent) -> None:
        if event.tag not in COLLECTION_TAGS:
            raise _refusal(event, f"the tag {event.tag[:60]} is not known here; leave it out")
        if len(self.open) == MAX_DEPTH:
            raise _refusal(event, f"more than {MAX_DEPTH} mappings and lists inside of each other")
        made: dict[str, Tree] | list[Tree] = {} if isinstance(event, MappingStartEvent) else []
        before = self.nodes
        self.put(event, made)
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)
        self.open.append(_Open(made, event.anchor, before))

    def put(self, event: Event, value: Tree, anchor: str | None = None) -> None:
        """``value`` into what is open, as a key, a value or an item."""
        self.nodes += 1
        if self.nodes > self.most:
            raise _refusal(event, f"more than {self.most:,} values, with aliases expanded")
        if anchor is not None:
            self.anchors[anchor] = value, 1
        if not self.open:
            self.found.append(value)
            return
        place = self.open[-1]
        if isinstance(place.made, list):
            place.made.append(value)
        elif place.key is None:
            place.key = _key(event, value, place.made)
        else:
            place.made[place.key] = value
            place.key = None

    def alias(self, event: AliasEvent) -> Tree:
        """A copy, so that an override changes one place alone."""
        if any(each.anchor == event.anchor for each in self.open):
            raise _refusal(event, f"*{event.anchor} refers to a value that contains it")
        if event.anchor not in self.anchors:
            raise _refusal(event, f"no anchor &{event.anchor} before *{event.anchor}")
        value, size = self.anchors[event.anchor]
        self.nodes += size - 1  # put counts the first
        if self.nodes < self.most:
            _check_depth(event, value, len(self.open))
            return copy.deepcopy(value)
        return ""  # put refuses it

    def word(self, event: ScalarEvent) -> str:
        if event.tag not in TEXT_TAGS:
            raise _refusal(event, f"the tag {event.tag[:60]} is not known here; leave it out, or quote a text")
        text = event.value
        if unwritable := re.search("[\0\ud800-\udfff]", text):
            raise _refusal(event, f"the character {unwritable.group()!a} is not allowed here")
        if not event.implicit[0] or event.tag is not None:
            return text
        if len(text) > MAX_DIGITS and re.fullmatch(INTEGER, text):
            raise _refusal(event, f"a number of {len(text):,} digits; at most {MAX_DIGITS} are read")
        return Plain(text)


def _key(event: Event, key: Tree, mapping: dict[str, Tree]) -> str:
    if not isinstance(key, str):
        raise _refusal(event, "a key must be a word")
    if isinstance(key, Plain) and key == "<<":
        raise _refusal(event, "merge keys (<<) are not read; write the keys out")
    if key in mapping:
        raise _refusal(event, f"the key {_cut(key)!r} appears twice here")
    return str(key)


def _check_depth(event: Event, tree: Tree, depth: int) -> None:
    """The depth of an alias is that of its value."""
    if isinstance(tree, str):
        return
    if depth == MAX_DEPTH:
        raise _refusal(event, f"more than {MAX_DEPTH} mappings and lists inside of each other")
    for item in tree.values() if isinstance(tree, dict) else tree:
        _check_depth(event, item, depth + 1)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def _refusal(event: Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, event.start_mark)
