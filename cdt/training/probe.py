"""The probe: constraint losses on fixed samples, noise levels and noise, under the weights that will be shipped.

The same draws at calibration and at every dual step (common random numbers), so differences between them are nearly
free of sampling noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from cdt.data.plan import SubsetOrder, stream_key
from cdt.data.reader import Images, normalise
from cdt.diffusion.loss import Network, nats, squared_error
from cdt.diffusion.noise import normals, stratified
from cdt.diffusion.process import Process
from cdt.dual import Sums
from cdt.training.ranks import Ranks


class Probe:
    """m constraints times n draws, dealt over the ranks; ranks with fewer are padded so that all run as many forwards.

    Args:
        subsets: each constraint's rows, by name.
        windows: upper ends of the log-SNR windows [m].
    """

    def __init__(
        self,
        subsets: Mapping[str, np.ndarray],
        windows: np.ndarray,
        draws: int,
        reader: Images,
        process: Process,
        ranks: Ranks,
        *,
        seed: int,
        chunk: int,
    ) -> None:
        self._process, self._ranks, self._chunk = process, ranks, chunk
        self._windows, self._draws = windows, draws
        self._key = stream_key(seed, "probe")
        orders = (SubsetOrder(rows, stream_key(seed, f"probe {name}")) for name, rows in subsets.items())
        rows = np.concatenate([np.zeros(0, np.int64), *(order.rows(0, draws) for order in orders)])
        per_rank = -(-len(rows) // ranks.world)
        mine = np.arange(ranks.rank, per_rank * ranks.world, ranks.world)
        self._counted = mine < len(rows)
        self._draw = np.where(self._counted, mine, 0)
        self._constraint = self._draw // draws
        self._images = normalise(reader.images(rows[self._draw])) if len(rows) else np.zeros((0, 1, 1, 1))

    def measure(self, network: Network) -> np.ndarray:
        """This rank's draws in nats [d], float64. A collective at ZeRO stage 3."""
        chunks = [slice(start, start + self._chunk) for start in range(0, len(self._draw), self._chunk)]
        return np.concatenate([np.zeros(0), *(self._measure(network, chunk) for chunk in chunks)])

    def _measure(self, network: Network, chunk: slice) -> np.ndarray:
        device = self._ranks.device
        draw = torch.as_tensor(self._draw[chunk], device=device)
        images = torch.as_tensor(self._images[chunk], device=device)
        high = torch.as_tensor(self._windows[self._constraint[chunk]], device=device)
        low = self._process.logsnr_min
        logsnr = low + stratified(self._key, draw, self._draws) * (high - low).float()
        eps = normals(self._key, draw, tuple(images.shape[1:]))
        error = squared_error(network, self._process, images, logsnr, eps)
        return nats(error, images[0].numel(), low, high).cpu().numpy()

    def sums(self, values: np.ndarray) -> Sums:
        """Adds up one value per draw of this rank, over all ranks, by constraint."""
        m = len(self._windows)
        counted = self._counted.astype(np.float64)
        columns = [
            np.bincount(self._constraint, weights=w, minlength=m)
            for w in (values * counted, values**2 * counted, counted)
        ]
        return Sums(*self._ranks.sum(np.stack(columns)))

    def gather(self, values: np.ndarray) -> np.ndarray:
        """All draws' values [m * n] from every rank's."""
        whole = np.zeros(len(self._windows) * self._draws)
        np.add.at(whole, self._draw, values * self._counted)
        return self._ranks.sum(whole)

    def mine(self, whole: np.ndarray) -> np.ndarray:
        """This rank's draws [d] out of all [m * n]."""
        return whole[self._draw]
