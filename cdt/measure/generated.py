"""Shares of generated samples, as classifiers see them: soft counts on samples of the EMA model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from cdt.constraints import Constraint, GeneratedShare, Statistic
from cdt.data.plan.order import stream_key
from cdt.diffusion.sampler import Sampler
from cdt.dual import Sums
from cdt.dual.links import negative_log
from cdt.engine.ranks import Ranks
from cdt.errors import InputError, at
from cdt.judges import Judge, attribute_column, columns, load_judge
from cdt.measure.instrument import Setup, Warm

Columns = dict[int, tuple[Path, list[int]]]
"""By the positions of constraints: who judges, and which of its labels count."""


class GeneratedShares:
    """The mean posterior of each judged constraint's classes over fresh samples, drawn as they will be when used.

    Every judge sees the same samples. Each rank draws equally many, in equal batches; what is drawn beyond
    ``samples`` does not count.
    """

    measures: ClassVar[tuple[type[Statistic], ...]] = (GeneratedShare,)

    def __init__(
        self,
        constraints: Mapping[str, Constraint],
        sampler: Sampler,
        ranks: Ranks,
        *,
        samples: int,
        seed: int,
    ) -> None:
        """``samples``: drawn per period, over all ranks."""
        self._sampler, self._ranks, self._seed = sampler, ranks, seed
        self._samples, self._share = samples, -(-samples // ranks.world)
        each = list(constraints.items())
        asked = {i: (name, share) for i, (name, constraint) in enumerate(each) if (share := constraint.warm_share)}
        self._judges: dict[Path, Judge] = {
            path: load_judge(path, sampler.shape) for path in {share.judge for _, share in asked.values()}
        }
        self._columns: Columns = {
            i: (share.judge, judged_columns(self._judges[share.judge], name, share))
            for i, (name, share) in asked.items()
        }
        self._steered: Columns = {
            i: found for i, found in self._columns.items() if isinstance(each[i][1].statistic, self.measures)
        }
        self._m = len(constraints)

    @classmethod
    def of(cls, setup: Setup) -> GeneratedShares:
        return cls(
            setup.requirements.constraints,
            setup.sampler,
            setup.ranks,
            samples=setup.probe.generated_samples,
            seed=setup.seed,
        )

    def calibrate(self, network: nn.Module, windows: np.ndarray) -> Warm:
        """Shares of the warm model, also of constraints that are measured otherwise later."""
        sums = self._drawn(network, self._columns, period=0)
        shares, (losses, _) = sums.share(), negative_log(sums, np.zeros(self._m))
        return Warm(
            losses={i: float(losses[i]) for i in self._steered}, shares={i: float(shares[i]) for i in self._columns}
        )

    def measure(self, network: nn.Module, chosen: np.ndarray, period: int) -> Sums:
        """Measures all shares, also those that are not ``chosen``: they use the same samples."""
        return self._drawn(network, self._steered, period)

    def _drawn(self, network: nn.Module, asked: Columns, period: int) -> Sums:
        """Sums of posterior mass, 0 to 1 per sample, over the samples of a period; a collective.

        Samples are a function of (seed, period), whatever the number of ranks (to what rounding a batch makes).
        """
        sums = np.zeros((3, self._m))
        if asked:
            first = self._ranks.rank * self._share
            images = self._sampler.draw(
                network,
                self._share,
                seed=stream_key(self._seed, f"generated {period}") >> 1,
                first=first,
                device=self._ranks.device,
            )[: max(self._samples - first, 0)]
            paths = {path for path, _ in asked.values()}
            posteriors = {path: self._judged(path, images) for path in paths}
            for i, (path, chosen) in asked.items():
                mass = posteriors[path][:, chosen].sum(dim=1).double()
                sums[:, i] = [mass.sum().item(), mass.square().sum().item(), torch.numel(mass)]
        return Sums(*self._ranks.sum(sums))

    def _judged(self, path: Path, images: torch.Tensor) -> torch.Tensor:
        with at(str(path)):
            return self._judges[path].probabilities(images)


def judged_columns(judge: Judge, name: str, share: GeneratedShare) -> list[int]:
    """The classifier's labels for the samples of constraint ``name``: classes, or the values of one attribute.

    Raises InputError when it does not know them, or when the constraint speaks of both.
    """
    where, samples = f"constraints.{name}", share.samples
    if samples.classes and not samples.where:
        return columns(judge, samples.classes, f"{where}.class")
    if len(samples.where) == 1 and not samples.classes:
        return [attribute_column(judge, *pair, f"{where}.where") for pair in samples.where.items()]
    raise InputError(
        f"{where}: a classifier cannot tell {samples.describe()}: it knows classes, or the values of one attribute"
    )
