"""Every constraint's statistic under given weights: denoising losses by the probe, shares of generated samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from cdt.config import RunConfig
from cdt.constraints import Calibration, Prior, Requirements
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader, Images
from cdt.diffusion.loss import Network
from cdt.diffusion.process import Process
from cdt.diffusion.sampler import Sampler
from cdt.dual import DualProblem, DualState, Sums, measured_next
from cdt.engine.ranks import Ranks
from cdt.measure.generated import GeneratedShares
from cdt.measure.held_out import held_out
from cdt.measure.probe import Probe, ProbeSet
from cdt.measure.reference import Reference


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
        teacher: Callable[[], Network] | None = None,
        fresh: Index | None = None,
    ) -> None:
        """``index`` is the data's, ``reader`` has all rows; ``teacher`` gives the pretrained network in fp32, whose
        ``fresh`` samples are not trained on."""
        self._teacher = teacher
        self._gap_probes: tuple[list[int], tuple[Probe, Probe]] | None = None
        self._config, self._index, self._reader = config, index, reader
        self._requirements, self._process, self._ranks = requirements, process, ranks
        self._chunk = max(1, config.train.batch_size // ranks.world)
        constraints = requirements.constraints
        self._by_loss = np.flatnonzero([not each.generated for each in constraints.values()])
        self.generated = GeneratedShares(
            constraints,
            Sampler(config.sampler, process, index.shape, index.bounded),
            ranks,
            samples=config.probe.generated_samples,
            seed=config.run.seed,
        )
        self.baseline = np.zeros(0)
        self.held_out = held_out(config, index, constraints)
        self._apart = self._held_out_samples(fresh)

    def _held_out_samples(self, fresh: Index | None) -> dict[str, tuple[np.ndarray, Images]]:
        """Rows and their reader by constraint: of the data's other split, and of replay that is not trained on."""
        apart: dict[str, tuple[np.ndarray, Images]] = {}
        if self.held_out is not None:
            apart |= {name: (rows, self.held_out.reader) for name, rows in self.held_out.rows.items()}
        if fresh is not None:
            reader, rows = ImageReader(fresh, self._config.data.cache_mb), np.arange(fresh.count)
            priors = [name for name, each in self._requirements.constraints.items() if isinstance(each, Prior)]
            apart |= dict.fromkeys(priors, (rows, reader))
        return apart

    @property
    def room(self) -> int:
        """How many constraints one probe measures."""
        return max(1, self._config.probe.limit // self._config.probe.draws)

    @property
    def holds_out(self) -> bool:
        """Whether a constraint is measured on samples that are not trained on."""
        return bool(self._apart)

    def set_windows(self, windows: np.ndarray) -> None:
        """Makes the probe, on log-SNR windows [m]; a function of data and seed, so a restarted worker has the same."""
        self._windows, self._gap_probes = windows, None
        self._probe = self._make_probe([self._samples(i, apart=self._is_held_out(i)) for i in self._by_loss.tolist()])

    def _is_held_out(self, i: int) -> bool:
        return self._requirements.names[i] in self._apart

    def _samples(self, i: int, *, apart: bool) -> ProbeSet:
        """What constraint i is measured on: held-out samples (``apart``) or those that are trained on."""
        name = self._requirements.names[i]
        rows, reader = self._apart[name] if apart else (self._requirements.rows[name], self._reader)
        of_teacher = self._requirements.constraints[name].of_teacher
        return ProbeSet(name, rows, reader, float(self._windows[i]), of_teacher)

    def _make_probe(self, sets: list[ProbeSet]) -> Probe:
        draws, seed = self._config.probe.draws, self._config.run.seed
        probe = Probe(sets, draws, self._process, self._ranks, seed=seed, chunk=self._chunk)
        if self._teacher is not None and any(each.of_teacher for each in sets):
            probe.teach(self._teacher())
        return probe

    def held_out_gaps(self, network: nn.Module, lambdas: np.ndarray) -> dict[str, tuple[float, float]]:
        """loss_i on held-out samples minus that on training samples, nats, and its standard error. A collective.

        Of the constraints that are measured on held-out samples; of many, those with the largest multipliers [m]. A
        model can satisfy a loss constraint by memorising few images: then the gap grows.
        """
        binding = sorted(filter(self._is_held_out, self._by_loss.tolist()), key=lambda i: -abs(lambdas[i]))
        chosen = binding[: self.room]
        if self._gap_probes is None or self._gap_probes[0] != chosen:
            # The same noise levels and noise in both.
            apart, trained = (self._make_probe([self._samples(i, apart=a) for i in chosen]) for a in (True, False))
            self._gap_probes = chosen, (apart, trained)
        apart, trained = (probe.sums(probe.measure(network, probe.all)) for probe in self._gap_probes[1])
        gaps = apart.mean() - trained.mean()
        errors = np.hypot(apart.standard_error(), trained.standard_error())
        names = (self._requirements.names[i] for i in chosen)
        return dict(zip(names, zip(gaps.tolist(), errors.tolist(), strict=True), strict=True))

    def told_of_samples(self) -> str | None:
        """Whose losses are measured on held-out samples, where there are any."""
        return self.held_out and self.held_out.told(self._requirements.names[i] for i in self._by_loss)

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
        measured = self._probe.measure(network, self._probe.all)
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
            sets = [ProbeSet(f"all {i}", rows, self._reader, float(windows[i])) for i in on_all]
            probe = self._make_probe(sets)
            means = probe.sums(probe.measure(network, probe.all)).mean()
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
