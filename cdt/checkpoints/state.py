"""The state in a checkpoint besides weights and optimiser, and the schema of its file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from cdt.data.plan.state import StreamState
from cdt.errors import InputError
from cdt.records import Count, Number, parsed

LIMIT = 1 << 30
"""Bytes of the file: a hundred thousand constraints take some tens of millions."""


@dataclass(frozen=True)
class TrainState:
    """The whole state of a run except weights and optimiser; JSON."""

    step: int
    """Steps done."""
    world: int
    """Number of workers that wrote it."""
    dual_steps: int
    """Length of dual training: as configured, or less once it was ended early."""
    stream: StreamState
    dual: dict[str, Any] | None = None
    """Calibration and dual state, once calibrated."""
    loss: float | None = None
    """loss(q) on the training batches of the last period, nats; None before the first."""
    sums: list[list[list[float]]] | None = None
    """Sums from training batches in the unfinished period, [workers, K + 1, 3]; None at its beginning."""

    def quality(self) -> tuple[bool, float]:
        """Sorts checkpoints, the best last: with all requirements met the lower loss, else the smaller violation."""
        slack = [-math.inf if gap is None else gap for gap in (self.dual or {}).get("slack", [])]
        worst = min(slack, default=-math.inf)
        return worst >= 0, (-math.inf if self.loss is None else -self.loss) if worst >= 0 else worst

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> TrainState:
        stream = tree["stream"]
        history = [(first, lambdas) for first, lambdas in stream["history"]]
        return cls(**{**tree, "stream": StreamState(stream["batch"], stream["counters"], history)})


Unknown = float | None
"""A measured value: any float, also nan; null if not measured. Values that decide what is drawn are ``Number``."""
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Calibration(TypedDict):
    loss: float
    share: Annotated[Number, Field(ge=0, le=1)]
    window: Number
    reference: NotRequired[Unknown]
    share_measured: NotRequired[bool]


class _Dual(TypedDict):
    """The dual state by its fields, m constraints."""

    period: Count
    lambdas: list[Number]
    average: list[Number]
    losses: list[Unknown]
    errors: list[Unknown]
    counts: list[Annotated[Number, Field(ge=0)]]
    seen: list[Number]
    smoothed: list[Unknown]
    satisfied_for: Count
    violated_since: list[Number]
    lambda_then: list[Unknown]
    loss_then: list[Unknown]
    told: list[list[bool]]


class _DualSide(TypedDict):
    calibrations: list[_Calibration]
    baseline: list[float]
    thresholds: list[float]
    budgets: NotRequired[str]
    slack: list[Unknown]
    state: _Dual


class _Stream(TypedDict):
    batch: Count
    counters: dict[str, Count]
    history: list[tuple[Count, list[Number]]]


class _State(TypedDict):
    step: Count
    world: Annotated[int, Field(ge=1, lt=2**31)]
    dual_steps: Count
    stream: _Stream
    dual: NotRequired[_DualSide | None]
    loss: NotRequired[Unknown]
    sums: NotRequired[list[list[Triple]] | None]


_KIND = TypeAdapter(_State)


def parse_state(content: bytes, prefix: str) -> TrainState:
    """The contents of ``state.json``. Raises InputError, whose message begins with ``prefix``."""
    tree: Any = parsed(content, _KIND, prefix)
    if problem := next(_contradictions(tree), None):
        raise InputError(f"{prefix}: {problem}")
    return TrainState.from_json(tree)


def _contradictions(tree: dict[str, Any]) -> Iterator[str]:
    dual, sums, history = tree.get("dual"), tree.get("sums"), tree["stream"]["history"]
    if tree["stream"]["counters"] and not history:
        yield "stream.history is empty"
    lengths = {"stream.history": {len(lambdas) for _, lambdas in history}}
    if dual is not None:
        lengths |= {f"dual.{name}": {len(dual[name])} for name in ("calibrations", "thresholds", "slack")}
        arrays = {name: value for name, value in dual["state"].items() if isinstance(value, list) and name != "told"}
        lengths |= {f"dual.state.{name}": {len(value)} for name, value in arrays.items()}
        lengths["dual.state.told"] = {len(alarms) for alarms in dual["state"]["told"]}
    found = sorted({length for each in lengths.values() for length in each})
    if len(found) > 1:
        where = {length: next(name for name, each in lengths.items() if length in each) for length in found[:2]}
        yield " and ".join(f"{name} is of {length}" for length, name in where.items()) + " constraints"
    if sums is not None:
        if len(sums) != tree["world"]:
            yield f"sums of {len(sums)} workers, but {tree['world']} wrote it"
        if len({len(each) for each in sums}) > 1:
            yield "sums of other numbers of cells from one worker to the next"
