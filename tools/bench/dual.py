"""What the central side costs: dual steps, journal rows and state for many constraints.

python tools/bench/dual.py [--constraints 100000] [--repeats 20]
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import time

import numpy as np

from cdt.dual import ALARMS, DualProblem, DualState, Sums, dual_step, journal_rows, journaled


def classes(m: int) -> DualProblem:
    """A floor on each of m classes, under the mass rule."""
    return DualProblem(
        names=tuple(f"class {i}" for i in range(m)),
        shares=np.full(m, 1 / m),
        baseline=np.full(m, 10.0),
        thresholds=np.full(m, 9.9),
        rules=np.array(["mass"] * m),
        etas=np.full(m, 0.02),
        equal=np.zeros(m, dtype=bool),
        links=np.full(m, "identity"),
        actuators=np.full(m, "draw"),
        kp=np.zeros(m),
        cap=10.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Dual steps for many constraints.")
    parser.add_argument("--constraints", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    m, rng = arguments.constraints, np.random.default_rng(0)
    problem = classes(m)
    state = DualState.first(np.zeros(m), len(ALARMS))
    steps, journals, rows = [], [], []
    for period in range(arguments.repeats):
        gaps = rng.normal(0, 0.1, m)
        sums = Sums(10 * gaps, 10 * gaps**2, np.full(m, 10.0))
        started = time.perf_counter()
        after = dual_step(problem, state, sums)
        stepped = time.perf_counter()
        rows = journal_rows(problem, after, period, journaled(problem, state, after))
        journals.append(time.perf_counter() - stepped)
        steps.append(stepped - started)
        state = after
    for what, seconds in (("dual step", steps), ("journal rows", journals)):
        milliseconds = sorted(1e3 * value for value in seconds)
        middle, low, high = statistics.median(milliseconds), milliseconds[0], milliseconds[-1]
        print(f"{what:<14}{middle:8.1f} ms ({low:.1f} to {high:.1f})")
    print(f"{'rows a period':<14}{len(rows):8d}")
    print(f"{'problem':<14}{len(pickle.dumps(problem)) / 1e6:8.1f} MB")
    print(
        f"{'state':<14}{len(pickle.dumps(state)) / 1e6:8.1f} MB, {len(json.dumps(state.to_json())) / 1e6:.1f} as JSON"
    )


if __name__ == "__main__":
    main()
