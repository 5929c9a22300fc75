"""The variance-preserving path: ``a^2 + s^2 = 1``, in discrete time.

Time is diffusers' timestep ``t in [0, T-1]``. A table gives ``l(t)`` at the integers, where it equals the exported
betas exactly; in between it is linear. So networks can be conditioned on a continuous ``t`` and still run in any
diffusers scheduler.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdt.diffusion.betas import logsnr_table
from cdt.diffusion.config import DiffusionConfig
from cdt.diffusion.process import Process, per_sample
from cdt.diffusion.samplers import VARIANCE_PRESERVING
from cdt.errors import InputError


class VariancePreserving(Process):
    """``l(t)``, its inverse, and the betas that schedulers of diffusers are built with."""

    samplers = VARIANCE_PRESERVING

    def __init__(self, logsnr_table: np.ndarray, prediction: str = "epsilon") -> None:
        """``logsnr_table`` [T], falling; ``prediction``: what the network's output means (diffusers' names)."""
        self.table = np.asarray(logsnr_table, dtype=np.float64)
        self.prediction = prediction
        self.timesteps = len(self.table)
        self.logsnr_max, self.logsnr_min = float(self.table[0]), float(self.table[-1])
        spacing = -np.diff(self.table)
        self._density = torch.as_tensor(
            (self.logsnr_max - self.logsnr_min) / (spacing * (self.timesteps - 1)), dtype=torch.float32
        )

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> VariancePreserving:
        path = cls(logsnr_table(config), config.prediction)
        path.earlier_fingerprints = [cls(logsnr_table(config, np), config.prediction).fingerprint()]
        return path

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """``a(t)^2`` at the integer timesteps: [T]."""
        return 1 / (1 + np.exp(-self.table))

    @property
    def betas(self) -> np.ndarray:
        """``beta_t = 1 - a(t)^2 / a(t-1)^2``, with a(-1) = 1: [T], the ``trained_betas`` of a diffusers scheduler."""
        cumprod = self.alphas_cumprod
        return 1 - cumprod / np.concatenate([[1.0], cumprod[:-1]])

    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """``a = sqrt(sigmoid(l))``, ``s = sqrt(sigmoid(-l))``."""
        return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()

    def logsnr(self, time: Tensor) -> Tensor:
        """``l(t)`` for continuous timesteps [B] in [0, T-1]."""
        table = torch.as_tensor(self.table, device=time.device, dtype=torch.float32)
        low = time.floor().long().clamp(0, self.timesteps - 2)
        return torch.lerp(table[low], table[low + 1], time.float() - low)

    def network_time(self, logsnr: Tensor) -> Tensor:
        """The timestep ``t(l)``."""
        table = torch.as_tensor(self.table, device=logsnr.device, dtype=torch.float32)
        logsnr = logsnr.float().clamp(self.logsnr_min, self.logsnr_max)
        low = (torch.searchsorted(-table, -logsnr, right=True) - 1).clamp(0, self.timesteps - 2)
        return low + (table[low] - logsnr) / (table[low] - table[low + 1])

    def eps_of(self, output: Tensor, x: Tensor, logsnr: Tensor) -> Tensor:
        """For v-prediction ``v = a eps - s x0``, so ``eps = a v + s x``; of x0, ``eps = (x - a x0) / s``.

        Salimans & Ho, arXiv 2202.00512, appendix D.
        """
        if self.prediction == "epsilon":
            return output
        a, s = (per_sample(coefficient, x) for coefficient in self.coefficients(logsnr))
        return a * output + s * x if self.prediction == "v_prediction" else (x - a * output) / s

    def x0_of(self, output: Tensor, x: Tensor, logsnr: Tensor) -> Tensor:
        """For v-prediction ``x0 = a x - s v``; from a prediction of eps, ``x0 = (x - s eps) / a``."""
        if self.prediction == "sample":
            return output
        a, s = (per_sample(coefficient, x) for coefficient in self.coefficients(logsnr))
        return a * x - s * output if self.prediction == "v_prediction" else (x - s * output) / a

    def simple_weight(self, logsnr: Tensor) -> Tensor:
        """``|dt/dl| (logsnr_max - logsnr_min)/(T-1)``: t uniform on [0, T-1] (Ho et al., arXiv 2006.11239, eq. 14)."""
        interval = self.network_time(logsnr).long().clamp(max=len(self._density) - 1)
        return self._density.to(logsnr.device)[interval]

    def fingerprint(self) -> bytes:
        return self.table.tobytes() + self.prediction.encode()

    def same_path(self, other: Process) -> bool:
        if not isinstance(other, VariancePreserving) or self.timesteps != other.timesteps:
            return False
        return bool(abs(self.table - other.table).max() <= 1e-9)

    def check_steps(self, sampler: str, steps: int) -> None:
        check_steps(sampler, steps, self.timesteps)

    def scheduler(self, sampler: str, steps: int, *, bounded: bool = True) -> Any:
        """It starts at the last timestep and ends at x0 (DDIM whose steps do not divide the timesteps may end at
        timestep 0). Without clipping, single samples of eps-predictors blow up at the noise end: ``thresholding`` with
        ``sample_max_value`` 1 clips and, unlike ``clip_sample``, all schedulers have it.
        """
        self.check_sampler(sampler, steps)
        import diffusers  # seconds to import: configurations are read without it

        scheduler = getattr(diffusers, self.samplers[sampler])(
            num_train_timesteps=self.timesteps,
            trained_betas=self.betas.tolist(),
            prediction_type=self.prediction,
            timestep_spacing="trailing",
            thresholding=bounded,
            sample_max_value=1.0,
        )
        with warnings.catch_warnings():
            # Of NumPy 2 about the way in which diffusers turns a tensor into an array.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            scheduler.set_timesteps(steps)
        return scheduler


def check_steps(sampler: str, steps: int, timesteps: int) -> None:
    """Raises InputError unless diffusers draws correctly with ``steps`` of ``timesteps``."""

    def fits(n: int) -> bool:
        # "trailing" spacing counts down in floats: rounding can add a step, at timestep -1.
        evenly_spaced = len(np.arange(timesteps, 0, -timesteps / n)) == n
        # DDIMScheduler steps to t - T // n, next time it starts from the rounded t - T / n: up to one timestep apart,
        # which is negligible only against long steps (on Gaussian data the deviation comes out 2 % too large at 30
        # steps of 1,000, 9 % at 120, 115 % at 600).
        consistent = sampler != "ddim" or timesteps % n == 0 or 20 * n <= timesteps
        return evenly_spaced and consistent

    if steps > timesteps:
        raise InputError(f"sampler.steps: {steps} is more than the {timesteps} timesteps of the noise schedule")
    if not fits(steps):
        below = next(n for n in range(steps, 0, -1) if fits(n))
        above = next(n for n in range(steps, timesteps + 1) if fits(n))
        raise InputError(
            f"sampler.steps: {sampler} is inaccurate with {steps} steps over {timesteps} timesteps; "
            f"take {below} or {above}"
        )
