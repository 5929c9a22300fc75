"""The Fréchet distance between real and generated images, in the features of a judge."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cdt.errors import InputError


def frechet_distance(features: nn.Module, real: Tensor, generated: Tensor, batch_size: int = 512) -> float:
    """``|m_r - m_g|² + Tr(S_r + S_g - 2 (S_r S_g)^(1/2))`` of the features' means m and covariances S.

    ``features`` maps images [B, C, H, W], which it gets unchanged, to [B, d]; d is its ``num_features``. Heusel et al.,
    arXiv 1706.08500, with these features instead of Inception's. Compare values only under the same judge, and only
    at equal numbers of samples (the estimate is biased upwards, more so for fewer samples).

    Raises InputError for fewer than two images on either side, whose covariance is undefined.
    """
    if min(len(real), len(generated)) < 2:
        raise InputError(f"a Fréchet distance needs 2 images a side: {len(real)} real, {len(generated)} generated")
    device = next(features.parameters(), torch.empty(0)).device
    # The caller measures only its own images: in a process group the metric would otherwise wait for all ranks.
    metric = FrechetInceptionDistance(features, sync_on_compute=False).to(device)
    with torch.inference_mode():
        for images, is_real in ((real, True), (generated, False)):
            for batch in images.split(batch_size):
                metric.update(batch.to(device), real=is_real)
        return max(0.0, float(metric.compute()))
