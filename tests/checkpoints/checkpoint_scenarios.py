"""Checkpoints of two ranks where one of them cannot write, and where somebody put code in a checkpoint's place."""

from __future__ import annotations

import errno
import functools
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from scenario import Place, Scenario
from small_engine import TRAIN, build, config_of, save

from cdt.checkpoints import checkpoint
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine
from cdt.errors import RunError


@dataclass(frozen=True)
class Met:
    """One full disk: what a rank heard, which entries the folder has then, which of them are complete checkpoints."""

    heard: str
    left: list[str]
    complete: list[str]


@dataclass(frozen=True)
class FullDisks:
    met: dict[str, Met]
    """By the place that could not write."""
    afterwards: list[str]
    """Complete checkpoints after one more save, with room."""


@dataclass(frozen=True)
class Trap:
    heard: str
    executed: list[str]


@contextmanager
def refusing_disk(bytes_per_file: int) -> Iterator[None]:
    """The operating system refuses this process to write files beyond a size: a full disk of one's own.

    Python ignores the signal that comes with it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_space(*_: object) -> Iterator[None]:
    raise OSError(errno.ENOSPC, "No space left on device")
    yield


@contextmanager
def failing(owner: Any, name: str, failure: Callable[[], Any], only: Callable[..., bool]) -> Iterator[None]:
    """``owner.name`` runs under a failure where ``only`` holds of its arguments."""
    true = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if not only(*arguments):
            return true(*arguments, **options)
        with failure():
            return true(*arguments, **options)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, true)


def full_disks(case: str, place: Place) -> FullDisks:
    """Saving while one rank cannot write, at each place that writes: what each rank hears, and what is left."""
    ranks, folder = place.ranks, place.folder / f"full disk at {case}"
    engine = Engine(build, config_of(case), TRAIN, ranks)
    ema = Ema(engine)
    save(folder, 1, engine, ema, ranks)
    writer = engine.network.checkpoint_engine

    def refused() -> Any:
        return refusing_disk(2000)

    def anything(*_: object) -> bool:
        return True

    def named(name: str) -> Callable[..., bool]:
        return lambda *arguments: any(name in str(argument) for argument in arguments)

    places = {
        "optimiser of rank 1, refused": (1, writer, "save", refused, anything),
        "optimiser of rank 1, full": (1, writer, "save", no_space, anything),
        "network of rank 0, refused": (0, writer, "save", refused, anything),
        "ema, refused": (0, safetensors.torch, "save_file", refused, named("ema")),
        "weights, full": (0, safetensors.torch, "save_file", no_space, named("weights")),
        "state, full": (0, Path, "write_text", no_space, named("state.json")),
        "manifest, full": (0, Path, "write_text", no_space, named("manifest.json")),
        "renaming, full": (0, Path, "rename", no_space, named("partial")),
        "folder, full": (0, Path, "mkdir", no_space, named("partial")),
    }
    met = {}
    for where, (rank, owner, name, failure, only) in places.items():
        if owner is not writer and engine.network.zero_optimization_stage() == 3:
            continue  # what is not DeepSpeed's is the same at each stage
        mine = failing(owner, name, failure, only) if ranks.rank == rank else failing(owner, name, failure, named("\0"))
        try:
            with mine:
                save(folder, 2, engine, ema, ranks)
            heard = "nothing"
        except RunError as error:
            heard = str(error)
        dist.barrier()
        left = sorted(path.name for path in folder.iterdir())
        complete = [path.name for path in checkpoint.complete_checkpoints(folder)]
        met[where] = Met(heard, left, complete)
        dist.barrier()
    save(folder, 2, engine, ema, ranks)
    return FullDisks(met, [path.name for path in checkpoint.complete_checkpoints(folder)])


class Mischief:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def booby_trapped(place: Place) -> Trap:
    """Loading a checkpoint in whose place somebody put code."""
    ranks, folder = place.ranks, place.folder / "booby-trapped"
    engine = Engine(build, config_of("stage 2, fp32, two micro-batches"), TRAIN, ranks)
    save(folder, 1, engine, Ema(engine), ranks)
    path = folder / checkpoint.checkpoint_name(1)
    proof = path / f"executed by {ranks.rank}"
    for part in sorted((path / "engine").glob("*.pt"))[ranks.rank :: ranks.world]:
        torch.save({"module": Mischief(proof)}, part)
    dist.barrier()
    try:
        engine.load(path)
        heard = "nothing"
    except RunError as error:
        heard = str(error)
    dist.barrier()
    return Trap(heard, sorted(found.name for found in path.glob("executed*")))


FULL_DISKS = {
    stage: Scenario(f"full disks at {stage}", functools.partial(full_disks, f"{stage}, fp32"))
    for stage in ("stage 1", "stage 3")
}
BOOBY_TRAPPED = Scenario("booby-trapped", booby_trapped)
SCENARIOS = [*FULL_DISKS.values(), BOOBY_TRAPPED]
