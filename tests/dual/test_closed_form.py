"""Floors on shares: the KKT conditions of every solution, and what can be met together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

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


def kkt(shares: np.ndarray, floors: np.ndarray, equal: np.ndarray) -> None:
    """Primal and dual feasibility, complementary slackness, stationarity; the solution is finite and a mixture."""
    solution = solve_floors(shares, floors, equal)
    assert solution is not None
    lambdas, active = solution.lambdas, solution.active
    assert solution.total == pytest.approx(1 + math.fsum(lambdas), abs=1e-9)
    assert solution.total > 0
    frequencies = (shares + lambdas) / solution.total
    assert (frequencies >= floors - 1e-9).all()
    np.testing.assert_allclose(frequencies[equal | active], floors[equal | active], rtol=0, atol=1e-9)
    assert (lambdas[~equal] >= 0).all()
    assert (lambdas[~active] == 0).all()
    assert active[equal].all()


@given(problem=problems(), data=st.data())
def test_solutions_with_equalities_meet_the_kkt_conditions(
    problem: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    """Whose multipliers have either sign; a class without any wish takes up the rest."""
    shares, floors = problem
    if math.fsum(shares) > 1 - 1e-9:
        shares, floors = shares[:-1], floors[:-1]
    assume(len(shares))
    kkt(shares, floors, data.draw(arrays(np.bool_, len(shares))))


@given(classes=masses, data=st.data())
def test_a_floor_takes_up_what_equalities_for_all_others_leave(classes: np.ndarray, data: st.DataObject) -> None:
    n = len(classes)
    floors = np.array(data.draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n)))
    equal = data.draw(arrays(np.bool_, n))
    assume(not equal.all())
    kkt(classes / classes.sum(), floors / floors.sum() * data.draw(st.floats(0.05, 0.99)), equal)


@given(classes=masses, data=st.data())
def test_equalities_for_all_classes_must_sum_to_one(classes: np.ndarray, data: st.DataObject) -> None:
    n = len(classes)
    wanted = np.array(data.draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n)))
    shares, wanted, equal = classes / classes.sum(), wanted / wanted.sum(), np.ones(n, dtype=bool)
    solution = solve_floors(shares, wanted, equal)
    assert solution is not None
    np.testing.assert_allclose((shares + solution.lambdas) / solution.total, wanted, rtol=0, atol=1e-9)
    for scale in (0.5, 0.99, 1.01):
        assert solve_floors(shares, scale * wanted, equal) is None


def test_an_equality_below_the_natural_share_takes_mass_away() -> None:
    """pi = 0.5 to F = 0.2, one other class: 1 + Lambda = 0.5 / 0.8; it makes room that a floor no longer needs."""
    alone = solve_floors(np.array([0.5]), np.array([0.2]), np.array([True]))
    assert alone is not None
    np.testing.assert_allclose([alone.total, *alone.lambdas], [0.625, 0.125 - 0.5], rtol=1e-12)
    both = solve_floors(np.array([0.5, 0.1]), np.array([0.2, 0.15]), np.array([True, False]))
    assert both is not None
    assert both.active.tolist() == [True, False]
    np.testing.assert_allclose(both.lambdas, [0.125 - 0.5, 0.0], rtol=1e-12)


def test_an_equality_at_the_natural_share_is_met_without_a_multiplier_until_others_dilute_it() -> None:
    equal = np.array([True, False])
    resting, diluted = (solve_floors(np.array([0.2, 0.1]), np.array([0.2, floor]), equal) for floor in (0.1, 0.4))
    assert resting is not None
    assert diluted is not None
    np.testing.assert_allclose(resting.lambdas, 0, atol=1e-15)
    total = 0.7 / 0.4
    np.testing.assert_allclose(diluted.lambdas, [0.2 * total - 0.2, 0.4 * total - 0.1], rtol=1e-12)


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


@pytest.mark.parametrize("floor", [1e-8, 1e-10, 1e-300])
def test_a_floor_of_hardly_anything_can_be_scaled_by_its_inverse(floor: float) -> None:
    assert scale([floor], [{0}], 2) == pytest.approx(1 / floor)
    assert scale([0.5, floor], [{0}, {1}], 2) == pytest.approx(2)


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
