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
    """Those of the plain network, by name, each adapter added to what it adapts; weights without any are themselves.

    Raises ValueError where an adapter does not fit what it adapts, or is missing.
    """
    plain = {name.replace(_BASE, ""): weight for name, weight in weights.items() if _A not in name and _B not in name}
    adapted = {name.replace(_BASE, "") for name in weights if _BASE in name and name.endswith(".weight")}
    down = {name.replace(_A, ""): weight for name, weight in weights.items() if _A in name}
    up = {name.replace(_B, ""): weight for name, weight in weights.items() if _B in name}
    if odd := sorted((adapted | down.keys() | up.keys()) - (adapted & down.keys() & up.keys())):
        raise ValueError(f"{odd[0]}: one of base, A and B is missing")
    for layer, A in down.items():
        plain[layer] = _adapted(layer, plain[layer], up[layer], A)
    return plain


def _adapted(layer: str, base: Tensor, B: Tensor, A: Tensor) -> Tensor:
    """``W + B A``. Torch would stretch sides of length 1 to fit."""
    sides = (len(base), *A.shape[1:]) if A.ndim and base.ndim else None
    if sides != base.shape or B.ndim < 2 or B.shape[:2] != (len(base), len(A)):
        found = f"B {list(B.shape)} and A {list(A.shape)}"
        raise ValueError(f"{layer}: {found} do not fit {list(base.shape)}")
    weight = base + _product(B, A)
    if not weight.isfinite().all():
        raise ValueError(f"{layer}: with its adapter it has values that are not finite")
    return weight


def _product(B: Tensor, A: Tensor) -> Tensor:
    """``B A`` [out, in], or [out, in, h, w] of a convolution A [rank, in, h, w] followed by B [out, rank, 1, 1]."""
    return torch.tensordot(B.flatten(1), A, dims=1)
