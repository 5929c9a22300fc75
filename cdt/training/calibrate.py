"""Calibration: what the warm model says of each constraint becomes its threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdt.constraints import Calibration, MinFrequency, Requirements
from cdt.constraints.window import auto_window
from cdt.data.plan import stream_key
from cdt.data.reader import Images, normalise
from cdt.diffusion.process import Process
from cdt.dual import DualConfig, DualProblem, DualState, solve_floors
from cdt.training.ranks import Ranks

_EXEMPLARS = 1000


def find_windows(requirements: Requirements, reader: Images, process: Process, ranks: Ranks, seed: int) -> np.ndarray:
    """The upper end of each constraint's log-SNR window [m]; the ranks share the work. A collective."""
    windows = np.zeros(len(requirements.names))
    for i, (name, constraint) in enumerate(requirements.constraints.items()):
        if i % ranks.world != ranks.rank:
            continue
        if constraint.window == "auto":
            inside = requirements.rows[name]
            outside = np.setdiff1d(np.arange(len(requirements.cells)), inside)
            # The share before, not the floor: rare classes need a higher log-SNR, and the threshold counts from there.
            share = requirements.shares[i]
            # A generator of its own, so that the window does not depend on which rank looks for which others.
            rng = np.random.default_rng(stream_key(seed, f"window {name}"))
            inside, outside = (normalise(reader.images(_some(rows, rng))) for rows in (inside, outside))
            windows[i] = auto_window(inside, outside, share, process.logsnr_min, process.logsnr_max, seed)
        else:
            windows[i] = process.logsnr_max if constraint.window is None else constraint.window
    return ranks.sum(windows)


def _some(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= _EXEMPLARS else np.sort(rng.choice(rows, _EXEMPLARS, replace=False))


def pose_problem(requirements: Requirements, losses: np.ndarray, config: DualConfig) -> DualProblem:
    """Thresholds from the warm model's losses [m], nats; the shares of the data stand for the warm model's own."""
    constraints = list(requirements.constraints.values())
    thresholds = [
        constraint.threshold(Calibration(loss=float(loss), share=float(share)))
        for constraint, loss, share in zip(constraints, losses, requirements.shares, strict=True)
    ]
    return DualProblem(
        names=requirements.names,
        shares=requirements.shares,
        baseline=losses if config.estimate == "probe" else np.zeros_like(losses),
        thresholds=np.array(thresholds, dtype=np.float64),
        rules=tuple(constraint.rule if config.rule == "auto" else config.rule for constraint in constraints),
        cap=config.cap,
        eta=config.eta,
    )


def first_state(requirements: Requirements, config: DualConfig) -> DualState:
    """lambda = 0, or for floors on shares the closed form, as if the classes were disjoint and the model exact."""
    lambdas = np.zeros(len(requirements.names))
    constraints = list(requirements.constraints.values())
    floors = {i: c.min_frequency for i, c in enumerate(constraints) if isinstance(c, MinFrequency)}
    if config.start == "closed_form" and floors:
        chosen = np.array(list(floors))
        solution = solve_floors(requirements.shares[chosen], np.array(list(floors.values())))
        if solution is not None:
            lambdas[chosen] = np.minimum(solution.lambdas, config.cap)
    return DualState(period=0, lambdas=lambdas)


def describe(
    requirements: Requirements, windows: np.ndarray, problem: DualProblem, losses: np.ndarray
) -> list[dict[str, Any]]:
    """What was calibrated, constraint by constraint, for calibration.json."""
    rows = zip(requirements.constraints.items(), requirements.shares, windows, losses, problem.thresholds, strict=True)
    return [
        {
            "constraint": name,
            "requirement": constraint.describe(),
            "share_in_data": float(share),
            "window": float(window),
            "warm_loss": float(loss),
            "threshold": float(threshold),
        }
        for (name, constraint), share, window, loss, threshold in rows
    ]
