"""What two real ranks of DeepSpeed do, in one start of two processes: ``two_ranks.py RANK FOLDER SHARDS``.

Each rank writes what it measured to ``FOLDER/rank-RANK.json``; conftest.py runs it, the tests judge the figures.
"""

from __future__ import annotations

import copy
import datetime as dt
import errno
import json
import math
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore

from cdt.checkpoints import checkpoint
from cdt.checkpoints.saving import Saver
from cdt.constraints import MaxLoss, MinFrequency, Population, Requirements
from cdt.data.config import DataConfig
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader
from cdt.data.stream import Batch, MixtureStream, StreamState
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.loss import Diffusion
from cdt.diffusion.noise import normals
from cdt.dual import Draws
from cdt.engine.config import EngineConfig
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine, Fragment, start_deepspeed
from cdt.engine.ranks import Ranks
from cdt.errors import RunError
from cdt.measure.probe import Probe, ProbeSet
from cdt.monitor.recorder import Recorder
from cdt.networks.build import build_network
from cdt.networks.config import DiTConfig
from cdt.training.calibrate import find_windows
from cdt.training.data_audit import DataAudit
from cdt.training.meter import Meter
from cdt.training.schedule import TrainConfig
from cdt.training.step import train_step
from cdt.training.sums import PeriodSums

SHAPE = (1, 8, 8)
STEPS = 20
TRAIN = TrainConfig(batch_size=8, warm_steps=STEPS, dual_steps=0, lr=2e-3, lr_warmup_steps=5, ema_decay=0.9)
DIFFUSION = Diffusion(DiffusionConfig())
WINDOWS = np.array([10.0, 0.0])
SEED = 5

CASES = {
    f"stage {stage}, {precision}{', two micro-batches' * (accumulation - 1)}": (stage, precision, accumulation)
    for accumulation, stages, precisions in ((1, (0, 1, 2, 3), ("fp32", "bf16")), (2, (2,), ("fp32",)))
    for stage in stages
    for precision in precisions
}


