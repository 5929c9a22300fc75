"""Requirements: their samples, statistics, budgets and thresholds. A new kind is one file and its name in KINDS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Discriminator, Tag

from cdt.constraints.actuator import Draw, Penalty
from cdt.constraints.constraint import Calibration, Constraint
from cdt.constraints.generated_frequency import GeneratedFrequency
from cdt.constraints.max_loss import MaxExcess, MaxKl, MaxLoss
from cdt.constraints.min_frequency import Frequency, MinFrequency
from cdt.constraints.prior import Prior
from cdt.constraints.requirements import Requirements
from cdt.constraints.samples import Labelled, Population, Replayed, Samples
from cdt.constraints.statistic import DenoisingLoss, GeneratedShare, Statistic, TeacherDistance
from cdt.spelling import nearest

KINDS: tuple[type[Constraint], ...] = (MinFrequency, Frequency, GeneratedFrequency, MaxKl, Prior, MaxExcess, MaxLoss)
BUDGETS: dict[str, type[Constraint]] = {kind.budget: kind for kind in KINDS}


def _one_budget(tree: Any) -> Any:
    """Drops budgets that are null (taken back by an override); of the others there must be exactly one."""
    if isinstance(tree, Constraint):
        return tree
    if not isinstance(tree, dict):
        raise ValueError("must be a mapping such as {class: NAME, min_frequency: SHARE}")
    tree = {key: value for key, value in tree.items() if key not in BUDGETS or value is not None}
    named = [name for name in BUDGETS if name in tree]
    if len(named) > 1:
        raise ValueError(f"has {' and '.join(named)}: exactly one budget is needed")
    if not named:
        near = [match for key in tree if (match := nearest(str(key), BUDGETS))]
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"has no budget: exactly one of {', '.join(BUDGETS)} is needed{hint}")
    return tree


def _kind(tree: Any) -> str:
    return tree.budget if isinstance(tree, Constraint) else next(name for name in BUDGETS if name in tree)


if TYPE_CHECKING:
    AnyConstraint = Constraint
else:
    # A union of the kinds in the table, selected by the budget that a configuration names.
    AnyConstraint = Annotated[
        Union[tuple(Annotated[kind, Tag(name)] for name, kind in BUDGETS.items())],  # noqa: UP007
        Discriminator(_kind),
        BeforeValidator(_one_budget),
    ]

__all__ = [
    "BUDGETS",
    "AnyConstraint",
    "Calibration",
    "Constraint",
    "DenoisingLoss",
    "Draw",
    "Frequency",
    "GeneratedFrequency",
    "GeneratedShare",
    "Labelled",
    "MaxExcess",
    "MaxKl",
    "MaxLoss",
    "MinFrequency",
    "Penalty",
    "Population",
    "Prior",
    "Replayed",
    "Requirements",
    "Samples",
    "Statistic",
    "TeacherDistance",
]
