"""Every constraint's statistic under given weights: denoising losses by the probe, shares of generated samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from cdt.config import RunConfig
from cdt.constraints import Calibration, Prior, Requirements
from cdt.constraints.constraint import Constraint, Population
from cdt.data.index import Index
from cdt.data.reader import ImageReader, Images
from cdt.diffusion.process import Process
from cdt.dual import DualProblem, DualState, Sums, measured_next
from cdt.training.generated import GeneratedShares
from cdt.training.pretrained import Pretrained
from cdt.training.probe import Probe, ProbeSet
from cdt.training.ranks import Ranks
from cdt.training.reference import Reference

HELD_OUT = 32
"""Samples of a constraint in ``probe.split`` from which on they are taken instead of training samples."""


class Statistics:
    """What the dual step believes. Constraints are named by their positions 0 to m - 1."""

    def __init__(
        self,
        config: RunConfig,
        index: Index,
        reader: Images,
        requirements: Requirements,
        process: Process,
        ranks: Ranks,
        origin: Pretrained | None = None,
        fresh: Index | None = None,
    ) -> None:
        """``index`` and ``reader``: of all rows; ``origin``: what training started from; ``fresh``: its samples that
        are not trained on."""
        self._origin, self._fresh = origin, fresh
        self._config, self._index, self._reader = config, index, reader
        self._requirements, self._process, self._ranks = requirements, process, ranks
        self._chunk = max(1, config.train.batch_size // ranks.world)
        constraints = requirements.constraints
        self._by_loss = np.flatnonzero([not each.generated for each in constraints.values()])
        self.generated = GeneratedShares(
            constraints,
            index.shape,
            config.sampler,
            process,
            ranks,
            samples=config.probe.generated_samples,
            seed=config.run.seed,
            bounded=index.dtype == "uint8",
        )
        self.baseline = np.zeros(0)
        self._held_out: set[str] = set()

    @property
    def room(self) -> int:
        """How many constraints one probe measures."""
        return max(1, self._config.probe.limit // self._config.probe.draws)

    def set_windows(self, windows: np.ndarray) -> None:
        """Makes the probe, on log-SNR windows [m]; a function of data and seed, so a restarted worker has the same."""
        names = self._requirements.names
        samples, constraints = self._samples(), self._requirements.constraints
        sets = [
            ProbeSet(names[i], *samples[names[i]], float(windows[i]), constraints[names[i]].of_teacher)
            for i in self._by_loss.tolist()
        ]
        self._probe = self._make_probe(sets)
        if self._origin is not None and any(each.of_teacher for each in sets):
            self._probe.teach(self._origin.build(self._index.shape).to(self._ranks.device))

    def _make_probe(self, sets: list[ProbeSet]) -> Probe:
        draws, seed = self._config.probe.draws, self._config.run.seed
        return Probe(sets, draws, self._process, self._ranks, seed=seed, chunk=self._chunk)

    def _samples(self) -> dict[str, tuple[np.ndarray, Images]]:
        """Where each constraint's loss is measured: held-out samples where there are enough."""
        samples: dict[str, tuple[np.ndarray, Images]]
        samples = {name: (rows, self._reader) for name, rows in self._requirements.rows.items()}
        split = self._config.probe.split
        if split is not None:
            index = Index.load(self._config.data.shards, split)
            reader = ImageReader(index, self._config.data.cache_mb)
            for name, rows in held_out_rows(self._requirements.constraints, index).items():
                samples[name] = (rows, reader)
                self._held_out.add(name)
        if self._fresh is not None:
            reader, rows = ImageReader(self._fresh, self._config.data.cache_mb), np.arange(self._fresh.count)
            priors = [name for name, each in self._requirements.constraints.items() if isinstance(each, Prior)]
            samples |= dict.fromkeys(priors, (rows, reader))
        return samples

    def told_of_samples(self) -> str | None:
        """Whose losses are measured on held-out samples, where that was asked for."""
        split = self._config.probe.split
        if split is None:
            return None
        names = [self._requirements.names[i] for i in self._by_loss]
        held_out = ", ".join(name for name in names if name in self._held_out)
        trained = ", ".join(name for name in names if name not in self._held_out)
        places = {f"on samples of split {split} for ": held_out, "on training samples for ": trained}
        return "losses are measured " + "; ".join(place + found for place, found in places.items() if found)

    def calibrate(self, network: nn.Module, windows: np.ndarray) -> list[Calibration]:
        """Measures the warm model and the references; what comes later is paired with this, image by image."""
        requirements = self._requirements
        self.set_windows(windows)
        losses = self._losses(network)
        drawn = self.generated.measure(network, period=0)
        shares = np.where(self.generated.judged, drawn.share(), requirements.shares)
        references = self._reference_losses(network, windows)
        calibrations = []
        for i, constraint in enumerate(requirements.constraints.values()):
            calibration = Calibration(
                loss=float(-np.log(shares[i]) if constraint.generated else losses[i]),
                share=float(shares[i]),
                window=float(windows[i]),
                share_measured=bool(self.generated.judged[i]),
            )
            calibrations.append(replace(calibration, reference=references.get(i)))
        return calibrations

    def _losses(self, network: nn.Module) -> np.ndarray:
        """loss_i [m], nats; nan for the constraints that have none. Keeps each image's own as the baseline."""
        measured = self._probe.measure(network, np.arange(len(self._by_loss)))
        self.baseline = self._probe.gather(measured)
        return self._spread(self._probe.sums(measured).mean(), fill=np.nan)

    def _reference_losses(self, network: nn.Module, windows: np.ndarray) -> dict[int, float]:
        """The loss of each constraint's reference model on the same draws, or of this one on all data."""
        by_path: dict[Path, list[int]] = {}
        on_all: list[int] = []
        for i, constraint in enumerate(self._requirements.constraints.values()):
            match constraint.compared_with:
                case Path() as path:
                    by_path.setdefault(path, []).append(i)
                case "init":
                    assert self._config.init is not None
                    by_path.setdefault(self._config.init, []).append(i)
                case "base":
                    on_all.append(i)
                case _:
                    pass
        found: dict[int, float] = {}
        for path, chosen in by_path.items():
            reference = Reference(path, self._index.shape, self._process).to(self._ranks.device)
            measured = self._probe.measure(reference, np.searchsorted(self._by_loss, chosen))
            losses = self._spread(self._probe.sums(measured).mean(), fill=np.nan)
            found |= {i: float(losses[i]) for i in chosen}
        if on_all:
            rows = np.arange(self._requirements.base)
            probe = self._make_probe([ProbeSet(f"all {i}", rows, self._reader, float(windows[i])) for i in on_all])
            means = probe.sums(probe.measure(network, np.arange(len(on_all)))).mean()
            found |= dict(zip(on_all, means.tolist(), strict=True))
        return found

    def measure(self, network: nn.Module, problem: DualProblem, state: DualState) -> Sums:
        """Sums for the next dual step, [m] each: loss statistics as differences to the baseline. A collective."""
        chosen = measured_next(problem, state, self.room)
        positions = np.flatnonzero(np.isin(self._by_loss, chosen))
        measured = self._probe.measure(network, positions).minus(self.baseline)
        by_loss = self._probe.sums(measured)
        drawn = self.generated.measure(network, state.period + 1)
        columns = zip(vars(by_loss).values(), vars(drawn).values(), strict=True)
        return Sums(*(np.where(problem.generated, b, self._spread(a, fill=0.0)) for a, b in columns))

    def _spread(self, values: np.ndarray, fill: float) -> np.ndarray:
        """Values of the probe's constraints to all m."""
        whole = np.full(len(self._requirements.names), fill)
        whole[self._by_loss] = values
        return whole


def held_out_rows(constraints: Mapping[str, Constraint], index: Index) -> dict[str, np.ndarray]:
    """The rows of each constraint that has at least ``HELD_OUT`` samples in another split."""
    population = Population(index.classes, index.class_names, index.attributes, f"{index.root} ({index.split})")
    rows = {name: constraint.matching(name, population) for name, constraint in constraints.items()}
    return {name: found for name, found in rows.items() if len(found) >= HELD_OUT}
