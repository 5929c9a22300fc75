"""The probe: constraint losses on fixed samples, noise levels and noise, under the weights that will be shipped.

The same draws at calibration and at every dual step (common random numbers), so differences between them are nearly
free of sampling noise. What is left is how the images differ: a constraint's observations are the means of its images,
so that its standard error is that of a sample of images, not of draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdt.condition import Condition, Conditions
from cdt.data.plan.order import SubsetOrder, stream_key
from cdt.data.read.reader import Images, normalise
from cdt.diffusion.loss import Network, nats, predict_eps, squared_error
from cdt.diffusion.noise import normals, stratified
from cdt.diffusion.process import Process
from cdt.dual import Sums
from cdt.engine.ranks import Ranks


@dataclass(frozen=True)
class ProbeSet:
    """The samples that one constraint's loss is measured on, and the window of log-SNR."""

    name: str
    rows: np.ndarray
    reader: Images
    window: float
    of_teacher: bool = False
    """Whether the loss is the distance to a teacher's prediction, not to the noise."""
    conditions: Conditions | None = None
    """Those of the samples, by the rows of ``reader``; all sets have some, or none has."""


@dataclass(frozen=True)
class Measured:
    """One pass of the probe: the mean loss of each image in nats, those of other ranks 0."""

    values: np.ndarray
    """[G], float64, the images of all constraints one after the other."""
    here: np.ndarray
    """[G], bool: measured by this rank."""

    def minus(self, baseline: np.ndarray) -> Measured:
        with np.errstate(invalid="ignore"):  # inf - inf, where a loss ran away
            return Measured(np.where(self.here, self.values - baseline, 0.0), self.here)


