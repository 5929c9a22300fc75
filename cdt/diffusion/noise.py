"""Randomness as a function of (seed, position): the noise level and the noise of every sample ever trained on.

A counter-based generator has no state to save, to split or to lose: a run that is resumed or spread over another
number of ranks sees the same draws, on any device.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_EPS, _LEVEL, _SHIFT = 0, 1, 2  # domains of the counter, so that no two uses share a draw


def philox(key: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10: four 32-bit counters (int64 tensors, broadcast together) to four random 32-bit words.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3 and table 2.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    # The 64-bit product wraps into int64's sign bit; shift and mask recover both halves.
    product = word * constant
    return (product >> 32) & _WORD, product & _WORD


def _uniform(word: Tensor) -> Tensor:
    """32-bit words to float32 in (0, 1]."""
    return (word.float() + 0.5) * 2.0**-32


def normals(seed: int, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise eps: positions [B] (int64) to [B, *shape], float32, on the positions' device.

    Box-Muller on the four words of each counter (seed; block, domain, position).
    """
    size = math.prod(shape)
    blocks = torch.arange(-(-size // 4), device=positions.device)
    words = philox(
        seed, (blocks, torch.full_like(blocks, _EPS), (positions & _WORD)[:, None], (positions >> 32)[:, None])
    )
    u0, u1, u2, u3 = (_uniform(word) for word in words)
    radius0, radius1 = (-2 * u0.log()).sqrt(), (-2 * u2.log()).sqrt()
    angle0, angle1 = 2 * math.pi * u1, 2 * math.pi * u3
    draws = [radius0 * angle0.cos(), radius0 * angle0.sin(), radius1 * angle1.cos(), radius1 * angle1.sin()]
    return torch.stack(draws, dim=-1).flatten(1)[:, :size].unflatten(1, shape)


def stratified(seed: int, positions: Tensor, batch_size: int) -> Tensor:
    """One uniform draw per position [B] in [0, 1], stratified over each global batch of ``batch_size`` positions.

    Every stratum of width 1/batch_size holds one position of the batch. Neighbours in the batch lie a golden section
    apart, so that any run of neighbours (the samples of one class, the share of one rank) is spread as well.
    """
    batch, slot = positions // batch_size, positions % batch_size
    jitter = _uniform(_word(seed, _LEVEL, positions))
    shift = _word(seed, _SHIFT, batch) % batch_size
    stratum = (_golden_ranks(batch_size, positions.device)[slot] + shift) % batch_size
    return (stratum + jitter) / batch_size


def _word(seed: int, domain: int, counter: Tensor) -> Tensor:
    zero = torch.zeros_like(counter)
    return philox(seed, (zero, zero + domain, counter & _WORD, counter >> 32))[0]


@cache
def _golden_ranks(n: int, device: torch.device) -> Tensor:
    """A permutation [n]: the rank of ``frac(k phi)`` among k = 0, ..., n - 1, with phi the golden section.

    Of all Kronecker sequences this one fills [0, 1] most evenly (Niederreiter, "Random number generation and
    quasi-Monte Carlo methods", 1992, section 3.1).
    """
    golden = (math.sqrt(5) - 1) / 2
    return torch.frac(torch.arange(n, dtype=torch.float64) * golden).argsort().argsort().to(device)
