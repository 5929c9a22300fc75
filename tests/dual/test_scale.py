"""A hundred thousand constraints: the dual side stays finite, its journal readable, its checkpoint small."""

from __future__ import annotations

import json

import numpy as np
from problems import begin, pose

from cdt.dual import DualState, Sums, dual_step, journal_rows, journaled, measured_next, news, worst_constraint

M = 100_000


def test_a_hundred_thousand_constraints() -> None:
    rng = np.random.default_rng(0)
    masses = rng.exponential(1.0, M)
    posed = pose(
        M,
        shares=masses / masses.sum(),
        baseline=rng.normal(30, 5, M),
        thresholds=rng.normal(30, 5, M),
        rules=np.where(rng.random(M) < 0.5, "mass", "ascent"),
        equal=rng.random(M) < 0.1,
        links=np.where(rng.random(M) < 0.1, "negative_log", "identity"),
        cap=10.0,
        kp=1.0,
        nu=0.5,
        every_period=False,
    )
    now, room, counts = begin(*np.zeros(M)), 4096, []
    for _ in range(4):
        chosen = measured_next(posed, now, room)
        assert len(chosen) == room
        mean = np.where(posed.links == "negative_log", rng.random(M), rng.normal(size=M))
        count = np.isin(np.arange(M), chosen) * 256.0
        before, now = now, dual_step(posed, now, Sums(count * mean, count * (mean**2 + 1), count))
        assert np.isfinite(now.lambdas).all()
        rows = journal_rows(posed, now, 100, journaled(posed, before, now))
        counts.append(len(rows))
        assert len(news(posed, before, now)) <= 2
    assert counts[0] == M
    assert 0 < max(counts[1:]) <= 150
    assert worst_constraint(posed, now) is not None
    text = json.dumps(now.to_json(), allow_nan=False)
    assert len(text) < 50e6
    back = DualState.from_json(json.loads(text))
    assert back.lambdas.tobytes() == now.lambdas.tobytes()
    assert back.told.tobytes() == now.told.tobytes()
