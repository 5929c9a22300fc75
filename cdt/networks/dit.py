"""Diffusion transformer: image patches as tokens, conditioned on the noise level by adaLN-zero.

Peebles & Xie, arXiv 2212.09748. Letters in shapes: B batch, C channels, H x W pixels, p patch, N = (H/p)(W/p) tokens,
D width.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from cdt.condition import Condition
from cdt.errors import InputError
from cdt.files import open_regular
from cdt.networks.config import DiTConfig
from cdt.networks.network import Network
from cdt.records import OBJECT, read_record

CONFIG_FILE, WEIGHTS_FILE = "config.json", "dit.safetensors"


def sincos(position: Tensor, width: int) -> Tensor:
    """Cosines and sines of positions [N] at geometric wavelengths from 2 pi to 10,000 times that: [N, width], float32.

    Vaswani et al., arXiv 1706.03762, section 3.5.
    """
    rate = torch.exp(torch.arange(0, width, 2, device=position.device) * (-math.log(10_000) / width))
    angle = position.float()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def sincos_2d(rows: int, columns: int, width: int) -> Tensor:
    """Position embedding of a grid, half of it for the row and half for the column: [rows * columns, width]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sincos(row.flatten(), width // 2), sincos(column.flatten(), width // 2)], dim=-1)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of tokens [B, N, D] with the sample's own shift and scale [B, 1, D]."""
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the condition; the identity before training."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        hidden = int(width * mlp_ratio)
        self.modulation = zero_linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        return self.attention_out(rearrange(scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens [B, N, D] and condition [B, D] to tokens [B, N, D]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.attention(modulated_norm(x, shift_a, scale_a))
        return x + gate_m * self.mlp(modulated_norm(x, shift_m, scale_m))


class DiT(Network):
    """Its prediction is zero before training; exported as ``dit.safetensors``, ``config.json`` and ``scheduler/``.

    Raises InputError where patches do not tile the images.
    """

    library = "cdt"
    usage = """
import cdt.networks

# network(x, timestep) is the raw prediction; scheduler/ is diffusers' scheduler to sample with, in {steps} steps.
network = cdt.networks.load_dit("{name}")
"""

    position: Tensor

    def __init__(self, config: DiTConfig, shape: tuple[int, int, int], *, checkpointing: bool = False) -> None:
        super().__init__()
        C, H, W = shape
        p, D = config.patch, config.width
        if H % p or W % p:
            raise InputError(f"network.patch: patches of {p}x{p} do not tile images of {H}x{W}; take a divisor of both")
        self.config, self.shape, self.checkpointing = config, shape, checkpointing
        self.register_buffer("position", sincos_2d(H // p, W // p, D), persistent=False)
        self.embed = nn.Linear(C * p * p, D)
        self.embed_time = nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.Linear(D, D), nn.SiLU())
        self.blocks = nn.ModuleList(Block(D, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.modulation = zero_linear(D, 2 * D)
        self.predict = zero_linear(D, C * p * p)

    def output(self, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        p, dtype = self.config.patch, self.embed.weight.dtype
        patches = rearrange(x.to(dtype), "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        # The embedding stays float32 up to here: bfloat16 cannot tell timestep 999 from 1000.
        embedded = self.embed_time(sincos(time, self.config.width).to(dtype))
        tokens = self.embed(patches) + self.position.to(dtype)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, embedded, use_reentrant=False)
            else:
                tokens = block(tokens, embedded)
        shift, scale = self.modulation(embedded)[:, None].chunk(2, dim=-1)
        patches = self.predict(modulated_norm(tokens, shift, scale))
        rows = x.shape[2] // p
        return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=p, q=p).to(x.dtype)

    def save(self, directory: Path, scheduler: Any) -> None:
        settings = {"config": self.config.model_dump(mode="json"), "shape": self.shape}
        (directory / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(self.state_dict(), directory / WEIGHTS_FILE)
        scheduler.save_pretrained(directory / "scheduler")


def load_dit(directory: str | Path) -> DiT:
    """The DiT that an export wrote as ``config.json`` and ``dit.safetensors``; InputError if it is not one."""
    try:
        settings = read_record(Path(directory) / CONFIG_FILE, OBJECT)
        network = DiT(DiTConfig(**settings["config"]), tuple(settings["shape"]))
        open_regular(Path(directory) / WEIGHTS_FILE).close()  # else a pipe would be waited for
        network.load_state_dict(load_file(Path(directory) / WEIGHTS_FILE))
    except (InputError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{directory} is not a DiT exported by cdt: {error}") from error
    return network
