"""Shares of generated samples, as classifiers see them: soft counts on samples of the EMA model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cdt.constraints import Constraint
from cdt.data.plan.order import stream_key
from cdt.diffusion.sampler import Sampler
from cdt.dual import Sums
from cdt.engine.ranks import Ranks
from cdt.errors import InputError
from cdt.judges import Judge, attribute_label, columns, load_judge


class GeneratedShares:
    """The mean posterior of each judged constraint's classes over fresh samples, drawn as they will be when used.

    Every judge sees the same samples. Each rank draws equally many, in equal batches.
    """

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
        self._share = -(-samples // ranks.world)
        paths = [constraint.judge for constraint in constraints.values()]
        self._judges: dict[Path, Judge] = {
            path: load_judge(path, sampler.shape) for path in set(paths) - {None} if path
        }
        self._columns = {
            i: (path, judged_columns(self._judges[path], name, constraint))
            for i, (path, (name, constraint)) in enumerate(zip(paths, constraints.items(), strict=True))
            if path is not None
        }
        self._m = len(constraints)

    def measure(self, network: nn.Module, period: int) -> Sums:
        """Sums of posterior mass, 0 to 1 per sample, over the samples of a period; a collective.

        Samples are a function of (seed, period), whatever the number of ranks (to what rounding a batch makes).
        """
        sums = np.zeros((3, self._m))
        if self._columns:
            images = self._sampler.draw(
                network,
                self._share,
                seed=stream_key(self._seed, f"generated {period}") >> 1,
                first=self._ranks.rank * self._share,
                device=self._ranks.device,
            )
            posteriors = {path: judge.probabilities(images) for path, judge in self._judges.items()}
            for i, (path, chosen) in self._columns.items():
                mass = posteriors[path][:, chosen].sum(dim=1).double()
                sums[:, i] = [mass.sum().item(), mass.square().sum().item(), torch.numel(mass)]
        return Sums(*self._ranks.sum(sums))

    @property
    def judged(self) -> np.ndarray:
        """Which constraints have a classifier: [m], bool."""
        return np.isin(np.arange(self._m), list(self._columns))


def judged_columns(judge: Judge, name: str, constraint: Constraint) -> list[int]:
    """What a classifier calls a constraint's samples: classes, or the values of one attribute.

    Raises InputError when it does not know them, or when the constraint speaks of both.
    """
    where = f"constraints.{name}"
    if constraint.classes and not constraint.where:
        return columns(judge, constraint.classes, f"{where}.class")
    if len(constraint.where) == 1 and not constraint.classes:
        return columns(judge, [attribute_label(*pair) for pair in constraint.where.items()], f"{where}.where")
    raise InputError(
        f"{where}: a classifier cannot tell {constraint.population()}: it knows classes, or the values of one attribute"
    )
