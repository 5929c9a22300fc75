"""YAML that only other programs need, or that is meant to do harm, is refused in one line and at once."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.errors import InputError
from cdt.words import Plain
from cdt.yaml_text import MAX_DEPTH, MAX_NODES, read_yaml


def bomb(levels: int, width: int = 9) -> str:
    """A list of lists of lists, which as text is short."""
    rows = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    rows += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]" for k in range(1, levels)]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: " + "[" * 500, ", line 1: more than 32 mappings and lists inside of each other"),
        ("a: " + "{a: " * 33, ", line 1: more than 32 mappings and lists inside of each other"),
        ("- " * 500, ", line 1: more than 32 mappings and lists inside of each other"),
        (
            "a: !!bool maybe",
            ", line 1: the tag tag:yaml.org,2002:bool is not known here; leave it out, or quote a text",
        ),
        ("a: !!timestamp foo", ", line 1: the tag tag:yaml.org,2002:timestamp is not known here"),
        ("a: !!set [a]", ", line 1: the tag tag:yaml.org,2002:set is not known here; leave it out"),
        ("a: !!int {=: 1}", ", line 1: the tag tag:yaml.org,2002:int is not known here"),
        ("a: !!binary aGk=", ", line 1: the tag tag:yaml.org,2002:binary is not known here"),
        ("a: !!omap [a: 1]", ", line 1: the tag tag:yaml.org,2002:omap is not known here"),
        ("a: !!python/name:os.system", ", line 1: the tag tag:yaml.org,2002:python/name:os.system is not known here"),
        ("!!bool a: 1", ", line 1: the tag tag:yaml.org,2002:bool is not known here"),
        ("a: 1\n<<: {b: 1}", ", line 2: merge keys (<<) are not read; write the keys out"),
        ("a: &a {b: 1}\nc: {<<: *a}", ", line 2: merge keys (<<) are not read"),
        ("a: &a [*a]", ", line 1: *a refers to a value that contains it"),
        ("a: *b", ", line 1: no anchor &b before *b"),
        ("a: 1\na: 2", ", line 2: the key 'a' appears twice here"),
        ("a: 1\n'a': 2", ", line 2: the key 'a' appears twice here"),
        ("a" * 70 + ": 1\n" + "a" * 70 + ": 2", f", line 2: the key '{'a' * 59}…' appears twice here"),
        ("? [a]\n: 1", ", line 1: a key must be a word"),
        ("&a a: {*a : 1}\nb: &c [1]\n*c : 1", ", line 3: a key must be a word"),
        ("a: 1\n---\nb: 1", ", line 2: a second document begins here"),
        ("a: " + "9" * 5000, ", line 1: a number of 5,000 digits; at most 400 are read"),
        ("a: 0x" + "f" * 5000, ", line 1: a number of 5,002 digits"),
        ('a: "\\0"', r", line 1: the character '\x00' is not allowed here"),
        ('a: "\\uD800"', r", line 1: the character '\ud800' is not allowed here"),
        ('a: "\\UFFFFFFFF"', ": the number of an escape or of a directive is out of range"),
        ("%YAML 1." + "9" * 5000 + "\n--- 1", ": the number of an escape or of a directive is out of range"),
        ("%YAML 2.0\n--- 1", ", line 1: found incompatible YAML document (version 1.* is required)"),
        ("a: \0", ": unacceptable character #x0000: special characters are not allowed, at character 4"),
        ("a: \x1b[31m", ": unacceptable character #x001b: special characters are not allowed, at character 4"),
        (b"a: \xff", ": unacceptable character #x00ff: invalid start byte, at byte 4"),
        ("a: 1".encode("utf-16")[:-1], ": unacceptable character #x0031: truncated data, at byte 9"),
        (bomb(7), f", line 5: more than {MAX_NODES:,} values, with aliases expanded"),
        (bomb(60), f", line 5: more than {MAX_NODES:,} values"),
    ],
)
def test_what_is_refused(text: str | bytes, told: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError) as error:
        read_yaml(text, "here")
    assert str(error.value).startswith(f"here{told}")
    assert "\n" not in str(error.value)
    assert time.process_time() - started < 5


def test_a_bomb_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_yaml(bomb(60, width=50), "here")
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_deep_aliases_count_as_deep() -> None:
    half = MAX_DEPTH // 2
    nested = "[" * half + "]" * half
    assert read_yaml(f"a: &a {nested}\nb: {'[' * (half - 1)}*a{']' * (half - 1)}", "here")
    with pytest.raises(InputError, match="line 2: more than 32 mappings and lists"):
        read_yaml(f"a: &a {nested}\nb: {'[' * half}*a{']' * half}", "here")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", []),
        ("# nothing", []),
        ("---\n...\n", [""]),
        ("\ufeffa: 1", [{"a": "1"}]),
        ("a: é".encode("utf-16"), [{"a": "é"}]),
        ("a: é".encode("utf-8-sig"), [{"a": "é"}]),
        ("a: !!str 007\nb: ! 1\nc: !!map {}\nd: !!seq []", [{"a": "007", "b": "1", "c": {}, "d": []}]),
        ("a: &x {b: [1]}\nc: *x\n", [{"a": {"b": ["1"]}, "c": {"b": ["1"]}}]),
        ("'<<': 1", [{"<<": "1"}]),
        ("a: |\n  b\n  c\n", [{"a": "b\nc\n"}]),
        ("a: &x 1\nb: &x 2\nc: *x", [{"a": "1", "b": "2", "c": "2"}]),
        ("a: '" + "9" * 5000 + "'", [{"a": "9" * 5000}]),
    ],
)
def test_what_is_read(text: str | bytes, tree: object) -> None:
    assert read_yaml(text, "here") == tree


def test_quotes_and_tags_make_text_of_a_word() -> None:
    [tree] = read_yaml("a: 1\nb: '1'\nc: \"1\"\nd: !!str 1\ne: ! 1\nf: >-\n  1\n", "here")
    assert isinstance(tree, dict)
    assert [key for key, value in tree.items() if isinstance(value, Plain)] == ["a"]
    assert set(tree.values()) == {"1"}


def test_what_an_alias_stands_for_is_a_copy() -> None:
    [tree] = read_yaml("a: &x {b: {c: 1}}\nd: *x", "here")
    assert isinstance(tree, dict)
    assert tree["a"] is not tree["d"]
    assert tree["a"]["b"] is not tree["d"]["b"]  # pyright: ignore


@given(st.text("ab01 \n\t:-[]{},'\"&*!|>%@#?<~.=\\\0é", max_size=60) | st.binary(max_size=60))
def test_any_text_is_read_or_refused_in_a_line(text: str | bytes) -> None:
    told = "here"
    try:
        read_yaml(text, "here")
    except InputError as error:
        told = str(error)
    assert told.startswith("here")
    assert "\n" not in told
