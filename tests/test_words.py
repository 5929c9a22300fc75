"""Names are the text that was written, and numbers are numbers where a number is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from cdt.config import RunConfig
from cdt.errors import InputError
from cdt.schema import Config
from cdt.settings import apply_overrides, dump_yaml, load_yaml, parse
from cdt.words import Plain, meaning, settled

LOOK_LIKE_SOMETHING_ELSE = [
    *("007", "4", "1e3", "1E3", "1e-4", "0x10", "0o17", "1_000", "1.0", "1.", ".5", "+1", "-1", ".inf", ".nan"),
    *("on", "no", "y", "true", "False", "2024-01-01", "12:30", "1.2.3", "16777217", "9" * 30, "1e999", "="),
]
TREE = {"data": {"shards": "shards"}, "network": {"kind": "dit"}}


def configured(tmp_path: Path, constraint: str, *overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{shards: shards}}\nnetwork: {{kind: dit}}\nconstraints:\n  a: {constraint}\n")
    return RunConfig.load(path, [*overrides])


def again(tmp_path: Path, config: RunConfig) -> RunConfig:
    """Written by a run, and read again."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    return parse(RunConfig, load_yaml(path, resolved=True), where="again")


@pytest.mark.parametrize("word", LOOK_LIKE_SOMETHING_ELSE)
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_names_of_classes_and_attributes_are_what_is_written(tmp_path: Path, word: str, quote: str) -> None:
    name = f"{quote}{word}{quote}"
    for config in (
        configured(tmp_path, f"{{class: {name}, where: {{{name}: 1e-1}}, max_loss: 1e+1}}"),
        configured(tmp_path, f"{{class: [{name}], where: {{{name}: 0.1}}, max_loss: 10}}"),
        configured(
            tmp_path, "{class: x, max_loss: 1}", f"constraints.a={{class: {name}, where: {{{name}: .1}}, max_loss: 10}}"
        ),
        configured(tmp_path, f"{{class: x, where: {{{name}: 0.1}}, max_loss: 10}}", f"constraints.a.class={name}"),
    ):
        assert config.constraints["a"].model_dump() == {
            "classes": (word,),
            "where": {word: 0.1},
            "window": None,
            "max_loss": 10.0,
        }
        assert again(tmp_path, config) == config


def test_several_classes_keep_their_names_too(tmp_path: Path) -> None:
    config = configured(tmp_path, "{class: [0, 01, 1.0, '1', true, a], max_loss: 1}")
    assert config.constraints["a"].classes == ("0", "01", "1.0", "1", "true", "a")


@pytest.mark.parametrize("name", ["null", "~", "[a, null]", "[~]"])
def test_null_is_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"constraints\.a\.class: null is no name; write 'null' in quotes"):
        configured(tmp_path, f"{{class: {name}, max_loss: 1}}")
    assert configured(tmp_path, "{class: 'null', max_loss: 1}").constraints["a"].classes == ("null",)


@pytest.mark.parametrize("setting", ["run.name", "run.dir", "data.shards", "data.split", "probe.split", "init"])
def test_other_names_and_paths_are_text_as_well(tmp_path: Path, setting: str) -> None:
    section, _, key = setting.partition(".")
    for word in ("007", "1e3", "2024", "true"):
        config = configured(tmp_path, "{class: 1, max_loss: 1}", f"{setting}={word}")
        value = getattr(config, section)
        assert str(getattr(value, key) if key else value) == word
        assert again(tmp_path, config) == config


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.floats(1 - 2**53, 2**53 - 1)
    ),
)
def test_all_names_survive_being_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str], where: dict[str, float]
) -> None:
    constraint = {"class": classes, "where": where, "max_loss": 1}
    config = parse(RunConfig, {**TREE, "constraints": {"a": constraint}}, where="test")
    assert config.constraints["a"].classes == tuple(classes)
    assert again(tmp_path_factory.getbasetemp(), config) == config


class Nested(Config):
    name: str = ""
    number: float = Field(default=0, ge=-1e9, le=1e9)


class Everything(Config):
    text: str | None = None
    place: Literal["auto"] | Path = "auto"
    number: Literal["auto"] | Annotated[float, Field(ge=0)] | None = None
    flag: bool = False
    anything: dict[str, Any] = Field(default_factory=dict)
    names: tuple[str, ...] = ()
    pairs: list[tuple[str, str]] = Field(default_factory=list)
    nested: dict[str, Nested] = Field(default_factory=dict)
    class_: str = Field(default="", alias="class")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("text=1e3", "1e3"),
        ("text=null", None),
        ("text=''", ""),
        ("place=2024", Path("2024")),
        ("place=auto", "auto"),
        ("number=1e-4", 1e-4),
        ("number='1e-4'", 1e-4),
        ("number=0x10", 16.0),
        ("number=auto", "auto"),
        ("number=~", None),
        ("flag=true", True),
        ("flag=on", True),
        ("anything={a: 1, b: [1e3, true, null, no, '1']}", {"a": 1, "b": [1e3, True, None, "no", "1"]}),
        ("names=[1, true, x]", ("1", "true", "x")),
        ("pairs=[[1, 2.0]]", [("1", "2.0")]),
        ("nested={7: {name: 7, number: 7}}", {"7": Nested(name="7", number=7)}),
        ("class=1.0", "1.0"),
    ],
)
def test_a_word_means_what_its_setting_takes(setting: str, value: object) -> None:
    config = parse(Everything, apply_overrides({}, [setting]), where="test")
    key = setting.partition("=")[0].replace("class", "class_")
    assert getattr(config, key) == value
    assert type(getattr(config, key)) is type(value)


def test_where_nothing_is_known_a_word_means_what_yaml_1_2_says() -> None:
    assert settled({"a": Plain("1"), "b": [Plain("no"), Plain(""), "1"], "c": 2}) == {
        "a": 1,
        "b": ["no", None, "1"],
        "c": 2,
    }
    assert [meaning(Plain(word)) for word in ("-0x1", "0o8", "1e5", "TRUE", "tRUE")] == [
        "-0x1",
        "0o8",
        1e5,
        True,
        "tRUE",
    ]
