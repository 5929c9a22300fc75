from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import Field

from cdt.config import RunConfig
from cdt.errors import InputError
from cdt.schema import Config, resumable
from cdt.settings import parse


def configs(base: type[Config] = Config) -> Iterator[type[Config]]:
    """All Config classes of cdt, as far as a whole configuration imports them."""
    for each in base.__subclasses__():
        if each.__module__.startswith("cdt."):
            yield each
        yield from configs(each)


def unbounded(node: Any, where: str) -> Iterator[str]:
    """The numbers below a node of pydantic's core schema that lack a lower or an upper bound."""
    if isinstance(node, Mapping):
        if node.get("type") in ("int", "float") and not ({"ge", "gt"} & {*node} and {"le", "lt"} & {*node}):
            yield where
        for key, inner in node.items():
            if key not in ("metadata", "serialization"):
                yield from unbounded(inner, where)
    elif isinstance(node, list | tuple):
        for inner in node:
            yield from unbounded(inner, where)


MODELS = {model.__name__: model for model in configs()}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_number_has_a_range(model: type[Config]) -> None:
    """Of what a user could mean: what lies outside is a slip of the pen, and would take all memory or no end."""
    fields = _fields(model.__pydantic_core_schema__)
    assert fields.keys() == model.model_fields.keys()
    found = [name for name, schema in fields.items() for _ in unbounded(schema, name)]
    assert found == [], f"{model.__name__}: give these a lower and an upper bound: Field(ge=..., le=...)"


def _fields(node: Any) -> dict[str, Any]:
    while node["type"] != "model-fields":
        node = node["schema"]
    return node["fields"]


def test_a_number_without_a_range_is_found() -> None:
    class Loose(Config):
        bound: float = 0.5
        several: dict[str, list[int | None]] = Field(default_factory=dict)

    assert [*unbounded(Loose.__pydantic_core_schema__, "here")] == ["here", "here"]


@pytest.mark.parametrize(
    ("section", "setting", "told"),
    [
        ("run", {"threads": 10**30}, f"run.threads: got {10**30}; must be null or an integer >= 1 and <= 10000"),
        ("train", {"lr": 1e308}, "train.lr: got 1e+308; must be a finite number > 0 and <= 1000"),
        ("train", {"weight_decay": 1e308}, "train.weight_decay: got 1e+308; must be a finite number >= 0 and <= 1000"),
        ("probe", {"draws": 10**11}, "probe.draws: got 100000000000; must be an integer >= 8 and <= 1000000"),
        ("network", {"depth": 2**64}, f"network.depth: got {2**64}; must be an integer >= 1 and <= 1000"),
        ("network", {"mlp_ratio": 1e12}, "network.mlp_ratio: got 1000000000000.0; must be a number > 0 and <= 100"),
        ("network", {"mlp_ratio": 1e-9}, "network: mlp_ratio 1e-09 of width 192 leaves no hidden width"),
        ("network", {"width": 65_536, "heads": 1, "depth": 1000}, "network: it would have at least 7.7e+13 weights"),
        ("network", {"kind": "unet", "channels": [65_536] * 3}, "network: it would have at least 1.2e+12 weights"),
        ("train", {"lr": True}, "train.lr: got true; must be a finite number > 0 and <= 1000"),
        ("train", {"dual_steps": False}, "train.dual_steps: got false; must be an integer >= 0 and <= 1000000000"),
        ("train", {"betas": [True, 0.9]}, "train.betas[0]: got true; must be a number >= 0 and < 1"),
        ("data", {"allow_pipe": 1}, "data.allow_pipe: got 1; must be true or false"),
        ("data", {"allow_pipe": 0.0}, "data.allow_pipe: got 0.0; must be true or false"),
        ("engine", {"zero_stage": True}, "engine.zero_stage: got true; must be 0, 1, 2 or 3"),
        ("dual", {"period": True}, "dual.period: got true; must be epoch or an integer >= 1 and <= 1000000000"),
        ("constraints", {"a": {"class": "a", "max_loss": True}}, "constraints.a.max_loss: got true; must be a finite"),
        ("constraints", {"a": {"where": {"x": True}, "max_loss": 1}}, "constraints.a.where.x: got true; must be a nu"),
    ],
)
def test_what_nobody_can_mean(section: str, setting: dict[str, Any], told: str) -> None:
    tree: dict[str, Any] = {"data": {"shards": "a"}, "network": {"kind": "dit"}}
    tree[section] = {**tree.get(section, {}), **setting}
    with pytest.raises(InputError) as error:
        parse(RunConfig, tree, where="run")
    assert str(error.value).startswith(f"run: {told}")
    assert "\n" not in str(error.value)


def test_what_may_change_when_a_run_is_resumed() -> None:
    """Everything else would make it another run."""
    assert sorted(resumable(RunConfig)) == [
        *("data.cache_mb", "data.loader_workers", "data.shards"),
        *("dual.cap", "dual.eta", "dual.gamma", "dual.kp", "dual.nu", "dual.stop_when_satisfied_for"),
        *("run.hang_minutes", "run.max_restarts", "run.min_workers", "run.mirror", "run.patience_minutes"),
        *("run.placement", "run.threads", "run.workers", "sampler.name", "sampler.steps"),
        *("train.checkpoint_minutes", "train.checkpoint_steps", "train.cooldown_steps", "train.dual_steps"),
        *("train.grid_images", "train.keep_checkpoints", "train.log_steps", "train.lr", "train.max_skipped"),
    ]
