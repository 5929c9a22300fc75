"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): ``W + B A`` in place of W, of which B and A alone are trained.

peft builds them. Weights of an adapted network are stored as they are trained, and merged when they are read, so
sampling, evaluation and export get the plain network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdt.errors import InputError
from cdt.networks.config import AdapterConfig

_BASE, _A, _B = ".base_layer", ".lora_A.default", ".lora_B.default"
"""What peft puts into the names of an adapted layer's own weights and of its adapter's."""
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "qkv", "attention_out")


def check_peft() -> None:
    """Raises InputError when the package that makes adapters is not installed."""
    try:
        import peft  # noqa: F401 - seconds to import: only runs that train an adapter do
    except ImportError as error:
        raise InputError("adapter: it needs the package peft: `pip install cdt-diffusion[lora]`") from error


def adapted(network: nn.Module, config: AdapterConfig) -> nn.Module:
    """``network``, frozen, with new adapters, which add nothing yet. Raises InputError where no layer can have one."""
    from peft import LoraConfig, inject_adapter_in_model

    kinds = (nn.Linear, nn.Conv2d)
    names = [name for name, layer in network.named_modules() if isinstance(layer, kinds)]
    if config.layers == "attention":
        names = [name for name in names if name.endswith(_ATTENTION)]
    if not names:
        raise InputError("adapter.layers: the network has no attention; set all")
    # A scale of 1: the learning rate does what another would.
    settings = LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=names)
    return inject_adapter_in_model(settings, network)


def with_weights(network: nn.Module, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of an adapted network, by name: the ones of the plain network, beside the adapters' own."""
    adapters = network.state_dict()
    names = {name.replace(_BASE, ""): name for name in adapters if _BASE in name}
    own = {name: weight for name, weight in adapters.items() if _A in name or _B in name}
    return {names.get(name, name): weight for name, weight in plain.items()} | own


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the plain network, by name, each adapter added to what it adapts; weights without any are themselves."""
    plain = {name.replace(_BASE, ""): weight for name, weight in weights.items() if _A not in name and _B not in name}
    for name, A in weights.items():
        if _A in name:
            layer = name.replace(_A, "")
            plain[layer] = plain[layer] + _product(weights[name.replace(_A, _B)], A)
    return plain


def _product(B: Tensor, A: Tensor) -> Tensor:
    """``B A`` [out, in], or [out, in, h, w] of a convolution A [rank, in, h, w] followed by B [out, rank, 1, 1]."""
    return torch.tensordot(B.flatten(1), A, dims=1)
