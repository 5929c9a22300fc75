"""A whole run in one configuration, composed of the Config classes of the rooms."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, field_validator, model_validator

from cdt.constraints import AnyConstraint
from cdt.data.config import DataConfig
from cdt.data.urls import is_remote
from cdt.diffusion.config import DiffusionConfig, SamplerConfig
from cdt.dual.config import DualConfig
from cdt.engine.config import EngineConfig
from cdt.files import resolved
from cdt.measure.config import ProbeConfig
from cdt.networks.config import AdapterConfig, NetworkConfig
from cdt.origin.config import ReplayConfig
from cdt.schema import RESUMABLE, Config
from cdt.settings import apply_overrides, load_yaml, parse
from cdt.training.schedule import TrainConfig

MIRROR = r"^(s3|gs)://[^/]+(/[^/]+)*$"
"""What a URL of `run.mirror` is like."""


class RunSettings(Config):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its directory is ``dir/name``."""
    dir: Path = Path("runs")
    """Where run directories are: on a file system that all workers see."""
    mirror: Annotated[str | None, RESUMABLE] = Field(default=None, pattern=MIRROR)
    """A place in an object store, as ``s3://bucket/runs``. Each complete checkpoint and the journals are uploaded to
    ``mirror/name``; `cdt fetch` downloads them."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of weights, data order and noise."""
    workers: Annotated[int, RESUMABLE] = Field(default=1, ge=0, le=100_000)
    """DeepSpeed workers under Ray; if the batch size is not divisible by them, fewer are started. 0: train in this
    process, for debugging."""
    min_workers: Annotated[int | None, RESUMABLE] = Field(default=None, ge=1, le=100_000)
    """Train with as few as these if there is no room for all, as after the loss of a machine; default: all."""
    threads: Annotated[int | None, RESUMABLE] = Field(default=None, ge=1, le=10_000)
    """CPU threads per worker; default: the machine's cores divided by its workers; in this process, what it has."""
    placement: Annotated[Literal["pack", "spread"], RESUMABLE] = "pack"
    """On a cluster: workers on as few nodes as possible, or on as many as possible."""
    patience_minutes: Annotated[float, RESUMABLE] = Field(default=10, ge=0, le=1e6)
    """On a cluster: how long a run waits for a lost node to be replaced before it ends."""
    max_restarts: Annotated[int, RESUMABLE] = Field(default=3, ge=0, le=10**9)
    """Consecutive restarts after a worker died, without a new checkpoint in between; then the run ends."""
    hang_minutes: Annotated[FiniteFloat, RESUMABLE] = Field(default=15, gt=0, le=1e6)
    """A worker without a heartbeat for this long is killed; all are killed if none makes progress. The run restarts."""
    fork: Path | None = None
    """Start from the warm checkpoint of this run (same network and data) instead of from new weights."""

    @field_validator("dir", mode="before")
    @classmethod
    def _on_a_file_system(cls, place: Any) -> Any:
        if "://" in str(place):
            raise ValueError(f"{place}: runs are written on a file system; run.mirror: {place} keeps a copy there")
        return place

    @model_validator(mode="after")
    def _range_of_workers(self) -> RunSettings:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers: {self.min_workers} is more than workers ({self.workers})")
        return self


class RunConfig(Config):
    run: RunSettings = RunSettings()
    init: Path | None = None
    """Start from the EMA weights, network and process of a run, of one of its checkpoints (``RUN/checkpoints/step-N``),
    or of a pipeline that diffusers saved."""
    data: DataConfig
    network: NetworkConfig | None
    """With ``init`` it can be left out, and is then that of the pretrained model."""
    adapter: AdapterConfig | None = None
    """Train low-rank adapters of the network in place of all its weights."""
    diffusion: DiffusionConfig = DiffusionConfig()
    constraints: dict[str, AnyConstraint] = Field(default_factory=dict, max_length=100_000)
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
        """With ``init`` the network can be left out, and there is no warm start by default: it would forget."""
        if not isinstance(tree, dict) or not isinstance(tree.get("init"), str | Path):
            return tree
        train = tree.get("train") or {}
        tree = tree | {"network": tree.get("network") or None}
        return tree | {"train": {"warm_steps": 0, **train}} if isinstance(train, dict) else tree

    @field_validator("constraints")
    @classmethod
    def _names_are_plain(cls, constraints: dict[str, AnyConstraint]) -> dict[str, AnyConstraint]:
        for name in constraints:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_ -]*", name):
                raise ValueError(f"{name!r} cannot be the name of a constraint: use letters, digits, _, - and spaces")
            if name == "base":
                raise ValueError("base is the name of the data's own stream; choose another for the constraint")
        return constraints

    @model_validator(mode="after")
    def _fine_tuning_makes_sense(self) -> RunConfig:
        if self.network is None and self.init is None:
            raise ValueError("network: null; only with `init` can it be left out")
        priors = [name for name, constraint in self.constraints.items() if constraint.samples.replayed]
        if self.init is None and (priors or self.replay.objective or self.adapter):
            needs = next((f"constraints.{name}: {self.constraints[name].budget}" for name in priors), None)
            what = needs or ("adapter" if self.adapter else "replay.objective")
            raise ValueError(f"{what} needs a pretrained model: add `init: RUN` or a directory of diffusers")
        if priors and self.replay.objective:
            raise ValueError(f"constraints.{priors[0]}: the pretrained model is already the objective: drop it")
        if self.replay.objective and not self.constraints:
            raise ValueError("replay.objective: nothing would be learnt from the new data: add a constraint on them")
        return self

    @property
    def replays(self) -> bool:
        """Whether samples of the pretrained model are trained on."""
        return self.replay.objective or any(each.samples.replayed for each in self.constraints.values())

    @property
    def resolved_network(self) -> NetworkConfig:
        """That of a configuration which ``cdt.origin.resolve`` has completed."""
        assert self.network is not None
        return self.network

    @property
    def directory(self) -> Path:
        return self.run.dir / self.run.name

    def workers_used(self, room: int | None = None) -> int:
        """How many of ``run.workers`` train: the most that there is room for and that divide the batch."""
        least, most = max(self.run.min_workers or self.run.workers, 1), max(self.run.workers, 1)
        wanted = most if room is None else min(most, max(room, least))
        parts = self.train.batch_size // self.engine.accumulation
        return next(workers for workers in range(wanted, 0, -1) if parts % workers == 0)

    def micro_batch(self, workers: int) -> int:
        """How many samples a worker has in one forward."""
        return max(1, self.train.batch_size // (workers * self.engine.accumulation))

    def anchored(self) -> RunConfig:
        """With absolute paths: workers start in other directories, and a run is opened from anywhere."""
        config = _anchored(self)
        if is_remote(self.data.shards, self.data.allow_pipe):
            return config
        shards = str(resolved(Path(self.data.shards)))
        return config.model_copy(update={"data": self.data.model_copy(update={"shards": shards})})

    def paths(self) -> dict[str, str]:
        """The files and directories that must exist, each with the setting that names it."""
        named = dict(_paths(self.anchored(), ""))
        named.pop(str(resolved(self.run.dir)), None)
        if not is_remote(self.data.shards, self.data.allow_pipe):
            named[str(resolved(Path(self.data.shards)) / "index.json")] = "data.shards"
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


def budgets_digest(config: RunConfig) -> str:
    """SHA-256 of the constraints as they are stated."""
    stated = {name: constraint.model_dump(mode="json") for name, constraint in config.constraints.items()}
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


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
    return resolved(tree) if isinstance(tree, Path) else tree
