"""Adapters: what they add, what of them is trained, what they are merged into, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cdt.errors import InputError
from cdt.networks.adapter import adapted, check_peft, merged, with_weights
from cdt.networks.build import build_network
from cdt.networks.config import AdapterConfig, DiTConfig, NetworkConfig, UNetConfig

# Of peft and what it needs, while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
pytest.importorskip("peft", reason="the extra lora")
SHAPE = (1, 8, 8)
NETWORKS: dict[str, NetworkConfig] = {
    "unet": UNetConfig(channels=(8, 16), layers_per_block=1, norm_groups=4),
    "dit": DiTConfig(patch=4, width=16, depth=1, heads=2),
}

FIRST = "blocks.0.attention_out"


def cut(part: str, dim: int) -> Callable[[dict[str, Tensor]], None]:
    """The first row or column of a part of the first adapter."""

    def change(weights: dict[str, Tensor]) -> None:
        name = f"{FIRST}.{part}.weight"
        weights[name] = weights[name].narrow(dim, 0, 1)

    return change


def build(kind: str) -> nn.Module:
    """Other values than those of its start, at which a DiT answers 0."""
    torch.manual_seed(0)
    return scattered(build_network(NETWORKS[kind], SHAPE)).eval()


@torch.no_grad()
def scattered(network: nn.Module) -> nn.Module:
    for weight in network.parameters():
        weight += 0.1 * torch.randn_like(weight)
    return network


@torch.no_grad()
def answers(network: nn.Module) -> torch.Tensor:
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    return network(x, torch.tensor([1.5, 400.0, 990.0]))


@pytest.mark.parametrize("kind", NETWORKS)
def test_new_adapters_add_nothing(kind: str) -> None:
    assert torch.equal(answers(adapted(build(kind), AdapterConfig(rank=2)).eval()), answers(build(kind)))


@pytest.mark.parametrize("layers", ["all", "attention"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_merged_they_are_the_adapted_network(kind: str, layers: str) -> None:
    network = scattered(adapted(build(kind), AdapterConfig.model_validate({"rank": 3, "layers": layers}))).eval()
    plain = build(kind)
    before = answers(plain)
    plain.load_state_dict(merged(network.state_dict()))
    torch.testing.assert_close(answers(plain), answers(network), rtol=1e-4, atol=1e-5)
    assert (answers(plain) - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", NETWORKS)
def test_they_alone_are_trained(kind: str) -> None:
    def trained(layers: str) -> dict[str, int]:
        network = adapted(build(kind), AdapterConfig.model_validate({"rank": 2, "layers": layers}))
        return {name: weight.numel() for name, weight in network.named_parameters() if weight.requires_grad}

    everywhere, attention = trained("all"), trained("attention")
    assert all("lora_" in name for name in everywhere)
    layers = [layer for layer in build(kind).modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(everywhere) == 2 * len(layers)
    expected = sum(2 * (layer.weight[0].numel() + len(layer.weight)) for layer in layers)
    assert sum(everywhere.values()) == expected
    assert 0 < len(attention) < len(everywhere)
    assert attention.items() <= everywhere.items()


@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_of_the_plain_network_go_under_new_adapters(kind: str) -> None:
    plain = {name: torch.randn_like(weight) for name, weight in build(kind).state_dict().items()}
    network = adapted(build(kind), AdapterConfig(rank=2))
    network.load_state_dict(with_weights(network, plain))
    again = merged(network.state_dict())
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_weights_without_adapters_are_themselves() -> None:
    network = build("unet")
    weights = network.state_dict()
    assert merged(weights) == weights
    assert with_weights(network, weights) == weights


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop(f"{FIRST}.lora_A.default.weight"), "one of base, A and B is missing"),
        (lambda w: w.pop(f"{FIRST}.lora_B.default.weight"), "one of base, A and B is missing"),
        (lambda w: w.pop(f"{FIRST}.base_layer.weight"), "one of base, A and B is missing"),
        (lambda w: [w.pop(name) for name in list(w) if FIRST in name and "lora" in name], "base, A and B is missing"),
        (cut("lora_A.default", 0), r"B \[16, 2\] and A \[1, 16\] do not fit \[16, 16\]"),
        (cut("lora_A.default", 1), r"B \[16, 2\] and A \[2, 1\] do not fit \[16, 16\]"),
        (cut("lora_B.default", 0), r"B \[1, 2\] and A \[2, 16\] do not fit \[16, 16\]"),
        (cut("lora_B.default", 1), r"B \[16, 1\] and A \[2, 16\] do not fit \[16, 16\]"),
        (cut("base_layer", 0), r"do not fit \[1, 16\]"),
        (lambda w: [weight.fill_(3e38) for name, weight in w.items() if "lora" in name], "values that are not finite"),
        (lambda w: w.update({f"{FIRST}.lora_A.default.weight": torch.tensor(1.0)}), r"and A \[\] do not fit"),
    ],
)
def test_adapters_that_do_not_fit_are_not_merged(change: Callable[[dict[str, Tensor]], object], told: str) -> None:
    weights = adapted(build("dit"), AdapterConfig(rank=2)).state_dict()
    change(weights)
    with pytest.raises(ValueError, match=told):
        merged(weights)


def test_a_network_without_attention() -> None:
    with pytest.raises(InputError, match=r"adapter\.layers: the network has no attention"):
        adapted(nn.Sequential(nn.Conv2d(1, 1, 3)), AdapterConfig(layers="attention"))


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"adapter: it needs the package peft: `pip install cdt-diffusion\[lora\]`"):
        check_peft()
