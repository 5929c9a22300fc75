"""Floors on shares: the KKT conditions of every solution, and what can be met together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cdt.dual import largest_feasible_scale, solve_floors

masses = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8).map(np.array)


@st.composite
def problems(draw: st.DrawFn, lowest: float = 0.05, highest: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
    """Shares and floors of some classes of a population; the floors sum to between ``lowest`` and ``highest``."""
    classes = draw(masses)
    m = draw(st.integers(1, len(classes)))
    floors = np.array(draw(st.lists(st.floats(0.01, 1.0), min_size=m, max_size=m)))
    return (classes / classes.sum())[:m], floors / floors.sum() * draw(st.floats(lowest, highest))


@given(problem=problems())
def test_solutions_meet_the_kkt_conditions(problem: tuple[np.ndarray, np.ndarray]) -> None:
    """Primal and dual feasibility and complementary slackness; the problem is convex, so they suffice."""
    shares, floors = problem
    solution = solve_floors(shares, floors)
    assert solution is not None
    frequencies = (shares + solution.lambdas) / (1 + solution.lambdas.sum())
    assert solution.total == pytest.approx(1 + solution.lambdas.sum(), rel=1e-9)
    assert (frequencies >= floors - 1e-9).all()
    assert (solution.lambdas >= 0).all()
    np.testing.assert_allclose(frequencies[solution.active], floors[solution.active], rtol=0, atol=1e-9)
    assert (solution.lambdas[~solution.active] == 0).all()


@given(classes=masses, data=st.data())
def test_floors_on_all_classes_that_sum_to_one(classes: np.ndarray, data: st.DataObject) -> None:
    """They are met with equality, by the smallest multipliers that do."""
    n = len(classes)
    floors = np.array(data.draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n)))
    shares, floors = classes / classes.sum(), floors / floors.sum()
    solution = solve_floors(shares, floors)
    assert solution is not None
    assert (solution.lambdas >= 0).all()
    assert solution.lambdas.min() == pytest.approx(0, abs=1e-9)
    assert solution.total == pytest.approx(max(shares / floors), rel=1e-9)
    np.testing.assert_allclose((shares + solution.lambdas) / solution.total, floors, rtol=0, atol=1e-9)


def test_ten_floors_of_a_tenth_are_uniform() -> None:
    """In floats they sum to less than 1."""
    shares = np.array([0.12, 0.12, 0.12, 0.12, 0.01, 0.01, 0.12, 0.01, 0.17, 0.2])
    assert sum([0.1] * 10) < 1
    solution = solve_floors(shares, np.full(10, 0.1))
    assert solution is not None
    assert solution.total == pytest.approx(2)
    np.testing.assert_allclose(solution.lambdas, 0.2 - shares, atol=1e-12)


@given(problem=problems(1.001, 3))
def test_floors_that_sum_to_more_than_one_are_infeasible(problem: tuple[np.ndarray, np.ndarray]) -> None:
    assert solve_floors(*problem) is None


@given(classes=masses, promised=st.sampled_from([1.0, 1 - 1e-12, 1 + 1e-12]))
def test_all_mass_promised_while_a_class_without_floor_exists_is_infeasible(
    classes: np.ndarray, promised: float
) -> None:
    shares = (classes / classes.sum())[:-1]
    assert solve_floors(shares, np.full(len(shares), promised / len(shares))) is None


def test_the_example_of_the_paper() -> None:
    """arXiv 2408.15094, theorem 2: q_i disjoint from q, b = (log 4, log 5), so lambda = (5/11, 4/11)."""
    budgets = np.array([math.log(4), math.log(5)])
    solution = solve_floors(np.full(2, 1e-15), np.exp(-budgets))
    assert solution is not None
    np.testing.assert_allclose(solution.lambdas, [5 / 11, 4 / 11], rtol=1e-12)
    np.testing.assert_allclose(solution.lambdas / solution.total, np.exp(-budgets), rtol=1e-12)


def test_a_floor_below_the_natural_share_becomes_active_when_others_dilute_its_class() -> None:
    solution = solve_floors(np.array([0.02, 0.205, 0.5]), np.array([0.2, 0.2, 0.3]))
    assert solution is not None
    assert solution.active.tolist() == [True, True, False]
    assert solution.total == pytest.approx((1 - 0.225) / (1 - 0.4))
    np.testing.assert_allclose(solution.lambdas, [0.2 * solution.total - 0.02, 0.2 * solution.total - 0.205, 0])


def test_floors_that_the_data_meet_need_no_multiplier() -> None:
    solution = solve_floors(np.array([0.3, 0.5]), np.array([0.3, 0.1]))
    assert solution is not None
    assert solution.lambdas.tolist() == [0, 0]
    assert solution.active.tolist() == [False, False]
    assert solution.total == 1


def scale(floors: list[float], groups: list[set[int]], num_cells: int) -> float:
    pairs = [(k, i) for i, group in enumerate(groups) for k in sorted(group)]
    cells, members = np.array(pairs).T
    return largest_feasible_scale(np.array(floors), cells, members, num_cells)


@given(floors=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6), spare=st.integers(0, 2))
def test_disjoint_groups_scale_to_the_sum_of_one(floors: list[float], spare: int) -> None:
    groups = [{k} for k in range(len(floors))]
    assert scale(floors, groups, len(floors) + spare) == pytest.approx(1 / math.fsum(floors), rel=1e-7)


@given(problem=problems(0.05, 2))
def test_the_scale_says_which_floors_can_be_solved(problem: tuple[np.ndarray, np.ndarray]) -> None:
    shares, floors = problem
    assume(abs(floors.sum() - 1) > 1e-6)
    s = scale(floors.tolist(), [{k} for k in range(len(floors))], len(floors) + 1)
    assert (s > 1) == (solve_floors(shares, floors) is not None)


@pytest.mark.parametrize(
    ("floors", "groups", "num_cells", "expected"),
    [
        ([0.6, 0.6], [{0, 1}, {1, 2}], 3, 1 / 0.6),  # all mass where they overlap
        ([0.8, 0.5], [{0, 1, 2}, {1}], 4, 1 / 0.8),  # one inside the other
        ([0.5, 0.5, 0.5], [{0, 1}, {1, 2}, {2, 0}], 3, 4 / 3),  # each cell serves two of the three
        ([0.9, 0.4, 0.3], [{0, 1}, {1, 2}, {2}], 3, 1 / 1.2),  # the first and the last are disjoint
    ],
)
def test_groups_that_overlap_share_their_mass(
    floors: list[float], groups: list[set[int]], num_cells: int, expected: float
) -> None:
    assert scale(floors, groups, num_cells) == pytest.approx(expected, rel=1e-9)
