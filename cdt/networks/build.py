"""Networks by kind: the table, and how one is built."""

from __future__ import annotations

from collections.abc import Callable

from cdt.networks.config import NetworkConfig
from cdt.networks.dit import DiT
from cdt.networks.network import Network
from cdt.networks.pretrained import load_pretrained
from cdt.networks.unet import build_unet

BUILDERS: dict[str, Callable[..., Network]] = {
    "unet": build_unet,
    "dit": DiT,
    "diffusers": load_pretrained,
}


def build_network(config: NetworkConfig, shape: tuple[int, int, int], *, checkpointing: bool = False) -> Network:
    """The network of a ``NetworkConfig`` for data of ``shape`` [C, H, W]; InputError where the two do not fit.

    It maps x [B, C, H, W] and times [B] to [B, C, H, W], in x's dtype whatever the weights' dtype.
    ``checkpointing`` recomputes activations in the backward pass instead of storing them.
    """
    return BUILDERS[config.kind](config, shape, checkpointing=checkpointing)
