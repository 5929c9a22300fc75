"""A run directory, opened: its configuration, its weights, and what can be done with them."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from cdt import filenames
from cdt.checkpoints.checkpoint import Opened, named_checkpoints, network_weights, open_checkpoint
from cdt.checkpoints.state import TrainState
from cdt.config import RunConfig
from cdt.data.facts import read_facts
from cdt.data.format.header import is_bounded
from cdt.diffusion.processes import make_process
from cdt.diffusion.sampler import BATCH, Sampler
from cdt.errors import DamagedWarning, InputError, RunError
from cdt.evaluate.results import Evaluation
from cdt.files import read_text, write_text
from cdt.networks.build import build_network
from cdt.networks.network import Network
from cdt.records import LIMIT
from cdt.runs.card import CardFacts, Requirement, model_card
from cdt.runs.export import export_pipeline
from cdt.runs.rows import read_calibration, read_journal
from cdt.settings import load_yaml, parse


class Run:
    """A trained or unfinished run. Raises InputError when the directory is none.

    ``which``: the checkpoint to open, ``last``, ``best`` (all requirements met, then the lowest loss) or its step. It
    is opened when it is first needed. If its files are not what its manifest says, ``last`` and ``best`` pass it over
    with a DamagedWarning, which names the one that is taken; a step raises InputError. ``check``: whether the weights
    are compared with their digests.
    """

    def __init__(self, directory: str | Path, which: str = "last", *, check: bool = True) -> None:
        self.directory, self.which, self.check = Path(directory), which, check
        path = self.directory / filenames.CONFIG
        if not self.directory.is_dir():
            raise InputError(f"no such directory: {self.directory}")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file")
        if not path.is_file():
            raise InputError(f"{self.directory} is no run directory: it has no config.yaml")
        self.config = parse(RunConfig, load_yaml(path, resolved=True), where=str(path))
        self.process = make_process(self.config.diffusion)

    @cached_property
    def _opened(self) -> Opened:
        return open_checkpoint(self.directory / filenames.CHECKPOINTS, self.which, check=self.check)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that ``which`` names. Raises InputError if there is none, RunError if none is intact."""
        return self._opened.path

    @property
    def state(self) -> TrainState:
        """The state of the checkpoint."""
        return self._opened.state

    @cached_property
    def data(self) -> dict[str, Any]:
        """What it was trained on, as data.json states it: split, shape, dtype, class_names, class_counts, source."""
        return dict(read_facts(self.directory / filenames.DATA))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        C, H, W = self.data["shape"]
        return C, H, W

    @property
    def bounded(self) -> bool:
        """Whether its images are pixels (``is_bounded``)."""
        return is_bounded(self.data["dtype"])

    def sampler(self, name: str | None = None, steps: int | None = None) -> Sampler:
        """As configured, or with another solver or number of steps."""
        changed = {key: value for key, value in (("name", name), ("steps", steps)) if value}
        return Sampler(self.config.sampler.model_copy(update=changed), self.process, self.shape, self.bounded)

    def network(self, *, raw: bool = False, device: str | torch.device = "cpu") -> Network:
        """The network in evaluation mode, with the EMA weights or the raw ones. Raises InputError or RunError."""
        network = build_network(self.config.resolved_network, self.shape)
        weights = network_weights(self.checkpoint, raw)
        try:
            network.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.checkpoint} is damaged or of another network: {reason}") from error
        return network.to(device).eval()

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        raw: bool = False,
        batch_size: int = BATCH,
        first: int = 0,
    ) -> Tensor:
        """Samples ``first`` to ``first + n - 1`` of ``seed``: [n, C, H, W] in [-1, 1], on the CPU.

        Raises InputError if the memory cannot hold them.
        """
        check_fits(n, self.shape)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = self.network(raw=raw, device=device)
        chosen = self.sampler(sampler, steps)
        return chosen.draw(network, n, seed=seed, first=first, batch_size=batch_size, device=device)

    def constraint_rows(self) -> list[dict[str, Any]]:
        """The last row of dual.jsonl of each constraint, in the order of the configuration; [] before the first."""
        last = {row["constraint"]: row for row in self.rows(filenames.DUAL)}
        return [last[name] for name in self.config.constraints if name in last]

    def rows(self, journal: str) -> list[dict[str, Any]]:
        """What a journal says: dual.jsonl, metrics.jsonl or events.jsonl; [] before it was begun."""
        return read_journal(self.directory, journal).rows

    def bad_samples(self) -> list[dict[str, Any]]:
        """The samples that could not be used, each once, as events.jsonl names them: kind, shard, key, reason."""
        found = [
            sample
            for event in self.rows(filenames.EVENTS)
            if event["event"] == "bad_data"
            for sample in event.get("samples", [])
        ]
        return list({(sample["shard"], sample["key"]): sample for sample in found}.values())

    def export(
        self, directory: str | Path, *, sampler: str | None = None, steps: int | None = None, raw: bool = False
    ) -> None:
        """Writes a diffusers pipeline (an own DiT: safetensors and its config), with a model card.

        Raises InputError when the directory is not empty, RunError when the disk refuses.
        """
        export_pipeline(self.network(raw=raw), self.sampler(sampler, steps), Path(directory), self.card_facts())

    def card_facts(self) -> CardFacts:
        """What the model card says of this run."""
        config, data = self.config, self.data
        windows = self.windows()
        rows = {row["constraint"]: row for row in self.constraint_rows()}
        unmeasured = {"lambda": 0.0, "loss": None, "threshold": None, "slack": None, "satisfied": None}
        requirements = []
        for name, constraint in config.constraints.items():
            row = rows.get(name, unmeasured)
            requirements.append(
                Requirement(
                    name=name,
                    asks=constraint.describe(),
                    budget=constraint.budget_in_nats,
                    window=windows.get(name),
                    lambda_=row["lambda"],
                    **{key: row[key] for key in ("threshold", "loss", "slack", "satisfied")},
                )
            )
        train = config.train
        return CardFacts(
            name=config.run.name,
            source=f"{data['source'].get('name', 'unknown source')}, split {data['split']}",
            class_counts=dict(zip(data["class_names"], data["class_counts"], strict=True)),
            shape=self.shape,
            network=config.resolved_network.kind,
            parameters=sum(weight.numel() for weight in network_weights(self.checkpoint).values()),
            training={
                **({} if config.init is None else {"fine-tuned from": _name_of(config.init)}),
                "steps": self.state.step,
                "of them warm start": train.warm_steps,
                "of them cool-down": train.cooldown_steps,
                "batch size": train.batch_size,
                **({} if config.adapter is None else {"adapters of rank": config.adapter.rank}),
                "learning rate": train.lr,
                "EMA decay": train.ema_decay,
                "seed": config.run.seed,
            },
            cdt_version=version("cdt-diffusion"),
            requirements=requirements,
            usage=f'import cdt\n\nimages = cdt.load("{config.run.name}").sample(16)',
            evaluation=self._evaluation(),
            library="cdt",
        )

    def calibration(self) -> list[dict[str, Any]]:
        """What calibration.json states of each constraint; [] before calibration. Raises InputError if damaged."""
        return read_calibration(self.directory)

    def windows(self) -> dict[str, float]:
        """The upper end of each constraint's log-SNR window, as the checkpoint has it; {} before calibration.

        Without the constraints on generated samples, which have none.
        """
        rows = [] if self.state.dual is None else self.state.dual["calibrations"]
        named = zip(self.config.constraints.items(), rows, strict=False)
        return {name: row["window"] for (name, each), row in named if not each.statistic.of_generated}

    def _evaluation(self) -> dict[str, Any] | None:
        """The object in evaluation.json; None if there is none, or if it is damaged, which is then said."""
        path = self.directory / filenames.EVALUATION
        if not path.is_file():
            return None
        try:
            return Evaluation.from_json(read_text(path, LIMIT)).to_tree()
        except InputError as error:
            warnings.warn(f"{path} is left out of the model card: {error}", DamagedWarning, stacklevel=2)
            return None


