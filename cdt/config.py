"""A whole run in one configuration: composed of the classes that stand beside what they configure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from cdt.constraints import AnyConstraint, Prior
from cdt.data.remote import is_remote
from cdt.data.stream import DataConfig
from cdt.diffusion.process import DiffusionConfig
from cdt.diffusion.sampler import SamplerConfig
from cdt.dual import DualConfig
from cdt.errors import InputError
from cdt.networks import NetworkConfig
from cdt.schema import Config
from cdt.settings import apply_overrides, load_yaml, parse
from cdt.training.engine import EngineConfig
from cdt.training.pretrained import filled_in
from cdt.training.probe import ProbeConfig
from cdt.training.replay import ReplayConfig
from cdt.training.schedule import TrainConfig


class RunSettings(Config):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its directory is ``dir/name``."""
    dir: Path = Path("runs")
    """Where run directories are."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of weights, data order and noise."""
    workers: int = Field(default=1, ge=0)
    """DeepSpeed workers under Ray; 0: everything in this process, for debugging."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per worker; default: the machine's cores over the workers that it has."""
    placement: Literal["pack", "spread"] = "pack"
    """On a cluster: workers on as few nodes as they fit on, or on as many as there are."""
    patience_minutes: float = Field(default=10, ge=0)
    """On a cluster: for so long a run waits for a lost node to be replaced, before it ends."""
    max_restarts: int = Field(default=3, ge=0)
    """Of workers that died, in a row without a new checkpoint in between; then the run ends."""
    fork: Path | None = None
    """Start from the warm checkpoint of this run (same network and data) instead of from new weights."""


class RunConfig(Config):
    run: RunSettings = RunSettings()
    init: Path | None = None
    """Start from the EMA weights, network and process of a run, or of a pipeline that diffusers saved."""
    data: DataConfig
    network: NetworkConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    constraints: dict[str, AnyConstraint] = Field(default_factory=dict)
    """Requirements by name."""
    dual: DualConfig = DualConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()
    engine: EngineConfig = EngineConfig()
    sampler: SamplerConfig = SamplerConfig()
    replay: ReplayConfig = ReplayConfig()
    """Samples of the pretrained model ``init``, for the constraint ``prior`` or as the objective."""

    @model_validator(mode="before")
    @classmethod
    def _from_init(cls, tree: Any) -> Any:
        return filled_in(tree) if isinstance(tree, dict) and isinstance(tree.get("init"), str | Path) else tree

    @field_validator("constraints")
    @classmethod
    def _names_are_plain(cls, constraints: dict[str, AnyConstraint]) -> dict[str, AnyConstraint]:
        for name in constraints:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_ -]*", name):
                raise ValueError(f"{name!r} is no name for a constraint: use letters, digits, _, - and spaces")
            if name == "base":
                raise ValueError("base is the name of the data's own stream; choose another for the constraint")
        return constraints

    @model_validator(mode="after")
    def _replay_makes_sense(self) -> RunConfig:
        priors = [name for name, constraint in self.constraints.items() if isinstance(constraint, Prior)]
        if self.init is None and (priors or self.replay.objective):
            what = f"constraints.{priors[0]}: prior" if priors else "replay.objective"
            raise ValueError(f"{what} speaks of a pretrained model: name it, `init: RUN` or a diffusers directory")
        if priors and self.replay.objective:
            raise ValueError(f"constraints.{priors[0]}: the pretrained model is the objective already: drop it")
        if self.replay.objective and not self.constraints:
            raise ValueError("replay.objective: nothing would be learnt of the new data: state a constraint on them")
        return self

    @property
    def replays(self) -> bool:
        """Whether samples of the pretrained model are trained on."""
        return self.replay.objective or any(isinstance(each, Prior) for each in self.constraints.values())

    @property
    def directory(self) -> Path:
        return self.run.dir / self.run.name

    def anchored(self) -> RunConfig:
        """With absolute paths: workers start elsewhere, and a run is opened from anywhere."""
        config = _anchored(self)
        if is_remote(self.data.shards, self.data.allow_pipe):
            return config
        shards = str(Path(self.data.shards).resolve())
        return config.model_copy(update={"data": self.data.model_copy(update={"shards": shards})})

    def paths(self) -> dict[str, str]:
        """What the configuration names on a file system and must be there, with the setting that names it."""
        named = dict(_paths(self.anchored(), ""))
        named.pop(str(self.run.dir.resolve()), None)
        if not is_remote(self.data.shards, self.data.allow_pipe):
            named[str(Path(self.data.shards).resolve() / "index.json")] = "data.shards"
        return named

    @classmethod
    def load(cls, path: Path, overrides: list[str] | None = None) -> RunConfig:
        """From YAML and ``key=value`` overrides; the run is named after the file unless it says otherwise.

        Raises InputError with every problem at once.
        """
        tree = apply_overrides(load_yaml(path), overrides or [])
        run = tree.setdefault("run", {})
        if isinstance(run, dict):
            run.setdefault("name", path.stem)
        return parse(cls, tree, where=str(path))


def check_batch(batch_size: int, workers: int, accumulation: int) -> None:
    """Raises InputError unless each worker gets equally many samples of each micro-batch."""
    parts = max(workers, 1) * accumulation
    if batch_size % parts:
        near = max(parts, round(batch_size / parts) * parts)
        over = [f"{workers} workers"] * (workers > 1) + [f"{accumulation} accumulation steps"] * (accumulation > 1)
        raise InputError(
            f"train.batch_size: {batch_size} samples do not divide over {' and '.join(over)}; "
            f"the nearest that do: {near}"
        )


def _paths(tree: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, Path):
        yield str(tree), where
    elif isinstance(tree, BaseModel | dict):
        for name, value in dict(tree).items():
            yield from _paths(value, f"{where}.{name}".strip("."))


def _anchored(tree: Any) -> Any:
    if isinstance(tree, BaseModel):
        return tree.model_copy(update={name: _anchored(value) for name, value in tree})
    if isinstance(tree, dict):
        return {name: _anchored(value) for name, value in tree.items()}
    return tree.resolve() if isinstance(tree, Path) else tree
