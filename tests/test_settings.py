from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from cdt.config import RunConfig
from cdt.errors import InputError
from cdt.schema import Config
from cdt.settings import RESOLVED, apply_overrides, dump_yaml, load_yaml, parse
from cdt.words import settled


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        (".inf", float("inf")),
        ("12", 12),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'1e-4'", "1e-4"),
    ],
)
def test_plain_words_mean_what_yaml_1_2_says(tmp_path: Path, text: str, value: object) -> None:
    loaded = settled(load_yaml(written(tmp_path, f"key: {text}\n")))["key"]
    assert (loaded, type(loaded)) == (value, type(value))


def test_keys_are_text(tmp_path: Path) -> None:
    assert settled(load_yaml(written(tmp_path, "4: {no: 1, 1e-4: 2, null: 3}"))) == {
        "4": {"no": 1, "1e-4": 2, "null": 3}
    }


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert load_yaml(written(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [2\nc: 3\n", ", line 3: "),
        ("a: 1\n\tb: 2\n", ", line 2: found character '\\t' that cannot start any token"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", ", line 5: the key 'c' appears twice here"),
        ("a: 1\n? [b]\n: 2\n", ", line 2: a key must be a word"),
        ("a: &a [1, *a]\n", ", line 1: *a refers to a value that contains it"),
        (
            "a: !!python/object/apply:os.getcwd []\n",
            ", line 1: the tag tag:yaml.org,2002:python/object/apply:os.getcwd is not",
        ),
        (b"a: \xff\n", ": unacceptable character #x00ff: invalid start byte"),
        ("- a\n", ": one mapping of keys to values is needed"),
        ("a: 1\n---\nb: 2\n", ", line 2: a second document begins here; one mapping of keys to values is needed"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_yaml(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.yaml: No such file or directory"):
        load_yaml(tmp_path / "no.yaml")
    with pytest.raises(InputError, match="Is a directory"):
        load_yaml(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/stdin"):
        with pytest.raises(InputError, match="it is not a regular file"):
            load_yaml(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match=r"large\.yaml: it is larger than 262,144 bytes"):
        load_yaml(tmp_path / "large.yaml")


def test_a_run_may_write_more_than_somebody_would(tmp_path: Path) -> None:
    path = written(tmp_path, "a: " + "x" * 2**20)
    assert load_yaml(path, resolved=True) == {"a": "x" * 2**20}
    with pytest.raises(InputError, match="larger"):
        load_yaml(path)


def test_whatever_somebody_may_write_its_run_can_read_again(tmp_path: Path) -> None:
    """The shortest constraints; their paths become absolute and long."""
    row = "c{k}: {{class: 1, generated_frequency: {{min: 0.1, classifier: {path}}}}}"
    made = []
    for path in ("a", "/" + "a" * 200):
        constraints = "\n".join(f"  {row.format(k=k, path=path)}" for k in range(100))
        text = f"run: {{name: a}}\ndata: {{shards: a}}\nnetwork: {{kind: dit}}\nconstraints:\n{constraints}\n"
        made.append((text, dump_yaml(parse(RunConfig, load_yaml(written(tmp_path, text)), where="here"))))
    (shortest, _), (_, longest) = made
    assert len(longest) < RESOLVED * len(shortest)


def test_an_override_of_what_an_alias_made_changes_one_place(tmp_path: Path) -> None:
    tree = load_yaml(written(tmp_path, "a: &x {b: 1}\nc: *x\n"))
    assert settled(apply_overrides(tree, ["a.b=2"])) == {"a": {"b": 2}, "c": {"b": 1}}


def test_of_a_thousand_problems_few_are_told() -> None:
    rows = [["a"]] + [[{}] for _ in range(5000)]
    started = time.process_time()
    with pytest.raises(InputError) as error:
        parse(Everything, {"rows": rows}, where="run.yaml")
    assert str(error.value).startswith("run.yaml: more than 50 problems\n  rows[1][0]: got {}; must be a string\n")
    assert len(str(error.value).splitlines()) == 51
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"a\nb\x1b[31m": 1}, r"a\nb\x1b[31m: unknown key; known here: "),
        ({"k" * 1000: 1}, f"{'k' * 59}…: unknown key; known here: "),
        ({"rate": "a\nb\x07"}, r'rate: got "a\nb\u0007"; must be a number'),
        (
            {"rate": [["x"] * 1000] * 1000},
            'rate: got [["x", "x", "x", "x", "x", "x", "x", "x", "x", "x", "x", "x…; must',
        ),
        ({"text": ["x" * 10**6]}, f'text: got ["{"x" * 57}…; must be a string'),
    ],
)
def test_what_is_quoted_is_short_and_on_one_line(tree: dict, told: str) -> None:
    with pytest.raises(InputError) as error:
        parse(Everything, tree, where="run.yaml")
    assert str(error.value).startswith(f"run.yaml: {told}")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=3", {"a": {"b": 3, "kept": 1}, "dual": None}),
        ("a={b: 3}", {"a": {"b": 3}, "dual": None}),
        ("constraints.four.min_frequency=0.2", {"constraints": {"four": {"min_frequency": 0.2}}}),
        ("data.shards=/x y", {"data": {"shards": "/x y"}}),
        ("dual.cap=null", {"dual": {"cap": None}}),
        ("network.channels=[32,64]", {"network": {"channels": [32, 64]}}),
        ("train.lr=1e-4", {"train": {"lr": 1e-4}}),
        ("name=a=b", {"name": "a=b"}),
        ("name=''", {"name": ""}),
    ],
)
def test_an_override_is_put_in(override: str, expected: dict) -> None:
    tree = {"a": {"b": 2, "kept": 1}, "dual": None}
    assert settled(apply_overrides(tree, [override])) == {**tree, **expected}
    assert tree == {"a": {"b": 2, "kept": 1}, "dual": None}


def test_later_overrides_win() -> None:
    assert settled(apply_overrides({}, ["a.b=1", "a.c=2", "a.b=3"])) == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "'a': overrides are written key=value"),
        ("=3", "'=3': overrides are written key=value"),
        ("a..b=3", "'a..b=3': overrides are written key=value"),
        ("a=", "'a=': no value; write a=null for none"),
        ("a.b=  # 3", "no value; write a.b=null"),
        ("a=[1", "'a=[1', line 1: "),
        ("lr.x=3", "'lr.x=3': lr is 0.5, which has no keys; override lr as a whole"),
        ("a.list.x.y=3", "'a.list.x.y=3': a.list is [1], which has no keys"),
        (".".join("a" * 40) + "=1", "=1': a path of 40 keys; settings have at most 32"),
        ("a=" + "[" * 500, f"'a={'[' * 197}'…, line 1: more than 32 mappings and lists inside of each other"),
        ("a=\udcff", r"'a=\udcff': unacceptable character #xdcff: special characters are not allowed"),
        ("a=1\n---\n2", r"'a=1\n---\n2', line 2: a second document begins here"),
    ],
)
def test_a_bad_override_is_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        apply_overrides({"lr": 0.5, "a": {"list": [1]}}, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class Floor(Config):
    of: list[int | str] = Field(default_factory=list)
    min_frequency: float = Field(default=0.1, gt=0)


class Everything(Config):
    kind: Literal["a", "no", "1e-4"] = "a"
    text: str = ""
    class_: int = Field(default=0, alias="class")
    rate: float = 1e-4
    limit: float | None = None
    auto: Literal["auto"] | float = "auto"
    flag: bool = False
    path: Path = Path("runs/a")
    betas: tuple[float, float] = (0.9, 0.999)
    rows: list[list[str]] = Field(default_factory=list)
    floors: dict[str, Floor] = Field(default_factory=dict)
    nested: Floor = Floor()


NUMBERS = st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
"""No file can have other characters in its name."""
FLOORS = st.builds(Floor, of=st.lists(st.integers() | TEXT), min_frequency=NUMBERS.filter(lambda x: x > 0))


@settings(deadline=None)
@given(
    st.builds(
        Everything,
        kind=st.sampled_from(["a", "no", "1e-4"]),
        text=TEXT,
        class_=st.integers(-(10**300), 10**300),
        rate=NUMBERS,
        limit=st.none() | NUMBERS,
        auto=st.just("auto") | NUMBERS,
        flag=st.booleans(),
        path=st.sampled_from(["a b", "../data", "~/x", "1e-4", "null", "/data"]).map(Path),
        betas=st.tuples(NUMBERS, NUMBERS),
        rows=st.lists(st.lists(TEXT, max_size=3), max_size=3),
        floors=st.dictionaries(TEXT, FLOORS, max_size=3),
        nested=FLOORS,
    )
)
def test_a_dump_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Everything) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert parse(Everything, load_yaml(path), where="dump") == config


