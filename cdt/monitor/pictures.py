"""Images side by side in one picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad


def image_grid(images: Tensor, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """[N, C, H, W] in [-1, 1] to one picture [rows (H + 1), columns (W + 1), 3 or 1] uint8.

    Images with other than 1 or 3 channels (latents) show their first channel. Small ones are enlarged to at least 32
    pixels, each pixel a square.
    """
    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    scale = scale or max(1, -(-32 // images.shape[-1]))
    columns = columns or math.ceil(math.sqrt(len(images)))
    missing = -len(images) % columns
    pixels = ((images.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round()
    pixels = pixels.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    pixels = pad(pixels, (0, 1, 0, 1, 0, 0, 0, missing), value=128)
    return rearrange(pixels, "(r c) ch h w -> (r h) (c w) ch", c=columns).to(torch.uint8).numpy()


def save_picture(picture: np.ndarray, path: Path) -> None:
    """A picture [H, W, 1 or 3] uint8 as PNG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(path)


def save_images(images: Tensor, path: Path) -> None:
    """Images [N, C, H, W] in [-1, 1] as one grid (``.png``), or as uint8 ``images`` [N, C, H, W] (``.npz``)."""
    if path.suffix == ".png":
        save_picture(image_grid(images), path)
    else:
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        np.savez_compressed(path, images=pixels)
