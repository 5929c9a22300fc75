"""Constraints bound to data: rows, shares and cells against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdt.constraints import Constraint, MaxLoss, MinFrequency, Population, Requirements
from cdt.errors import InputError

CLASSES = ["a", "b", "c"]


def floor(*group: str) -> Constraint:
    return MinFrequency.model_validate({"class": group, "min_frequency": 0.1})


@st.composite
def bound(draw: st.DrawFn) -> tuple[Requirements, np.ndarray]:
    """Requirements that overlap as they like, and who belongs to what [N, m]."""
    labels = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=30))
    classes, male = np.array(labels).T
    present = sorted({CLASSES[c] for c in classes})
    groups = st.lists(st.sampled_from(present), min_size=1, max_size=3, unique=True)
    constraints: dict[str, Constraint] = {
        f"group {i}": floor(*group) for i, group in enumerate(draw(st.lists(groups, max_size=4)))
    }
    constraints["of attribute"] = MaxLoss(where={"male": float(male[0])}, max_loss=3)
    requirements = Requirements.bind(constraints, Population(classes, CLASSES, {"male": male}, "x"))
    columns = [
        np.isin(np.array(CLASSES)[classes], c.classes) if c.classes else male == male[0] for c in constraints.values()
    ]
    return requirements, np.stack(columns, axis=1)


@settings(max_examples=50)
@given(case=bound())
def test_rows_and_shares_are_those_of_the_members(case: tuple[Requirements, np.ndarray]) -> None:
    requirements, inside = case
    assert [rows.tolist() for rows in requirements.rows.values()] == [np.flatnonzero(c).tolist() for c in inside.T]
    np.testing.assert_allclose(requirements.shares, inside.mean(axis=0))
    assert requirements.names == tuple(requirements.constraints)


@settings(max_examples=50)
@given(case=bound())
def test_samples_share_a_cell_exactly_when_they_belong_to_the_same_constraints(
    case: tuple[Requirements, np.ndarray],
) -> None:
    requirements, inside = case
    cells, K = requirements.cells, len(requirements.cell_shares)
    same_members = (inside[:, None] == inside[None]).all(axis=2)
    assert ((cells[:, None] == cells[None]) == same_members).all()
    assert sorted(set(cells.tolist())) == list(range(K))
    np.testing.assert_allclose(requirements.cell_shares, np.bincount(cells) / len(cells))
    pairs = zip(requirements.member_cells.tolist(), requirements.member_constraints.tolist(), strict=True)
    expected = {(int(cells[row]), int(i)) for row, i in zip(*np.nonzero(inside), strict=True)}
    assert sorted(pairs) == sorted(expected)


@settings(max_examples=50)
@given(case=bound(), seed=st.integers(0, 2**32))
def test_means_of_cells_add_up_to_means_of_constraints(case: tuple[Requirements, np.ndarray], seed: int) -> None:
    requirements, inside = case
    values = np.random.default_rng(seed).normal(size=len(inside))
    K = len(requirements.cell_shares)
    means = np.array([values[requirements.cells == k].mean() for k in range(K)])
    expected = [values[column].mean() for column in inside.T]
    np.testing.assert_allclose(requirements.by_constraint(means), expected, atol=1e-12)


@settings(max_examples=50)
@given(case=bound(), data=st.data())
def test_cells_without_a_value_are_left_out(case: tuple[Requirements, np.ndarray], data: st.DataObject) -> None:
    """The others stand for the whole constraint; without any there is no value."""
    requirements, inside = case
    K = len(requirements.cell_shares)
    seen = np.array(data.draw(st.lists(st.booleans(), min_size=K, max_size=K)))
    values = np.arange(K, dtype=np.float64)
    of_rows, seen_rows = values[requirements.cells], seen[requirements.cells]
    expected = [of_rows[c & seen_rows].mean() if (c & seen_rows).any() else np.nan for c in inside.T]
    np.testing.assert_allclose(requirements.by_constraint(np.where(seen, values, np.nan)), expected)


def test_without_constraints_all_samples_are_one_cell() -> None:
    requirements = Requirements.bind({}, Population(np.array([0, 1, 1]), CLASSES, {}, "x"))
    assert requirements.cells.tolist() == [0, 0, 0]
    assert requirements.cell_shares.tolist() == [1.0]
    assert requirements.by_constraint(np.array([5.0])).tolist() == []
    assert requirements.names == ()


def test_many_constraints_bind_quickly_and_are_told_apart() -> None:
    """A constraint per class of a thousand: a cell per class, and nothing of size N times m."""
    N, K = 50_000, 1000
    names = [str(k) for k in range(K)]
    classes = np.arange(N) % K
    constraints = {name: floor(name) for name in names}
    requirements = Requirements.bind(constraints, Population(classes, names, {}, "x"))
    assert len(requirements.cell_shares) == len(requirements.member_cells) == K
    np.testing.assert_allclose(requirements.shares, 1 / K)


def test_a_constraint_without_samples_is_named() -> None:
    constraints = {"a": floor("a"), "rare": floor("c")}
    with pytest.raises(InputError, match=r"constraints\.rare: no samples of class c in data \(train\)"):
        Requirements.bind(constraints, Population(np.array([0, 1]), CLASSES, {}, "data (train)"))
