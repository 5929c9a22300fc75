"""How far a model is from the pretrained one that it started from: nats, on samples that it was not trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from cdt.diffusion.loss import Network, nats, predict_eps, squared_error
from cdt.diffusion.noise import normals, stratified
from cdt.diffusion.process import Process
from cdt.evaluate.results import Divergence, Statistic

DRAWS = 4


@torch.no_grad()
def divergence_of(
    network: Network,
    teacher: Network,
    process: Process,
    samples: Tensor,
    *,
    window: float,
    statistic: Statistic = "distance",
    budget: float | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> Divergence:
    """The divergence of ``network`` from ``teacher`` on samples [N, C, H, W] of the teacher; both use ``process``.

    distance   ``D (l - l_min) / 2 * mean (eps_pre - eps_theta)^2``
    loss       ``D (l - l_min) / 2 * mean [(eps - eps_theta)^2 - (eps - eps_pre)^2]``

    Each sample is drawn ``DRAWS`` times, at noise levels that are spread over the window.
    """
    N, low = len(samples), process.logsnr_min
    position = torch.arange(N * DRAWS, device=samples.device)
    by_draw = []
    for part in position.split(batch_size):
        x0 = samples[part // DRAWS]
        logsnr = low + stratified(seed, part, N * DRAWS) * (window - low)
        eps = normals(seed, part, tuple(x0.shape[1:]))

        def predicted(x: Tensor, logsnr: Tensor, eps: Tensor) -> Tensor:
            return predict_eps(teacher, process, x, logsnr)

        if statistic == "distance":
            error = squared_error(network, process, x0, logsnr, eps, target=predicted)
        else:
            ours, theirs = (squared_error(each, process, x0, logsnr, eps) for each in (network, teacher))
            error = ours - theirs
        by_draw.append(nats(error, x0[0].numel(), low, window))
    by_sample = torch.cat(by_draw).reshape(N, DRAWS).mean(dim=1)
    error = float(by_sample.std() / N**0.5)
    return Divergence(float(by_sample.mean()), error, N, window, statistic, budget)
