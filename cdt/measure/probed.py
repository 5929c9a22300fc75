"""Denoising losses and distances to the teacher, measured by the probe."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn

from cdt.constraints import DenoisingLoss, Statistic, TeacherDistance
from cdt.data.read.reader import ImageReader, Images
from cdt.dual import Sums
from cdt.errors import InputError
from cdt.measure.held_out import held_out
from cdt.measure.instrument import Setup, Warm
from cdt.measure.probe import Probe, ProbeSet
from cdt.measure.reference import Reference


class ProbedLosses:
    """Measured as differences to the warm model's, image by image."""

    measures: ClassVar[tuple[type[Statistic], ...]] = (DenoisingLoss, TeacherDistance)

    @classmethod
    def of(cls, setup: Setup) -> ProbedLosses:
        return cls(setup)

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        constraints = setup.requirements.constraints.values()
        self._own = np.flatnonzero([isinstance(each.statistic, self.measures) for each in constraints])
        self.baseline = np.zeros(0)
        """The warm model's loss of every image of the probe [G], nats; a checkpoint keeps it."""
        self._gap_probes: tuple[list[int], tuple[Probe, Probe]] | None = None
        self._held_out = held_out(setup.data, setup.probe, setup.index, setup.requirements.constraints)
        self._apart = self._held_out_samples()

    def _held_out_samples(self) -> dict[str, tuple[np.ndarray, Images]]:
        """Rows and their reader by constraint: of the data's other split, and of replay that is not trained on."""
        apart: dict[str, tuple[np.ndarray, Images]] = {}
        if self._held_out is not None:
            apart |= {name: (rows, self._held_out.reader) for name, rows in self._held_out.rows.items()}
        if (fresh := self._setup.fresh) is not None:
            reader, rows = ImageReader(fresh, self._setup.data.cache_mb), np.arange(fresh.count)
            constraints = self._setup.requirements.constraints
            replayed = [name for name, each in constraints.items() if each.samples.replayed]
            apart |= dict.fromkeys(replayed, (rows, reader))
        return apart

    @property
    def holds_out(self) -> bool:
        """Whether a constraint is measured on samples that are not trained on."""
        return bool(self._apart)

    def resume(self, windows: np.ndarray, baseline: np.ndarray) -> None:
        """Measures from now on as after a calibration that had these windows [m] and this baseline [G].

        Raises InputError if the baseline is of other images than the probe's.
        """
        self._set_windows(windows)
        if len(baseline) != self._probe.images:
            raise InputError(f"the checkpoint has the losses of {len(baseline)} images, the probe {self._probe.images}")
        self.baseline = baseline

    def _set_windows(self, windows: np.ndarray) -> None:
        """Makes the probe, on log-SNR windows [m]; a function of data and seed, so a restarted worker has the same."""
        self._windows, self._gap_probes = windows, None
        self._probe = self._make_probe([self._samples(i, apart=self._is_held_out(i)) for i in self._own.tolist()])

    def _is_held_out(self, i: int) -> bool:
        return self._setup.requirements.names[i] in self._apart

    def _samples(self, i: int, *, apart: bool) -> ProbeSet:
        """What constraint i is measured on: held-out samples (``apart``) or those that are trained on."""
        requirements = self._setup.requirements
        name = requirements.names[i]
        rows, reader = self._apart[name] if apart else (requirements.rows[name], self._setup.reader)
        of_teacher = isinstance(requirements.constraints[name].statistic, TeacherDistance)
        return ProbeSet(name, rows, reader, float(self._windows[i]), of_teacher)

    def _make_probe(self, sets: list[ProbeSet]) -> Probe:
        setup = self._setup
        probe = Probe(sets, setup.probe.draws, setup.process, setup.ranks, seed=setup.seed, chunk=setup.chunk)
        if setup.teacher is not None and any(each.of_teacher for each in sets):
            probe.teach(setup.teacher())
        return probe

    def calibrate(self, network: nn.Module, windows: np.ndarray) -> Warm:
        """Measures the warm model and the references; later measurements are paired with this one, image by image."""
        self._set_windows(windows)
        measured = self._probe.measure(network, self._probe.all)
        self.baseline = self._probe.gather(measured)
        losses = dict(zip(self._own.tolist(), self._probe.sums(measured).mean().tolist(), strict=True))
        return Warm(losses=losses, references=self._reference_losses(network, windows))

    def _reference_losses(self, network: nn.Module, windows: np.ndarray) -> dict[int, float]:
        """The loss of each constraint's reference model on the same draws, or of this one on all data."""
        setup, requirements = self._setup, self._setup.requirements
        by_path: dict[Path, list[int]] = {}
        on_all: list[int] = []
        for i, constraint in enumerate(requirements.constraints.values()):
            match constraint.compared_with:
                case Path() as path:
                    by_path.setdefault(path, []).append(i)
                case "init":
                    assert setup.init is not None
                    by_path.setdefault(setup.init, []).append(i)
                case "base":
                    on_all.append(i)
                case _:
                    pass
        found: dict[int, float] = {}
        for path, chosen in by_path.items():
            reference = Reference(path, setup.index.shape, setup.process).to(setup.ranks.device)
            places = np.searchsorted(self._own, chosen)
            means = self._probe.sums(self._probe.measure(reference, places)).mean()[places]
            found |= dict(zip(chosen, means.tolist(), strict=True))
        if on_all:
            rows = np.arange(requirements.base)
            sets = [ProbeSet(f"all {i}", rows, setup.reader, float(windows[i])) for i in on_all]
            probe = self._make_probe(sets)
            means = probe.sums(probe.measure(network, probe.all)).mean()
            found |= dict(zip(on_all, means.tolist(), strict=True))
        return found

    def measure(self, network: nn.Module, chosen: np.ndarray, period: int) -> Sums:
        """Sums over images of the differences to the baseline, nats."""
        places = np.flatnonzero(np.isin(self._own, chosen))
        by_place = self._probe.sums(self._probe.measure(network, places).minus(self.baseline))
        sums = Sums.none(len(self._setup.requirements.names))
        for whole, values in zip(vars(sums).values(), vars(by_place).values(), strict=True):
            whole[self._own] = values
        return sums

    def held_out_gaps(self, network: nn.Module, lambdas: np.ndarray, room: int) -> dict[str, tuple[float, float]]:
        """loss_i on held-out samples minus that on training samples, nats, and its standard error. A collective.

        Of the constraints that are measured on held-out samples; of more than ``room``, those with the largest
        multipliers [m]. A model can satisfy a loss constraint by memorising few images: then the gap grows.
        """
        binding = sorted(filter(self._is_held_out, self._own.tolist()), key=lambda i: -abs(lambdas[i]))
        chosen = binding[:room]
        if self._gap_probes is None or self._gap_probes[0] != chosen:
            # The same noise levels and noise in both.
            apart, trained = (self._make_probe([self._samples(i, apart=a) for i in chosen]) for a in (True, False))
            self._gap_probes = chosen, (apart, trained)
        apart, trained = (probe.sums(probe.measure(network, probe.all)) for probe in self._gap_probes[1])
        gaps = apart.mean() - trained.mean()
        errors = np.hypot(apart.standard_error(), trained.standard_error())
        names = (self._setup.requirements.names[i] for i in chosen)
        return dict(zip(names, zip(gaps.tolist(), errors.tolist(), strict=True), strict=True))

    def describe_samples(self) -> str | None:
        """Whose losses are measured on held-out samples, where there are any."""
        return self._held_out and self._held_out.describe(self._setup.requirements.names[i] for i in self._own)
