from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdt.data.write.select import assign_splits, choose, class_indices, parse_fractions, parse_names, thin
from cdt.errors import InputError

NAMES = ["cat", "dog", "eel"]
labels = st.lists(st.integers(0, 2), min_size=1, max_size=80).map(np.array)
seeds = st.integers(0, 2**40)


def chosen(classes: np.ndarray, splits: np.ndarray | None = None, **options: Any) -> dict[str, list[int]]:
    everything: dict[str, Any] = {"keep": {}, "only": [], "drop": [], "split": {}, "seed": 0}
    splits = np.full(len(classes), "train") if splits is None else splits
    found = choose(classes, splits, NAMES, **everything | options)
    return {name: positions.tolist() for name, positions in found.items()}


@given(labels, seeds)
def test_without_options_a_permutation_by_seed(classes: np.ndarray, seed: int) -> None:
    found = chosen(classes, seed=seed)
    assert list(found) == ["train"]
    assert sorted(found["train"]) == list(range(len(classes)))
    assert found == chosen(classes, seed=seed)


def test_classes_are_mixed_and_seeds_differ() -> None:
    classes = np.repeat([0, 1, 2], 1000)
    order = classes[chosen(classes)["train"]].reshape(10, 300)
    shares = np.stack([np.bincount(part, minlength=3) for part in order])
    assert shares.min() > 60  # of 100 expected, with a standard deviation of 8
    assert chosen(classes, seed=0) != chosen(classes, seed=1)


@given(labels, st.floats(0.05, 0.95), seeds)
def test_splits_divide_every_class_in_proportion(classes: np.ndarray, fraction: float, seed: int) -> None:
    splits = np.where(np.arange(len(classes)) % 5 == 4, "own", "train")
    assigned = assign_splits(classes, splits, {"train": fraction, "held": 1 - fraction}, seed)
    assert ((assigned == "own") == (splits == "own")).all()
    for class_index in range(3):
        members = (classes == class_index) & (splits == "train")
        assert abs((assigned[members] == "train").sum() - fraction * members.sum()) <= 0.5 + 1e-9


@given(labels, st.floats(0.01, 1), st.floats(0.01, 1), seeds)
def test_thinning_is_exact_nested_and_of_train_alone(classes: np.ndarray, one: float, two: float, seed: int) -> None:
    train = np.arange(len(classes)) % 4 != 3
    few, many = (thin(classes, train, {1: fraction}, seed) for fraction in sorted((one, two)))
    assert (few <= many).all()
    assert few[~train | (classes != 1)].all()
    members = (train & (classes == 1)).sum()
    assert (few & train & (classes == 1)).sum() == min(members, max(1, round(min(one, two) * members)))


@given(labels, seeds)
def test_dropping_a_class_leaves_the_others_in_their_splits(classes: np.ndarray, seed: int) -> None:
    if (classes == 1).sum() < 4:
        classes = np.concatenate([classes, [1] * 4])
    options: dict[str, Any] = {"split": {"train": 0.5, "test": 0.5}, "seed": seed}
    both, alone = chosen(classes, **options), chosen(classes, only=["dog"], **options)
    for split in ("train", "test"):
        assert sorted(alone[split]) == sorted(position for position in both[split] if classes[position] == 1)


def test_only_and_drop_choose_classes() -> None:
    classes = np.array([0, 1, 2, 0])
    assert sorted(chosen(classes, only=["cat"])["train"]) == [0, 3]
    assert sorted(chosen(classes, drop=["cat"])["train"]) == [1, 2]
    assert sorted(chosen(classes, only=["cat", "dog"], drop=["cat"])["train"]) == [1]


def test_splits_of_the_source_stay_and_train_comes_first() -> None:
    found = chosen(np.array([0, 1, 2]), np.array(["test", "train", "test"]))
    assert list(found) == ["train", "test"]
    assert found["train"] == [1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"only": ["cta"]},
            "--only: there is no class 'cta' \\(did you mean 'cat'\\?\\); the classes are cat, dog, eel",
        ),
        ({"drop": ["9"]}, "--drop: there is no class '9'; the classes are cat, dog, eel"),
        ({"keep": {"9": 0.5}}, "--keep: there is no class '9'"),
        ({"keep": {"cat": 0.0}}, "--keep: cat=0 is not"),
        ({"keep": {"cat": 1.5}}, "--keep: cat=1.5 is not"),
        ({"keep": {"cat": 0.5}, "drop": ["cat"]}, "--keep names cat, which --only or --drop leaves out"),
        ({"drop": NAMES}, "no record is left"),
        ({"split": {"train": 0.5, "test": 0.4}}, "fractions sum to 0.9; expected 1"),
        ({"split": {"train": 0.99, "test": 0.01}}, "no record is left for test"),
        ({"split": {"a/b": 1.0}}, "name 'a/b' has other characters"),
        ({"split": {"train": 0.5, "own": 0.5}}, "source already has a split 'own'"),
    ],
)
def test_wrong_choices_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        chosen(np.array([0, 1, 2, 0]), np.array(["train", "train", "train", "own"]), **options)


def test_option_strings() -> None:
    assert parse_fractions("4=0.1, 5=1", "--keep") == {"4": 0.1, "5": 1.0}
    assert parse_fractions("a=b=0.5", "--keep") == {"a=b": 0.5}
    assert parse_names("8, great dane", "--drop") == ["8", "great dane"]


def test_quoted_names_keep_commas_and_spaces() -> None:
    assert parse_names('"cat, wild", " dog ",say ""a"", """b""" ', "--only") == [
        "cat, wild",
        " dog ",
        'say ""a""',
        '"b"',
    ]
    assert parse_fractions('"cat, wild"=0.1, " dog " = 0.2,5" disk=1', "--keep") == {
        "cat, wild": 0.1,
        " dog ": 0.2,
        '5" disk': 1.0,
    }


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "4=",
        "=0.1",
        "4=x",
        "4=0",
        "4=-1",
        "4=1.1",
        "4=nan",
        "",
        "4=0.1,",
        "4=0.1,4=0.2",
        '"a"b=0.1',
        '"a=0.1"',
        '"a=0.1',
    ],
)
def test_wrong_fractions_are_told(text: str) -> None:
    with pytest.raises(InputError, match="--keep: "):
        parse_fractions(text, "--keep")


@pytest.mark.parametrize("text", ["", "8,", ",8", "8,8", '8,"8"', '""', '"a"b', '"a, b', '"a""b'])
def test_wrong_names_are_told(text: str) -> None:
    with pytest.raises(InputError, match="--drop: "):
        parse_names(text, "--drop")


def test_classes_are_listed_as_they_are_to_be_written() -> None:
    names = ["cat, wild", " dog ", '"b"', 'say "a"', "plain"]
    with pytest.raises(InputError) as refused:
        class_indices(["x"], names, "--only")
    listed = str(refused.value).partition("the classes are ")[2]
    assert listed == '"cat, wild", " dog ", """b""", say "a", plain'
    assert parse_names(listed, "--only") == names


def test_long_lists_of_classes_are_cut() -> None:
    with pytest.raises(InputError, match=r"c18, c19, \.\.\.$"):
        class_indices(["dog"], [f"c{number}" for number in range(1000)], "--only")
