"""Constraints as users write them: told apart by their budget, and refused in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from pydantic import Field

from cdt.constraints import (
    BUDGETS,
    AnyConstraint,
    Constraint,
    Draw,
    Frequency,
    GeneratedFrequency,
    MaxExcess,
    MaxKl,
    MaxLoss,
    MinFrequency,
    Penalty,
)
from cdt.dual import ACTUATORS, LINKS, RULES
from cdt.errors import InputError
from cdt.schema import Config
from cdt.settings import dump_yaml, parse

EVERY = ", ".join(BUDGETS)


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
        ({"class": 4, "frequency": 0.1}, (Frequency, ("4",), {}, "auto")),
        (
            {"class": 4, "generated_frequency": {"min": 0.1, "classifier": "judge.pt"}},
            (GeneratedFrequency, ("4",), {}, None),
        ),
        ({"class": 4, "max_kl": 0.2, "reference": "runs/four"}, (MaxKl, ("4",), {}, None)),
        ({"class": 4, "max_excess": 0.05}, (MaxExcess, ("4",), {}, None)),
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
    "tree",
    [
        {"class": [4, 5], "min_frequency": 0.1},
        {"class": 4, "min_frequency": 0.1, "classifier": "judges/a.safetensors", "window": None},
        {"class": [4, 5], "frequency": 0.25, "window": -1.5},
        {"where": {"male": 1}, "generated_frequency": {"min": 0.4, "classifier": "judge.pt"}},
        {"class": "a", "max_kl": 0.5, "reference": "runs/a"},
        {"class": "a", "max_excess": -0.1},
        {"class": "a", "max_excess": 0.1, "reference": "base"},
        {"class": "a", "max_excess": 0.1, "reference": "runs/a"},
        {"where": {"male": 1, "age": 0.7}, "max_loss": 3.5},
    ],
)
def test_a_configuration_comes_back_from_yaml(tree: dict[str, Any]) -> None:
    config = parse(Root, {"constraints": {"fair": tree}}, where="x")
    back = parse(Root, yaml.safe_load(dump_yaml(config)), where="x")
    assert back == config
    assert type(back.constraints["fair"]) is type(config.constraints["fair"])


def test_the_table_is_keyed_by_budget_and_each_kind_has_a_rule_that_exists() -> None:
    assert all(kind.budget == name for name, kind in BUDGETS.items())
    assert all(kind.rule in RULES and kind.link in LINKS for kind in BUDGETS.values())
    assert {each.name for each in (Draw, Penalty)} == ACTUATORS.keys()
    assert list(BUDGETS) == [
        "min_frequency", "frequency", "generated_frequency", "max_kl", "prior", "max_excess", "max_loss",
    ]  # fmt: skip


def test_shares_move_by_the_mass_rule_and_budgets_in_nats_by_ascent() -> None:
    shares = {MinFrequency, Frequency, GeneratedFrequency}
    assert {kind for kind in BUDGETS.values() if kind.rule == "mass"} == shares
    assert {kind for kind in BUDGETS.values() if kind.link == "negative_log"} == {GeneratedFrequency}
    assert {kind for kind in BUDGETS.values() if kind.equal} == {Frequency}


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            {"class": 4, "min_frequency": 0.1, "max_loss": 3},
            "constraints.fair: has min_frequency and max_loss: exactly one budget is needed",
        ),
        ({"class": 4}, f"constraints.fair: has no budget: exactly one of {EVERY} is needed"),
        (
            {"class": 4, "min_frequency": None},
            f"constraints.fair: has no budget: exactly one of {EVERY} is needed",
        ),
        (
            {"class": 4, "min_freqency": 0.1},
            f"constraints.fair: has no budget: exactly one of {EVERY} is needed (did you mean min_frequency?)",
        ),
        (
            {"class": 4, "max_exces": 0.1},
            f"constraints.fair: has no budget: exactly one of {EVERY} is needed (did you mean max_excess?)",
        ),
        (
            {"class": 4, "frequency": 0.1, "max_kl": 1, "max_excess": 0.2},
            "constraints.fair: has frequency and max_kl and max_excess: exactly one budget is needed",
        ),
        ({"class": 4, "frequency": 0}, "constraints.fair.frequency: got 0; must be a number > 0 and < 1"),
        ({"class": 4, "max_kl": 0.1}, "constraints.fair.reference: missing; must be a string"),
        (
            {"class": 4, "max_kl": 0, "reference": "a"},
            "constraints.fair.max_kl: got 0; must be a finite number > 0 and <= 1e+12",
        ),
        (
            {"class": 4, "max_excess": -1},
            "constraints.fair.max_excess: got -1; must be a finite number > -1 and <= 1e+06",
        ),
        (
            {"class": 4, "max_loss": 3, "reference": "runs/a"},
            "constraints.fair.reference: unknown key; known here: class, where, window, max_loss",
        ),
        (
            {"class": 4, "generated_frequency": {"min": 1.5, "classifier": "a"}},
            "constraints.fair.generated_frequency.min: got 1.5; must be a number > 0 and < 1",
        ),
        (
            {"class": 4, "generated_frequency": {"min": 0.1}},
            "constraints.fair.generated_frequency.classifier: missing; must be a string",
        ),
        (
            {"class": 4, "generated_frequency": 0.1},
            "constraints.fair.generated_frequency: got 0.1; must be a mapping with the keys min, classifier",
        ),
        ({"clas": 4, "max_loss": 1}, "constraints.fair.clas: unknown key; did you mean class?"),
        ({"class": 4, "min_frequency": 1}, "constraints.fair.min_frequency: got 1; must be a number > 0 and < 1"),
        ({"class": 4, "min_frequency": "x"}, 'constraints.fair.min_frequency: got "x"; must be a number > 0 and < 1'),
        (
            {"class": 4, "max_loss": math.inf},
            "constraints.fair.max_loss: got Infinity; must be a finite number > 0 and <= 1e+12",
        ),
        (
            {"class": 4, "max_loss": 1, "window": math.nan},
            "constraints.fair.window: got NaN; must be null, auto or a number >= -100 and <= 100",
        ),
        (
            {"class": 4, "max_loss": 1, "window": "aut"},
            'constraints.fair.window: got "aut"; must be null, auto or a number >= -100 and <= 100; did you mean auto?',
        ),
        (
            {"class": None, "max_loss": 1},
            "constraints.fair.class: null is no name; write 'null' in quotes for a class that is called null",
        ),
        ({"class": True, "max_loss": 1}, "constraints.fair.class: a class name or a list of class names is needed"),
        ({"class": [["a"]], "max_loss": 1}, "constraints.fair.class: a class name or a list of class names is needed"),
        (
            {"class": [], "max_loss": 1},
            "constraints.fair: says nothing about which samples: give `class: NAME`, or `where: {ATTRIBUTE: VALUE}`",
        ),
        (
            {"where": {"male": "yes"}, "max_loss": 1},
            'constraints.fair.where.male: got "yes"; must be a number >= -9007199254740992 and <= 9007199254740992',
        ),
        (
            {"where": {"id": 2**53 + 1}, "max_loss": 1},
            "constraints.fair.where: id: 9007199254740993 cannot be kept exactly; whole numbers up to 9007199254740992 "
            "can",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tree: dict[str, Any], line: str) -> None:
    assert refusal(tree) == line


@pytest.mark.parametrize("tree", [0.1, None, "min_frequency", [0.1]])
def test_what_is_no_mapping_is_told_what_it_should_be(tree: object) -> None:
    assert refusal(tree).endswith("must be a mapping such as {class: NAME, min_frequency: SHARE}")
