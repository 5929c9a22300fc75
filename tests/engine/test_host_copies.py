from __future__ import annotations

from collections import OrderedDict
from enum import Enum

import torch

from cdt.engine.host_copies import Copies


class Stage(int, Enum):
    weights = 3


def test_what_is_copied_holds_numbers_in_place_of_enums() -> None:
    tree = {"a": [Stage.weights, (1.5, Stage.weights)], "b": OrderedDict(c=Stage.weights), "d": "e"}
    copied = Copies().tree("tree", tree)
    assert copied == {"a": [3, (1.5, 3)], "b": OrderedDict(c=3), "d": "e"}
    assert {type(copied["a"][0]), type(copied["a"][1][1]), type(copied["b"]["c"])} == {int}
    assert type(copied["b"]) is OrderedDict


def test_a_copy_does_not_change_with_its_tensor_and_its_memory_serves_again() -> None:
    copies, weight = Copies(), torch.nn.Parameter(torch.arange(6.0).view(2, 3).T)
    tree = {"weight": weight, "more": [weight[1:], {"low": torch.ones(2, dtype=torch.bfloat16)}], "state": {"at": [1]}}
    first = copies.tree("tree", tree)
    with torch.no_grad():
        weight += 1
    tree["state"]["at"].append(2)
    assert torch.equal(first["weight"], weight - 1)
    assert torch.equal(first["more"][0], weight[1:] - 1)
    assert not first["weight"].requires_grad
    assert first["state"] == {"at": [1]}
    places = [first["weight"].data_ptr(), first["more"][1]["low"].data_ptr()]
    again = copies.tree("tree", tree)
    assert torch.equal(again["weight"], weight)
    assert [again["weight"].data_ptr(), again["more"][1]["low"].data_ptr()] == places
    other = copies.of("tree/weight", torch.ones(7))
    assert other.shape == (7,)