class Scaled(nn.Module):
    """A small network with one weight that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_network(DiTConfig(patch=4, width=32, depth=1, heads=2), SHAPE)
        self.gain = nn.Parameter(torch.tensor([1.51, 0.49, 1.26]), requires_grad=False)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.inner(x, timestep) * self.gain.sum().to(x.dtype)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Scaled()


class Plain:
    """What Engine is to training, in one process and without DeepSpeed."""

    accumulation, dtype = 1, torch.float32

    def __init__(self) -> None:
        self.network = build()
        self._trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, betas=TRAIN.betas, weight_decay=TRAIN.weight_decay)
        self.norms: list[float] = []

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> None:
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self.norms.append(float(nn.utils.clip_grad_norm_(self._trained, EngineConfig().clip)))
        self._optimizer.step()
        self._optimizer.zero_grad()


def batch_at(step: int, rank: int, world: int) -> Batch:
    """This rank's part of a made-up global batch; all its fields matter to the step."""
    B = TRAIN.batch_size
    positions = torch.arange(step * B, (step + 1) * B)[rank * B // world : (rank + 1) * B // world]
    return Batch(
        images=normals(99, positions, SHAPE) / 2,
        positions=positions,
        streams=positions % 3,
        cells=positions % 2,
        weights=0.5 + (positions % 4).float(),
        rows=positions,
    )


def train(engine: Any, ranks: Ranks, first: int, end: int, after: Callable[[int], None]) -> dict[str, Any]:
    """Steps ``first`` to ``end`` on this rank's batches: the losses, and the statistics of the period."""
    sums = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
    losses = []
    for step in range(first, end):
        batch = batch_at(step, ranks.rank, ranks.world)
        rate = TRAIN.learning_rate(step)
        loss = train_step(engine, DIFFUSION, batch, sums, learning_rate=rate, seed=SEED, batch_size=TRAIN.batch_size)
        losses.append(loss.item())
        after(step)
    return {"losses": losses, "sums": sums.take()}


@dataclass
class Trained:
    weights: dict[str, Tensor]
    norms: list[float]
    losses: list[float]
    sums: np.ndarray


def plainly() -> Trained:
    """One process, no DeepSpeed: what every fp32 case must agree with."""
    engine = Plain()
    told = train(engine, Ranks(0, 1, torch.device("cpu")), 0, STEPS, lambda step: None)
    weights = {name: weight.detach().clone() for name, weight in engine.network.named_parameters()}
    return Trained(weights, engine.norms, told["losses"], told["sums"])


def whole(engine: Engine, fragments: dict[str, Fragment] | None = None) -> dict[str, Tensor]:
    fragments = engine.fragments() if fragments is None else fragments
    return {name: engine.gather(name, fragment) for name, fragment in fragments.items()}


def distance(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Relative L2 over all weights together."""
    assert list(weights) == list(others)
    one, other = (torch.cat([weight.double().flatten() for weight in w.values()]) for w in (weights, others))
    return float((one - other).norm() / other.norm())


def same(weights: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return set(weights) == set(others) and all(torch.equal(weights[name], others[name]) for name in weights)


def uncovered(engine: Engine, fragments: dict[str, Fragment], ranks: Ranks) -> list[str]:
    """Weights whose elements the ranks do not hold exactly once, or not as fp32 without gradients."""
    pieces: list[Any] = [None] * ranks.world
    dist.all_gather_object(pieces, {name: (f.start, f.values.numel()) for name, f in fragments.items()})
    wrong = []
    for name, weight in build().named_parameters():
        held = np.zeros(weight.numel(), dtype=int)
        for start, count in (piece[name] for piece in pieces):
            held[start : start + count] += 1
        values = fragments[name].values
        if (held != 1).any() or values.dtype != torch.float32 or values.requires_grad or values.dim() != 1:
            wrong.append(name)
    return wrong


def forward_error(engine: Engine, fragments: dict[str, Fragment]) -> float:
    """The network with these weights against a plain one that has them, relative."""
    x, timestep = normals(7, torch.arange(4), SHAPE), torch.tensor([0.0, 10.5, 500.0, 999.0])
    plain = build()
    plain.load_state_dict(whole(engine, fragments))
    with engine.network_with(fragments) as network:
        out = network(x, timestep)
    with torch.no_grad():
        expected = plain.eval()(x, timestep)
    assert out.dtype == torch.float32
    assert not out.requires_grad
    return float((out - expected).norm() / expected.norm())


def state_at(step: int, ranks: Ranks) -> checkpoint.TrainState:
    stream = StreamState(step, {"base": 8 * step, "constraint a": 3}, [(0, [0.0]), (step + 4, [0.25])])
    return checkpoint.TrainState(step, ranks.world, 9, stream, {"baseline": [0.1, 0.2], "state": {"period": 1}})


def steps_of(config: EngineConfig) -> int:
    return STEPS if config.precision == "fp32" else STEPS // 4


@dataclass
class Case:
    """One engine from its first step to its last, and a second one that takes over in the middle."""

    config: EngineConfig
    ranks: Ranks
    folder: Path
    plain: Trained
    told: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Engine:
        steps = steps_of(self.config)
        engine = Engine(build, self.config, TRAIN, self.ranks)
        ema = Ema(engine)
        self.told["uncovered"] = uncovered(engine, engine.fragments(), self.ranks)
        self.told["uncovered_ema"] = uncovered(engine, ema.fragments, self.ranks)
        averages = {name: weight.double() for name, weight in whole(engine).items()}
        norms: list[float] = []

        def first_half(step: int) -> None:
            decay = TRAIN.ema_decay_at(step)
            ema.update(decay)
            for name, weight in whole(engine).items():
                averages[name] = decay * averages[name] + (1 - decay) * weight.double()
            norms.append(engine.gradient_norm())

        def second_half(step: int) -> None:
            ema.update(TRAIN.ema_decay_at(step))
            norms.append(engine.gradient_norm())

        first = train(engine, self.ranks, 0, steps // 2, first_half)
        self.told["ema_error"] = distance(whole(engine, ema.fragments), averages)
        self.told["forward_errors"] = [forward_error(engine, ema.fragments)]
        saver, saved = Saver(self.folder, engine, ema, self.ranks), (whole(engine), whole(engine, ema.fragments))
        saver.begin(state_at(steps // 2, self.ranks))
        second = train(engine, self.ranks, steps // 2, steps, second_half)
        self._finish(saver, saved, steps // 2)
        before = whole(engine)
        self.told["forward_errors"] += [forward_error(engine, f) for f in (ema.fragments, engine.fragments())]
        self.told["untouched"] = same(whole(engine), before)
        self.told["norms"] = norms
        if self.config.precision == "fp32":
            self._against_plain(engine, norms, first, second)
        self._against_forward_weights(engine)
        self._resume(steps, whole(engine), whole(engine, ema.fragments))
        saver.begin(state_at(steps, self.ranks))
        saver.finish()
        saver.close()
        self._beside(engine)
        return engine

    def _against_plain(self, engine: Engine, norms: list[float], *parts: dict[str, Any]) -> None:
        plain = self.plain
        losses = self.ranks.sum(np.array([loss for part in parts for loss in part["losses"]])) / self.ranks.world
        sums = self.ranks.sum(np.sum([part["sums"] for part in parts], axis=0))
        self.told["distance_from_plain"] = distance(whole(engine), plain.weights)
        self.told["norm_error"] = float(np.abs(np.array(norms) / plain.norms - 1).max())
        self.told["loss_error"] = float(np.abs(losses / plain.losses - 1).max())
        self.told["sums_error"] = float(np.abs(sums / plain.sums - 1).max())

    def _against_forward_weights(self, engine: Engine) -> None:
        """The weights of the forward pass are the masters, rounded; the masters are finer than bf16."""
        import deepspeed

        masters = whole(engine)
        weights = dict(engine.module.named_parameters())
        with deepspeed.zero.GatheredParameters(list(weights.values()), enabled=self.config.zero_stage == 3):
            low = {name: weight.detach().float() for name, weight in weights.items()}
            self.told["rounded"] = same({name: masters[name].to(engine.dtype).float() for name in masters}, low)
        trained = torch.cat([weight.flatten() for name, weight in masters.items() if name != "gain"])
        self.told["finer_than_bf16"] = float((trained.bfloat16().float() != trained).float().mean())

    def _beside(self, engine: Engine) -> None:
        """A frozen network for all of the run: what it answers, that nothing trains it, that steps go on unchanged."""
        low = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        frozen = build().requires_grad_(False)
        for place, weight in enumerate(frozen.parameters()):  # a new DiT answers 0
            weight += normals(place, torch.arange(1), tuple(weight.shape))[0] / 10
        x, timestep = normals(8, torch.arange(3), SHAPE), torch.tensor([1.5, 400.0, 990.0])
        teachers = [engine.frozen(copy.deepcopy(frozen), low, offload=offload) for offload in (False, True)]

        @torch.no_grad()
        def answered(network: nn.Module, dtype: torch.dtype) -> Tensor:
            return network(x.to(dtype), timestep).float()

        expected, before = answered(frozen.eval(), torch.float32), [answered(teacher, low) for teacher in teachers]
        train(engine, self.ranks, 0, 1, lambda step: None)
        after = [answered(teacher, low) for teacher in teachers]
        self.told["beside_errors"] = [float((each - expected).norm() / expected.norm()) for each in before]
        self.told["beside_unchanged"] = all(map(torch.equal, before, after))
        self.told["beside_holds"] = [sum(weight.numel() for weight in each.parameters()) for each in teachers]

    def _finish(self, saver: Saver, saved: tuple[dict[str, Tensor], dict[str, Tensor]], step: int) -> None:
        """A save that was written while training went on, against what there was when it began."""
        self.told["complete_before"] = [path.name for path in checkpoint.complete_checkpoints(self.folder)]
        path = saver.finish()
        self.told["saved_weights"] = same(checkpoint.read_weights(path, raw=True), saved[0])
        self.told["saved_ema"] = same(checkpoint.read_weights(path), saved[1])
        self.told["saved_state"] = checkpoint.read_state(path) == state_at(step, self.ranks)
        self.told["files"] = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        self.told["complete"] = [path.name for path in checkpoint.complete_checkpoints(self.folder)]

    def _poisoned(self, engine: Engine) -> None:
        """A batch of which one sample on the last rank has a loss that is not finite."""
        before, batch = whole(engine), batch_at(3, self.ranks.rank, self.ranks.world)
        batch.weights[-1] = math.nan if self.ranks.rank else 1.0
        sums = PeriodSums(WINDOWS, DIFFUSION, torch.device("cpu"))
        train_step(engine, DIFFUSION, batch, sums, learning_rate=TRAIN.lr, seed=SEED, batch_size=TRAIN.batch_size)
        self.told["poison_applied"] = engine.applied
        self.told["poison_left_weights"] = same(whole(engine), before)

    def _resume(self, steps: int, weights: dict[str, Tensor], averages: dict[str, Tensor]) -> None:
        path = self.folder / checkpoint.checkpoint_name(steps // 2)
        other = {name: weight + 1 for name, weight in build().state_dict().items()}
        engine = Engine(build, self.config, TRAIN, self.ranks, other)
        ema = Ema(engine)
        engine.load(path)
        ema.load(checkpoint.read_weights(path))
        self._poisoned(engine)
        train(engine, self.ranks, steps // 2, steps, lambda step: ema.update(TRAIN.ema_decay_at(step)))
        self.told["resumed_weights"] = same(whole(engine), weights)
        self.told["resumed_ema"] = same(whole(engine, ema.fragments), averages)


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


def save(folder: Path, step: int, engine: Engine, ema: Ema, ranks: Ranks) -> None:
    """All of it before it returns."""
    saver = Saver(folder, engine, ema, ranks)
    try:
        saver.begin(state_at(step, ranks))
        saver.finish()
    finally:
        saver.close()


def full_disks(engine: Engine, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Saving while one rank cannot write, at each place that writes: what each rank hears, and what is left."""
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
    told = {}
    for place, (rank, owner, name, failure, only) in places.items():
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
        told[place] = {"heard": heard, "left": left, "complete": complete}
        dist.barrier()
    save(folder, 2, engine, ema, ranks)
    told["afterwards"] = [path.name for path in checkpoint.complete_checkpoints(folder)]
    return told


@contextmanager
def listening(reader: ImageReader) -> Iterator[list[int]]:
    """Which rows are asked for, each question summed up in a number."""
    questions: list[int] = []
    images = reader.images

    def ask(rows: np.ndarray) -> np.ndarray:
        questions.append(int(rows.sum()))
        return images(rows)

    reader.images = ask
    yield questions
    reader.images = images


def probed(index: Index, ranks: Ranks) -> dict[str, Any]:
    """Probe and windows on this many ranks, in figures that one rank must repeat."""
    population = Population(index.classes, index.class_names, index.attributes, "digits")
    constraints = {
        "four": MinFrequency(classes=("4",), min_frequency=0.2),
        "low": MaxLoss(classes=("0", "1", "2"), max_loss=9.0, window="auto"),
        "mid": MaxLoss(classes=("1", "4"), max_loss=9.0, window=-0.5),
    }
    requirements = Requirements.bind(constraints, population)
    reader = ImageReader(index, 512)
    with listening(reader) as exemplars:
        windows = find_windows(requirements, reader, DIFFUSION.process, ranks, SEED)
    named = zip(requirements.rows.items(), windows.tolist(), strict=True)
    sets = [ProbeSet(name, rows, reader, window) for (name, rows), window in named]
    probe = Probe(sets, 9, DIFFUSION.process, ranks, seed=SEED, chunk=4)
    forwards = 0

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        nonlocal forwards
        forwards += 1
        return x * (0.9 - timestep[:, None, None, None] / 2000)

    measured = probe.measure(network, np.arange(3))
    whole, all_forwards = probe.gather(measured), forwards
    sums = probe.sums(measured)
    some = probe.sums(probe.measure(network, np.array([0, 2])).minus(whole))
    return {
        "windows": windows.tolist(),
        "exemplars": exemplars,
        "total": sums.total.tolist(),
        "squares": sums.squares.tolist(),
        "count": sums.count.tolist(),
        "gathered": whole.tolist(),
        "forwards": all_forwards,
        "again": [some.total.tolist(), some.count.tolist()],
    }


class Mischief:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def booby_trapped(engine: Engine, checkpoint: Path, ranks: Ranks) -> dict[str, Any]:
    """Loading a checkpoint in whose place somebody put code."""
    proof = checkpoint / f"executed by {ranks.rank}"
    for path in sorted((checkpoint / "engine").glob("*.pt"))[ranks.rank :: ranks.world]:
        torch.save({"module": Mischief(proof)}, path)
    dist.barrier()
    try:
        engine.load(checkpoint)
        heard = "nothing"
    except RunError as error:
        heard = str(error)
    dist.barrier()
    return {"heard": heard, "executed": sorted(path.name for path in checkpoint.glob("executed*"))}


def spoken(ranks: Ranks) -> dict[str, Any]:
    """What the ranks tell each other."""
    mine = np.array([0.1, 1e16, float(ranks.rank)]) * (1 + ranks.rank)
    meter = Meter(batch_size=8)
    for loss in (1.0, 2.0):
        meter.count(torch.tensor(loss + 10 * ranks.rank), waited=0.5 + ranks.rank)
    dist.barrier()
    return {
        "sum": ranks.sum(mine).tolist(),
        "from_first": ranks.from_first({"rank": ranks.rank, "array": [1.5, None]}),
        "any": [
            ranks.any_of(None),
            ranks.any_of("second" if ranks.rank == 1 else None),
            ranks.any_of(f"rank {ranks.rank}"),
        ],
        "meter": meter.take(ranks),
        "meter_anew": meter.take(ranks),
    }


def spoiled_copy(index: Index, root: Path, rows: list[int]) -> Index:
    """Shards with a bit of some images flipped."""
    shutil.copytree(index.root, root)
    for row in rows:
        with (root / index.shards[int(index.shard[row])].name).open("r+b") as file:
            file.seek(int(index.offset[row]) + 60)
            (found,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([found ^ 4]))
    return Index.load(root)


def accounted(index: Index, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Two epochs of a stream with bad samples, on this many ranks: what is recorded, and what the images sum to."""
    told: dict[str, Any] = {}
    for name, allowed, lost in (("within the budget", 0.5, 0), ("beyond the budget", 0.003, 0), ("lost", 0.5, 1)):
        stream = MixtureStream(
            DataConfig(shards=str(index.root), max_bad_fraction=allowed, cache_mb=0),
            index,
            {"four": np.flatnonzero(index.classes == 4)},
            np.zeros(index.count, np.int64),
            lambda lambdas: Draws(np.array([0.8, 0.2]), np.ones(2), np.ones(1)),
            lambdas=np.array([0.25]),
            batch_size=64,
            seed=SEED,
            rank=ranks.rank,
            world=ranks.world,
        )
        directory = folder / f"{name}, {ranks.world} ranks"
        recorder = Recorder(directory) if ranks.first else None
        account = DataAudit(stream, ranks, batch_size=64, epoch=320, log_steps=2)
        sums, heard = [], "nothing"
        try:
            for step in range(1, 11):
                batch = next(stream)
                weights = batch.positions[:, None, None, None].double() + 1
                sums.append(float(ranks.sum(np.array([(batch.images * weights).sum()]))[0]))
                stream.ledger.arrived[0] -= lost * (step == 3 and ranks.rank == ranks.world - 1)
                account.after(step, step == 10, recorder)
        except RunError as error:
            heard = str(error)
        if recorder:
            recorder.close()
        told[name] = {"heard": heard, "sums": sums, "steps": len(sums), "bad": sorted(stream.ledger.bad)}
    return told


def main(rank: int, folder: Path, shards: Path) -> None:
    torch.set_num_threads(1)
    store = FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=dt.timedelta(seconds=60))
    start_deepspeed()
    ranks, plain = Ranks.current(), plainly()
    told: dict[str, Any] = {"spoken": spoken(ranks), "probed": probed(Index.load(shards), ranks)}
    rows = list(range(0, 1200, 40))
    spoiled = spoiled_copy(Index.load(shards), folder / f"spoiled {rank}", rows)
    told["accounted"] = accounted(spoiled, ranks, folder)
    told["cases"], told["full_disks"] = {}, {}
    for name, (stage, precision, accumulation) in CASES.items():
        tree = {"zero_stage": stage, "precision": precision, "accumulation": accumulation}
        config = EngineConfig.model_validate(tree)
        case = Case(config, ranks, folder / name, plain)
        engine = case.run()
        told["cases"][name] = case.told
        if (precision, accumulation) == ("fp32", 1) and stage in (1, 3):
            told["full_disks"][f"stage {stage}"] = full_disks(engine, folder / f"full {stage}", ranks)
        if accumulation > 1:
            saved = folder / name / checkpoint.checkpoint_name(STEPS // 2)
            told["booby_trapped"] = booby_trapped(engine, saved, ranks)
    (folder / f"rank-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
