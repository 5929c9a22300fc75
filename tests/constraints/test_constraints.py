"""Constraints as users write them: told apart by their budget, and refused in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from pydantic import Field

from cdt.constraints import BUDGETS, AnyConstraint, Constraint, MaxLoss, MinFrequency
from cdt.dual import RULES
from cdt.errors import InputError
from cdt.schema import Config
from cdt.settings import dump_yaml, parse


class Root(Config):
    constraints: dict[str, AnyConstraint] = Field(default_factory=dict)


def read(tree: object) -> Constraint:
    return parse(Root, {"constraints": {"fair": tree}}, where="run.yaml").constraints["fair"]


def refusal(tree: object) -> str:
    with pytest.raises(InputError) as error:
        read(tree)
    return str(error.value).removeprefix("run.yaml: ")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"class": 4, "min_frequency": 0.1}, (MinFrequency, ("4",), {}, "auto")),
        ({"class": ["4", 5], "max_loss": 12}, (MaxLoss, ("4", "5"), {}, None)),
        ({"where": {"male": 1}, "min_frequency": 0.5, "window": -2}, (MinFrequency, (), {"male": 1.0}, -2.0)),
        ({"class": "a", "max_loss": 3, "window": "auto"}, (MaxLoss, ("a",), {}, "auto")),
        # What an override leaves when it replaces one budget by another.
        ({"class": "a", "min_frequency": None, "max_loss": 3}, (MaxLoss, ("a",), {}, None)),
    ],
)
def test_the_budget_names_the_kind(tree: dict[str, Any], expected: tuple[type[Constraint], Any, Any, Any]) -> None:
    """Floors on shares look at a window by default, losses at the full range."""
    constraint = read(tree)
    assert (type(constraint), constraint.classes, constraint.where, constraint.window) == expected


@pytest.mark.parametrize(
    "tree", [{"class": [4, 5], "min_frequency": 0.1}, {"where": {"male": 1, "age": 0.7}, "max_loss": 3.5}]
)
def test_a_configuration_comes_back_from_yaml(tree: dict[str, Any]) -> None:
    config = parse(Root, {"constraints": {"fair": tree}}, where="x")
    assert parse(Root, yaml.safe_load(dump_yaml(config)), where="x") == config


def test_the_table_is_keyed_by_budget_and_each_kind_has_a_rule_that_exists() -> None:
    assert all(kind.budget == name for name, kind in BUDGETS.items())
    assert all(kind.rule in RULES for kind in BUDGETS.values())


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            {"class": 4, "min_frequency": 0.1, "max_loss": 3},
            "constraints.fair: has min_frequency and max_loss: exactly one budget is needed",
        ),
        ({"class": 4}, "constraints.fair: has no budget: exactly one of min_frequency, max_loss is needed"),
        (
            {"class": 4, "min_frequency": None},
            "constraints.fair: has no budget: exactly one of min_frequency, max_loss is needed",
        ),
        (
            {"class": 4, "min_freqency": 0.1},
            "constraints.fair: has no budget: exactly one of min_frequency, max_loss is needed "
            "(did you mean min_frequency?)",
        ),
        ({"clas": 4, "max_loss": 1}, "constraints.fair.clas: unknown key; did you mean class?"),
        ({"class": 4, "min_frequency": 1}, "constraints.fair.min_frequency: got 1; must be a number > 0 and < 1"),
        ({"class": 4, "min_frequency": "x"}, 'constraints.fair.min_frequency: got "x"; must be a number > 0 and < 1'),
        ({"class": 4, "max_loss": math.inf}, "constraints.fair.max_loss: got Infinity; must be a finite number > 0"),
        (
            {"class": 4, "max_loss": 1, "window": math.nan},
            "constraints.fair.window: got NaN; must be null, auto or a finite number",
        ),
        (
            {"class": 4, "max_loss": 1, "window": "aut"},
            'constraints.fair.window: got "aut"; must be null, auto or a finite number; did you mean auto?',
        ),
        ({"class": None, "max_loss": 1}, "constraints.fair.class: a class name or a list of class names is needed"),
        ({"class": [["a"]], "max_loss": 1}, "constraints.fair.class: a class name or a list of class names is needed"),
        (
            {"class": [], "max_loss": 1},
            "constraints.fair: says nothing about which samples: give `class: NAME`, or `where: {ATTRIBUTE: VALUE}`",
        ),
        ({"where": {"male": "yes"}, "max_loss": 1}, 'constraints.fair.where.male: got "yes"; must be a number'),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tree: dict[str, Any], line: str) -> None:
    assert refusal(tree) == line


@pytest.mark.parametrize("tree", [0.1, None, "min_frequency", [0.1]])
def test_what_is_no_mapping_is_told_what_it_should_be(tree: object) -> None:
    assert "must be a mapping with the keys class, where, window, min_frequency" in refusal(tree)
