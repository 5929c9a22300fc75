"""Which samples a constraint speaks of, and what it says when there are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.constraints import Constraint, MinFrequency, Population
from cdt.errors import InputError

PEOPLE = Population(
    classes=np.array([0, 1, 2, 1, 0, 2, 2]),
    class_names=["smiling", "frowning", "neutral"],
    attributes={"male": np.array([1, 0, 1, 1, 0, 0, 0], dtype=np.int32), "age": np.array([0.1] * 4 + [0.7] * 3, "f4")},
    source="faces (train)",
)


def constraint(**tree: Any) -> Constraint:
    return MinFrequency.model_validate({"min_frequency": 0.1, **tree})


def refusal(population: Population = PEOPLE, **tree: Any) -> str:
    with pytest.raises(InputError) as error:
        constraint(**tree).select("fair", population)
    return str(error.value)


@pytest.mark.parametrize(
    ("tree", "rows", "words"),
    [
        ({"class": "frowning"}, [1, 3], "class frowning"),
        ({"class": ["smiling", "neutral"]}, [0, 2, 4, 5, 6], "class smiling or neutral"),
        ({"where": {"male": 1}}, [0, 2, 3], "male = 1"),
        ({"where": {"age": 0.7}}, [4, 5, 6], "age = 0.7"),  # stored in float32
        ({"where": {"male": 0, "age": 0.1}}, [1], "male = 0 and age = 0.1"),
        ({"class": "neutral", "where": {"male": 0}}, [5, 6], "class neutral and male = 0"),
    ],
)
def test_classes_groups_and_attributes_select_their_samples(tree: dict[str, Any], rows: list[int], words: str) -> None:
    assert constraint(**tree).select("fair", PEOPLE).tolist() == rows
    assert constraint(**tree).samples.describe() == words


LARGE = 2**53
IDS = np.array([LARGE - 1, LARGE, LARGE + 1, 123456789], np.int64)


@pytest.mark.parametrize(
    ("values", "value", "rows", "words"),
    [
        (IDS, LARGE - 1, [0], "id = 9007199254740991"),
        (IDS, LARGE, [1], "id = 9007199254740992"),
        (IDS, "123456789", [3], "id = 123456789"),
        (IDS, 123456789.0, [3], "id = 123456789"),
        (np.array([16777216, 0.5], np.float32), 16777216, [0], "id = 16777216"),
        (np.array([0.123456789, 0.123456788]), 0.123456788, [1], "id = 0.123456788"),
    ],
)
def test_attributes_are_compared_and_named_exactly(values: np.ndarray, value: Any, rows: list[int], words: str) -> None:
    population = Population(np.zeros(len(values), np.int32), ["a"], {"id": values}, "x")
    chosen = constraint(where={"id": value})
    assert chosen.select("x", population).tolist() == rows
    assert chosen.samples.describe() == words


def test_a_whole_number_that_single_precision_lacks_selects_no_neighbour() -> None:
    population = Population(np.zeros(1, np.int32), ["a"], {"id": np.array([16777216], np.float32)}, "x")
    assert "no samples of id = 16777217 in x" in refusal(population, where={"id": 16777217})


@pytest.mark.parametrize("value", [LARGE + 1, str(LARGE + 1), f"{LARGE + 1}.0", float(LARGE), "1e30", -LARGE - 1])
def test_whole_numbers_that_floats_round_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"id: -?[0-9.e+]+ cannot be kept exactly; whole numbers up to \d+ can"):
        constraint(where={"id": value})


@pytest.mark.parametrize("value", [LARGE, -LARGE, 0.1, 7, -0.0])
def test_what_is_taken_is_taken_again(value: float) -> None:
    where = constraint(where={"id": value}).model_dump()["where"]
    assert constraint(where=where).where == {"id": value}


@pytest.mark.parametrize("value", ["x", float("inf"), "nan", "9" * 5000, True, None])
def test_what_is_no_number_is_no_value_of_an_attribute(value: Any) -> None:
    with pytest.raises(ValueError, match=r"where\.id"):
        constraint(where={"id": value})


@given(data=st.data())
def test_selection_against_brute_force(data: st.DataObject) -> None:
    names = ["a", "b", "c", "d"]
    labels = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), min_size=1))
    classes, size, male = np.array(labels).T
    population = Population(classes, names, {"size": size, "male": male}, "x")
    group = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    where = data.draw(st.dictionaries(st.sampled_from(["size", "male"]), st.integers(0, 2)))
    expected = [
        row
        for row, (c, s, m) in enumerate(labels)
        if names[c] in group and where.get("size", s) == s and where.get("male", m) == m
    ]
    chosen = constraint(**{"class": group, "where": where})
    if expected:
        assert chosen.select("x", population).tolist() == expected
    else:
        with pytest.raises(InputError, match="no samples"):
            chosen.select("x", population)


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"class": "smilin"}, "constraints.fair.class: 'smilin' is not in the data; did you mean 'smiling'?"),
        ({"class": ["neutral", "x"]}, "fair.class: 'x' is not in the data; known are: smiling, frowning, neutral"),
        ({"where": {"mle": 1}}, "constraints.fair.where: 'mle' is not in the data; did you mean 'male'?"),
        ({"where": {"height": 1}}, "constraints.fair.where: 'height' is not in the data; known are: male, age"),
        (
            {"class": "smiling", "where": {"male": 2}},
            "fair: no samples of class smiling and male = 2 in faces (train); a constraint needs at least one",
        ),
    ],
)
def test_what_is_not_in_the_data_is_refused_with_the_nearest_that_is(tree: dict[str, Any], line: str) -> None:
    assert line in refusal(**tree)


def test_data_without_attributes_say_so() -> None:
    plain = Population(PEOPLE.classes, PEOPLE.class_names, {}, "digits (train)")
    assert refusal(plain, where={"male": 1}).endswith("'male' is not in the data; known are: none")


def test_of_many_classes_the_first_twenty_are_named() -> None:
    many = Population(np.zeros(1, dtype=np.int32), [f"{i:03}" for i in range(1000)], {}, "x")
    assert refusal(many, **{"class": "zebra"}).endswith("018, 019")


def test_a_class_that_is_named_but_has_no_samples_is_refused() -> None:
    cut = Population(np.array([0, 0]), ["0", "4"], {}, "digits (train)")
    assert "no samples of class 4 in digits (train)" in refusal(cut, **{"class": 4})