class Probe:
    """Images are dealt over the ranks; ranks with fewer draws are padded so that all run as many forwards."""

    def __init__(
        self, sets: Sequence[ProbeSet], draws: int, process: Process, ranks: Ranks, *, seed: int, chunk: int
    ) -> None:
        self._sets, self._draws, self._process, self._ranks, self._chunk = sets, draws, process, ranks, chunk
        self._windows = np.array([each.window for each in sets])
        self._key = stream_key(seed, "probe")
        orders = (SubsetOrder(each.rows, stream_key(seed, f"probe {each.name}")) for each in sets)
        chosen = [order.rows(0, min(len(each.rows), draws)) for order, each in zip(orders, sets, strict=True)]
        self._rows = np.concatenate([np.zeros(0, np.int64), *chosen])
        self._images = np.array([len(rows) for rows in chosen], dtype=np.int64)  # of each constraint
        self._first = np.concatenate([[0], np.cumsum(self._images)])[:-1]
        self._set_of = np.repeat(np.arange(len(sets)), self._images)
        self._taught: dict[int, Tensor] = {}
        self.all = np.arange(len(sets))
        """Positions of all constraints."""

    @property
    def images(self) -> int:
        """How many of all constraints together: G."""
        return len(self._rows)

    def teach(self, teacher: Network) -> None:
        """Keeps what ``teacher`` predicts at the draws of the sets that are compared with it: [draws, C, H, W] each.

        They are the same draws at every measurement. All ranks keep all of them, since which rank measures an image
        depends on what else is measured.
        """
        draw = np.arange(self._draws)
        for i in (i for i, each in enumerate(self._sets) if each.of_teacher):
            parts = np.split(draw, range(self._chunk, self._draws, self._chunk))
            self._taught[i] = torch.cat([self._predicted(teacher, i, part) for part in parts])

    def _predicted(self, teacher: Network, i: int, draw: np.ndarray) -> Tensor:
        sets, image = np.full(len(draw), i), self._image_of(i, draw)
        x0, logsnr, eps, _ = self._drawn(sets, draw, image)
        with torch.no_grad():
            x = self._process.noised(x0, logsnr, eps)
            return predict_eps(teacher, self._process, x, logsnr, condition=self._condition(sets, image))

    def _image_of(self, sets: np.ndarray | int, draw: np.ndarray) -> np.ndarray:
        # Neighbouring draws lie a golden section apart in noise level, so those of one image are spread.
        return self._first[sets] + draw * self._images[sets] // self._draws

    def measure(self, network: Network, chosen: np.ndarray) -> Measured:
        """The constraints ``chosen`` (ascending positions). A collective at ZeRO stage 3."""
        world, G = self._ranks.world, len(self._rows)
        sets = np.repeat(chosen, self._draws)
        draw = np.tile(np.arange(self._draws), len(chosen))
        image = self._image_of(sets, draw)
        rank = np.unique(image, return_inverse=True)[1] % world
        longest = int(np.bincount(rank, minlength=world).max(initial=0))
        mine = np.flatnonzero(rank == self._ranks.rank)
        padded = np.concatenate([mine, np.zeros(longest - len(mine), np.int64)])
        values = [
            self._losses(network, sets[part], draw[part], image[part])
            for part in np.split(padded, range(self._chunk, longest, self._chunk))
            if len(part)
        ]
        mine_values = np.concatenate([np.zeros(0), *values])[: len(mine)]
        count = np.bincount(image[mine], minlength=G)
        total = np.bincount(image[mine], weights=mine_values, minlength=G)
        return Measured(np.divide(total, count, out=np.zeros(G), where=count > 0), count > 0)

    def _losses(self, network: Network, sets: np.ndarray, draw: np.ndarray, image: np.ndarray) -> np.ndarray:
        x0, logsnr, eps, high = self._drawn(sets, draw, image)
        target = eps.clone()
        for i, predicted in self._taught.items():
            here = np.flatnonzero(sets == i)
            target[here] = predicted[draw[here]]
        error = squared_error(
            network,
            self._process,
            x0,
            logsnr,
            eps,
            target=lambda x, logsnr, eps: target,
            condition=self._condition(sets, image),
        )
        return nats(error, x0[0].numel(), self._process.logsnr_min, high).cpu().numpy()

    def _drawn(self, sets: np.ndarray, draw: np.ndarray, image: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, log-SNRs and noise of some draws, and the ends of their windows."""
        device = self._ranks.device
        x0 = torch.as_tensor(self._read(sets, image), device=device)
        position = torch.as_tensor(sets * self._draws + draw, device=device)
        high = torch.as_tensor(self._windows[sets], device=device)
        low = self._process.logsnr_min
        logsnr = low + stratified(self._key, position, self._draws) * (high - low).float()
        return x0, logsnr, normals(self._key, position, tuple(x0.shape[1:])), high

    def _read(self, sets: np.ndarray, image: np.ndarray) -> np.ndarray:
        images = [self._sets[i].reader.images(self._rows[image[sets == i]]) for i in np.unique(sets)]
        return normalise(np.concatenate(images)[_places(sets)])

    def _condition(self, sets: np.ndarray, image: np.ndarray) -> Condition | None:
        """That of each draw's image."""
        parts = [
            conditions.of(self._rows[image[sets == i]])
            for i in np.unique(sets)
            if (conditions := self._sets[i].conditions) is not None
        ]
        if not parts:
            return None
        return Condition.joined(parts).of(torch.as_tensor(_places(sets))).to(self._ranks.device)

    def sums(self, measured: Measured) -> Sums:
        """Adds up the images of each constraint over all ranks."""
        m, here = len(self._sets), measured.here
        columns = (measured.values, measured.values**2, here.astype(np.float64))
        return Sums(
            *self._ranks.sum(np.stack([np.bincount(self._set_of[here], weights=w[here], minlength=m) for w in columns]))
        )

    def gather(self, measured: Measured) -> np.ndarray:
        """All images' values [G] from every rank's."""
        return self._ranks.sum(measured.values)


def _places(sets: np.ndarray) -> np.ndarray:
    """Where each draw is once draws are sorted by their set, which keeps the order within a set: [draws]."""
    return np.argsort(np.argsort(sets, kind="stable"), kind="stable")
