from __future__ import annotations

import re
from typing import Any

import pytest

from cdt.constraints import Constraint, MinFrequency, Statistic
from cdt.measure.statistics import INSTRUMENTS, check_measured


class Sharpness(Statistic):
    name = "sharpness"


class Sharp(MinFrequency):
    @property
    def statistic(self) -> Statistic:
        return Sharpness()


def constraint(kind: type[Constraint]) -> Constraint:
    tree: dict[str, Any] = {"class": "four", "min_frequency": 0.2}
    return kind.model_validate(tree)


def test_every_kind_of_statistic_has_one_instrument() -> None:
    own = [kind for kind in Statistic.__subclasses__() if kind.__module__.startswith("cdt.")]
    measured = [kind for instrument in INSTRUMENTS for kind in instrument.measures]
    assert sorted(kind.name for kind in own) == sorted(kind.name for kind in measured)


def test_a_statistic_without_an_instrument_is_refused() -> None:
    check_measured({"a": constraint(MinFrequency)})
    told = "constraints.b: no instrument measures Sharpness; name one in cdt.measure.statistics.INSTRUMENTS"
    with pytest.raises(TypeError, match=f"^{re.escape(told)}$"):
        check_measured({"a": constraint(MinFrequency), "b": constraint(Sharp)})
