"""Calibration: the threshold of each constraint from measurements of the warm model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cdt.constraints import Calibration, Constraint, Requirements
from cdt.constraints.prior import LARGEST
from cdt.constraints.window import SEPARATED, auto_window
from cdt.data.plan.order import stream_key
from cdt.data.read.reader import Images, normalise
from cdt.diffusion.process import Process
from cdt.dual import ACTUATORS, ALARMS, DEFAULT_ETA, DualProblem, DualState, Link, lowest_multipliers, solve_floors
from cdt.dual.config import DualConfig
from cdt.engine.ranks import Ranks
from cdt.errors import InputError

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
            share = requirements.shares[i] or share_at_budget(constraint)
            # A generator of its own, so that the window does not depend on which rank looks for which others.
            rng = np.random.default_rng(stream_key(seed, f"window {name}"))
            inside, outside = (normalise(reader.images(_some(rows, rng))) for rows in (inside, outside))
            windows[i] = auto_window(inside, outside, share, process.logsnr_min, process.logsnr_max, seed)
        else:
            windows[i] = process.logsnr_max if constraint.window is None else constraint.window
    return ranks.sum(windows)


def _some(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= _EXEMPLARS else np.sort(rng.choice(rows, _EXEMPLARS, replace=False))


def pose_problem(
    requirements: Requirements, calibrations: Sequence[Calibration], config: DualConfig, probe_room: int
) -> DualProblem:
    """The dual problem of calibrated requirements; ``probe_room``: how many constraints one probe measures."""
    constraints = list(requirements.constraints.values())
    rules, etas = _rules_and_steps(constraints, config)
    pairs = zip(constraints, calibrations, strict=True)
    losses = np.array([calibration.loss for calibration in calibrations], dtype=np.float64)
    return DualProblem(
        names=requirements.names,
        shares=np.where(drawn(requirements), requirements.shares, 0.0),
        baseline=losses if config.estimate == "probe" else np.zeros_like(losses),
        links=np.array([constraint.link for constraint in constraints], dtype=str),
        thresholds=np.array([each.threshold(calibration) for each, calibration in pairs], dtype=np.float64),
        actuators=np.array([constraint.actuator.name for constraint in constraints], dtype=str),
        rules=rules,
        etas=etas,
        equal=np.array([constraint.equal for constraint in constraints], dtype=bool),
        cap=config.cap,
        kp=np.array([each.kp if config.kp is None else config.kp for each in constraints], dtype=np.float64),
        nu=config.nu,
        gamma=config.gamma,
        every_period=config.estimate == "training" or len(constraints) <= probe_room,
    )


def drawn(requirements: Requirements) -> np.ndarray:
    """Which multipliers draw the samples of their constraints: bool [m]."""
    return np.array([ACTUATORS[each.actuator.name].draws for each in requirements.constraints.values()], dtype=bool)


def _rules_and_steps(constraints: Sequence[Constraint], config: DualConfig) -> tuple[np.ndarray, np.ndarray]:
    """By constraint [m]: the rule that moves its multiplier, and how far."""
    rules = np.array([constraint.rule if config.rule == "auto" else config.rule for constraint in constraints], str)
    default = [
        each.eta if each.eta is not None and rule == each.rule else DEFAULT_ETA[rule]
        for each, rule in zip(constraints, rules.tolist(), strict=True)
    ]
    return rules, np.array(default if config.eta is None else [config.eta] * len(default), dtype=np.float64)


def check_stable(requirements: Requirements, config: DualConfig) -> None:
    """For a loss that does not respond, ``lambda <- lambda + eta (v - 2 gamma lambda)`` is stable below 2.

    Raises InputError when resilience and a step size make an unstable pair.
    """
    _, etas = _rules_and_steps(list(requirements.constraints.values()), config)
    steepest = float(2 * config.gamma * etas.max(initial=0.0))
    if steepest >= 2:
        raise InputError(
            f"dual.gamma: {config.gamma:g} with a step size of {etas.max():g} makes multipliers oscillate without end: "
            f"eta * 2 * gamma is {steepest:.3g} and must be below 2"
        )


def check_prior(requirements: Requirements, calibrations: Sequence[Calibration]) -> None:
    """Raises InputError where a floor on a share needs more divergence than the prior's budget has.

    ``KL(q_1 || p) >= r log(r / F) + (1 - r) log((1 - r) / (1 - F))`` for a share r in what the pretrained one generates
    and F in what this one does: data processing. ``calibrations``: measured under the pretrained weights.
    """
    pairs = list(zip(requirements.constraints.items(), calibrations, strict=True))
    budgets = [
        each.budget_in_nats
        for (_, each), _ in pairs
        if each.samples.replayed and each.budget_in_nats is not None and not isinstance(each.window, float)
    ]
    for (name, constraint), calibration in pairs:
        r, floor = calibration.share, constraint.share
        if not budgets or floor is None or not calibration.share_measured or r >= floor:
            continue
        least = r * math.log(r / floor) + (1 - r) * math.log((1 - r) / (1 - floor))
        if least > min(budgets) + SEPARATED:  # of an automatic window, so much may be missing
            raise InputError(
                f"constraints.{name}: a share of {floor:g} is at least {least:.2f} nats from the pretrained model, "
                f"whose samples have {r:.3g}; prior.max_kl is {min(budgets):g}"
            )


def share_at_budget(constraint: Constraint) -> float:
    """``exp(-b)``, the share of what is generated at which a budget of b nats is just met, for samples unlike all
    others; a half where the budget is not one of divergence. Never 0, which has no logarithm."""
    return 0.5 if constraint.budget_in_nats is None else math.exp(-min(constraint.budget_in_nats, LARGEST))


def first_state(requirements: Requirements, config: DualConfig) -> DualState:
    """lambda = 0, or for shares the closed form, as if the classes were disjoint and the model exact."""
    lambdas, draws = np.zeros(len(requirements.names)), drawn(requirements)
    # A budget in nats on samples outside of the objective's is a floor on their share, too: at 0 they are forgotten.
    wanted = {
        i: each
        for i, each in enumerate(requirements.constraints.values())
        if draws[i] and (each.share is not None or (each.budget_in_nats is not None and not requirements.shares[i]))
    }
    if config.start == "closed_form" and wanted:
        chosen = np.array(list(wanted))
        shares = requirements.shares[chosen]
        floors = np.array([share_at_budget(each) for each in wanted.values()])
        equal = np.array([each.equal for each in wanted.values()], dtype=bool)
        solution = solve_floors(shares, floors, equal)
        if solution is not None:
            lambdas[chosen] = np.clip(solution.lambdas, lowest_multipliers(shares, equal), config.cap)
    return DualState.first(lambdas, alarms=len(ALARMS))


def describe(
    requirements: Requirements, calibrations: Sequence[Calibration], problem: DualProblem
) -> list[dict[str, Any]]:
    """What was calibrated, constraint by constraint, for calibration.json."""
    rows = zip(requirements.constraints.items(), requirements.shares, calibrations, problem.thresholds, strict=True)
    return [
        {
            "constraint": name,
            "requirement": constraint.describe(),
            "share_in_data": float(share),
            "asks_for_share": constraint.share is not None,
            "window": None if constraint.statistic.of_generated else calibration.window,
            "warm_loss": calibration.loss,
            "warm_share": calibration.share if calibration.share_measured else None,
            "reference_loss": calibration.reference,
            "threshold": float(threshold),
        }
        for (name, constraint), share, calibration, threshold in rows
    ]


def sentence(row: dict[str, Any], link: Link) -> str:
    """A row of ``describe`` in words, for the run's events."""
    loss, threshold = f"{row['warm_loss']:.3f} {link.unit}", f"threshold {row['threshold']:.3f}"
    if row["window"] is None:
        if link.share is None:
            return f"{row['requirement']}: the warm model's samples have {loss}; {threshold} {link.unit}"
        share = link.share(np.array([row["warm_loss"]])).item()
        return f"{row['requirement']}: the warm model's samples have {share:.4f}; {threshold} {link.unit}"
    text = f"{row['requirement']}: loss {loss} up to log-SNR {row['window']:g}, {threshold}"
    if row["reference_loss"] is not None:
        return f"{text}; the reference has {row['reference_loss']:.3f}"
    if row["warm_share"] is not None:
        return f"{text}; the warm model's share is {row['warm_share']:.4f}"
    if not row["share_in_data"] or not row["asks_for_share"]:
        return text
    return (
        f"{text}; the warm model's own share was not measured, the data's ({row['share_in_data']:.4f}) is used instead"
    )


def to_json(calibrations: Sequence[Calibration]) -> list[dict[str, Any]]:
    return [asdict(calibration) for calibration in calibrations]