def check_fits(n: int, shape: tuple[int, int, int]) -> None:
    """Raises InputError if so many images of this shape do not fit into half of the free memory, as float32."""
    needed, free = 4 * n * math.prod(shape), psutil.virtual_memory().available
    if needed > free / 2:
        raise InputError(
            f"{n:,} samples of {list(shape)} take {needed / 2**30:,.0f} GiB, and {free / 2**30:,.0f} GiB of memory are "
            "free: draw fewer at a time, with other seeds"
        )


def has_checkpoint(directory: Path) -> bool:
    """Whether a run directory has a checkpoint, intact or not."""
    return bool(named_checkpoints(directory / filenames.CHECKPOINTS))


def write_card(run: Run) -> None:
    """The run's model card, as README.md of its directory. Raises RunError when the disk refuses."""
    save_text(run.directory / filenames.CARD, model_card(run.card_facts()))


def save_text(path: Path, text: str) -> None:
    """Writes a file of a run directory whole or not at all. Raises RunError when the disk refuses."""
    try:
        write_text(path, text)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def load(directory: str | Path, which: str = "last", *, check: bool = True) -> Run:
    """Opens a run directory at its ``last`` or ``best`` checkpoint, or at that of a step.

    What is damaged is passed over with a DamagedWarning. ``check=False``: its weights are taken as they are, without
    comparing them with their digests.
    """
    return Run(directory, which, check=check)


def _name_of(origin: Path) -> str:
    """Of a run's checkpoint or of a pipeline, for the model card."""
    return f"{origin.parent.parent.name}, {origin.name}" if origin.parent.name == filenames.CHECKPOINTS else origin.name
