"""The diffusion transformer: closed forms of its parts, behaviour of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from cdt.errors import InputError
from cdt.networks.config import DiTConfig
from cdt.networks.dit import DiT, load_dit, sincos, sincos_2d

SMALL = DiTConfig(patch=2, width=16, depth=2, heads=2)


class Scheduler:
    """What a network is exported with; here nothing is written of it."""

    def save_pretrained(self, directory: Path) -> None:
        pass


SCHEDULER = Scheduler()


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every weight drawn at random: a new DiT gives zero whatever goes in."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def inputs(shape: tuple[int, int, int], batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *shape, generator=generator), torch.linspace(0.25, 999, batch)


@given(st.floats(0, 999), st.floats(0, 999), st.sampled_from([8, 16, 64]))
def test_sincos_inner_products_depend_on_the_distance_alone(a: float, b: float, width: int) -> None:
    embedded = sincos(torch.tensor([a, b]), width).double()
    rate = 10_000 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    distance = torch.tensor(a).double() - torch.tensor(b).double()
    torch.testing.assert_close(embedded[0] @ embedded[1], (rate * distance).cos().sum(), atol=5e-3, rtol=0)


def test_sincos_2d_is_the_row_then_the_column() -> None:
    grid = sincos_2d(3, 5, 16).reshape(3, 5, 16)
    torch.testing.assert_close(grid[..., :8], sincos(torch.arange(3), 8)[:, None].expand(3, 5, 8))
    torch.testing.assert_close(grid[..., 8:], sincos(torch.arange(5), 8)[None].expand(3, 5, 8))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (4, 32, 32), (3, 8, 16), (1, 256, 256)])
def test_a_new_network_predicts_zero_in_the_shape_of_its_input(shape: tuple[int, int, int]) -> None:
    patch = 16 if shape[1] == 256 else 2
    prediction = DiT(SMALL.model_copy(update={"patch": patch}), shape)(*inputs(shape))
    assert prediction.shape == (3, *shape)
    assert not prediction.any()


def test_patches_return_to_their_place() -> None:
    """With tokens = patches and no blocks at work, what is left is the final LayerNorm over each patch."""
    shape, patch = (3, 8, 12), 2
    network = DiT(DiTConfig(patch=patch, width=12, depth=1, heads=1), shape)
    network.position.zero_()
    for linear in (network.embed, network.predict):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    x, timestep = inputs(shape)
    blocks = rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=patch, q=patch)
    normed = (blocks - blocks.mean(-1, keepdim=True)) / blocks.std(-1, keepdim=True, correction=0)
    expected = rearrange(normed, "b h w (c p q) -> b c (h p) (w q)", p=patch, q=patch)
    torch.testing.assert_close(network(x, timestep), expected, atol=1e-4, rtol=1e-4)


def test_every_weight_learns_after_the_first_steps() -> None:
    network = DiT(SMALL, (1, 8, 8))
    x, timestep = inputs((1, 8, 8))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):  # zero-initialised layers hide those behind them for a step or two
        optimiser.zero_grad()
        (network(x, timestep) - x).square().mean().backward()
        optimiser.step()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_prediction_depends_on_fractional_timesteps_and_on_each_sample_alone() -> None:
    network = randomised(DiT(SMALL, (1, 8, 8)))
    x, timestep = inputs((1, 8, 8))
    together = network(x, timestep)
    alone = torch.cat([network(x[i : i + 1], timestep[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert (network(x, timestep + 0.5) - together).abs().max() > 1e-3


def test_checkpointing_changes_no_gradient() -> None:
    x, timestep = inputs((1, 8, 8))
    gradients = []
    for checkpointing in (False, True):
        network = randomised(DiT(SMALL, (1, 8, 8), checkpointing=checkpointing))
        network(x, timestep).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_bfloat16_weights_still_tell_neighbouring_timesteps_apart() -> None:
    network = randomised(DiT(SMALL, (1, 8, 8))).bfloat16()
    x, _ = inputs((1, 8, 8), batch=1)
    before, after = (network(x, torch.tensor([t])) for t in (998.0, 999.0))
    assert before.dtype == torch.float32
    assert before.isfinite().all()
    assert not torch.equal(before, after)


def test_saved_network_loads_bit_for_bit(tmp_path: Path) -> None:
    network = randomised(DiT(SMALL, (3, 8, 16)))
    assert isinstance(network, DiT)
    network.save(tmp_path, SCHEDULER)
    loaded = load_dit(tmp_path)
    assert loaded.config == SMALL
    assert loaded.shape == (3, 8, 16)
    assert torch.equal(loaded(*inputs((3, 8, 16))), network(*inputs((3, 8, 16))))
    assert "position" not in loaded.state_dict()


def test_what_is_no_saved_dit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a DiT exported by cdt"):
        load_dit(tmp_path / "nowhere")
    DiT(SMALL, (1, 8, 8)).save(tmp_path, SCHEDULER)
    settings = json.loads((tmp_path / "config.json").read_text())
    faults = {"shape": [1, 9, 9]}, {"shape": 1}, {"config": {"width": 10}}
    for broken in ({}, *({**settings, **fault} for fault in faults)):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(InputError):
            load_dit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "dit.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="not a DiT exported by cdt"):
        load_dit(tmp_path)


def test_patches_must_tile_the_image_and_heads_the_width() -> None:
    with pytest.raises(InputError, match="patches of 3x3 do not tile images of 8x8"):
        DiT(DiTConfig(patch=3), (1, 8, 8))
    for width, heads in ((100, 3), (18, 3)):
        with pytest.raises(ValidationError, match="multiple of 4 and of heads"):
            DiTConfig(width=width, heads=heads)
