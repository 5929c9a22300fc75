"""A Gaussian path ``x_t = a x0 + s eps``, addressed by log-SNR ``l = log(a^2 / s^2)``.

At a given l all paths noise alike, up to the scale of x_t. So losses, windows, budgets and probes speak of l alone. A
process says what is particular to its path: a(l) and s(l), which time the network is given, what the network's output
means, and which solvers sample along it (Kingma & Gao, arXiv 2303.00848).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cdt.errors import InputError


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Values [B] in the shape [B, 1, ..., 1], to be multiplied with x [B, ...]."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


class Process(ABC):
    """A new path is one subclass in one file, and one line in ``cdt.diffusion.processes.PROCESSES``."""

    logsnr_min: float
    """At the noise end."""
    logsnr_max: float
    """At the data end."""
    prediction: str
    """What the network's output means."""
    samplers: dict[str, str]
    """Solvers that sample along the path: a name to the class of diffusers."""

    @abstractmethod
    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """``a(l)`` and ``s(l)``, each in the shape of ``logsnr``."""

    @abstractmethod
    def network_time(self, logsnr: Tensor) -> Tensor:
        """The time that the network is given at log-SNRs [B]: [B]. Values outside of the range are clamped."""

    @abstractmethod
    def logsnr(self, time: Tensor) -> Tensor:
        """The inverse of ``network_time``: [B]."""

    @abstractmethod
    def eps_of(self, output: Tensor, x: Tensor, logsnr: Tensor) -> Tensor:
        """``eps_theta`` [B, ...] from the network's output at x_t [B, ...] and log-SNR [B]."""

    @abstractmethod
    def x0_of(self, output: Tensor, x: Tensor, logsnr: Tensor) -> Tensor:
        """``x0_theta`` [B, ...] from the same."""

    @abstractmethod
    def simple_weight(self, logsnr: Tensor) -> Tensor:
        """What the path's own unweighted loss weighs the squared eps error with, at log-SNR drawn uniformly: [B]."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """Of all that samples depend on; equal where two processes are the same."""

    earlier_fingerprints: Sequence[bytes] = ()
    """What earlier versions of cdt may have computed for the same path."""

    @abstractmethod
    def same_path(self, other: Process) -> bool:
        """Whether a time means the same noise level to both."""

    @abstractmethod
    def check_steps(self, sampler: str, steps: int) -> None:
        """Raises InputError unless this solver, one of ``samplers``, samples correctly with ``steps`` steps."""

    @abstractmethod
    def scheduler(self, sampler: str, steps: int, *, bounded: bool = True) -> Any:
        """A fresh scheduler of diffusers, its timesteps set; ``sampler`` is a key of ``samplers``.

        For ``bounded`` data (see ``cdt.data.format.header.is_bounded``) predictions of x0 are clipped to [-1, 1].
        Raises InputError for unsuitable ``steps``.
        """

    def check_sampler(self, sampler: str, steps: int) -> None:
        """Raises InputError unless the solver samples along this path, correctly with ``steps`` steps."""
        if sampler not in self.samplers:
            raise InputError(
                f"sampler.name: {sampler} does not sample along this path; take {', '.join(self.samplers)}"
            )
        self.check_steps(sampler, steps)

    def noised(self, x0: Tensor, logsnr: Tensor, eps: Tensor) -> Tensor:
        """``x_t = a x0 + s eps`` for x0, eps [B, ...] and log-SNRs [B]."""
        a, s = (per_sample(coefficient, x0) for coefficient in self.coefficients(logsnr))
        return a * x0 + s * eps

    def scale_in(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """x_t [B, ...] as the network reads it."""
        return x

    def level(self, u: Tensor) -> Tensor:
        """The log-SNR to train at, from a uniform draw u [B]: uniform over the range."""
        return self.logsnr_min + u * (self.logsnr_max - self.logsnr_min)

    def sampling_start(self, noise: Tensor) -> Tensor:
        """What a solver starts from, given standard normal noise [B, ...]."""
        return noise

    def sampling_input(self, x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """What the network reads of x [B, ...] at a scheduler's timestep: its input, and its time [B]."""
        return x, timestep.to(x.device, x.dtype).expand(len(x))