@settings(deadline=None)
@given(TEXT | st.sampled_from(["no", "1e-4", "010", "1:30", "0o7", "null", "=", "<<", "2024-01-01"]))
def test_text_stays_text_for_readers_of_yaml_1_1_too(text: str) -> None:
    assert yaml.safe_load(dump_yaml(Everything(text=text)))["text"] == text


def test_a_dump_is_readable() -> None:
    floor = Floor(of=[4, 5])
    dump = dump_yaml(Everything(rate=1e-5, limit=float("inf"), rows=[["a"], ["b"]], floors={"four": floor, "4": floor}))
    assert dump == (
        "kind: a\n"
        "text: ''\n"
        "class: 0\n"
        "rate: 1.0e-05\n"
        "limit: .inf\n"
        "auto: auto\n"
        "flag: false\n"
        "path: runs/a\n"
        "betas: [0.9, 0.999]\n"
        "rows:\n- [a]\n- [b]\n"
        "floors:\n"
        "  four:\n    of: [4, 5]\n    min_frequency: 0.1\n"
        "  '4':\n    of: [4, 5]\n    min_frequency: 0.1\n"
        "nested:\n  of: []\n  min_frequency: 0.1\n"
    )


def test_parse_gives_the_model() -> None:
    config = parse(Everything, {"class": 3, "floors": {"four": {"min_frequency": 0.2}}}, where="run.yaml")
    assert config.class_ == 3
    assert config.floors == {"four": Floor(min_frequency=0.2)}


def test_one_problem_is_one_line_and_several_are_a_list() -> None:
    with pytest.raises(InputError) as error:
        parse(Everything, {"rate": "fast"}, where="run.yaml")
    assert str(error.value) == 'run.yaml: rate: got "fast"; must be a number'
    with pytest.raises(InputError) as error:
        parse(Everything, {"rate": "fast", "txt": "x"}, where="run.yaml")
    assert str(error.value) == (
        'run.yaml: 2 problems\n  rate: got "fast"; must be a number\n  txt: unknown key; did you mean text?'
    )
