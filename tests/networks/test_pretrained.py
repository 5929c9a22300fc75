"""Directories saved by diffusers: what is loaded, and the sentence for what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdt.errors import InputError
from cdt.networks.config import PretrainedConfig, UNetConfig
from cdt.networks.pretrained import WEIGHTS, load_pretrained
from cdt.networks.unet import UNet, build_unet

SHAPE = (3, 8, 8)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[UNet, Path]:
    network = build_unet(UNetConfig(channels=(8, 16), layers_per_block=1), SHAPE)
    network.unet.save_pretrained(tmp_path / "unet")
    return network, tmp_path


def edit(directory: Path, **settings: Any) -> None:
    file = directory / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize("subfolder", ["", "unet"])
def test_loads_the_network_of_a_pipeline_or_itself(saved: tuple[UNet, Path], subfolder: str) -> None:
    network, directory = saved
    loaded = load_pretrained(PretrainedConfig(path=directory / subfolder), SHAPE)
    x, timestep = torch.randn(2, *SHAPE), torch.tensor([0.5, 999.0])
    assert torch.equal(loaded(x, timestep), network(x, timestep))
    assert loaded.unet.training


def test_a_variant_is_read_in_full_precision(saved: tuple[UNet, Path]) -> None:
    """As pipelines are published that are for sampling in half precision."""
    _, directory = saved
    half = {name: weight.half() for name, weight in load_file(directory / "unet" / WEIGHTS).items()}
    (directory / "unet" / WEIGHTS).unlink()
    save_file(half, directory / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    loaded = load_pretrained(PretrainedConfig(path=directory), SHAPE)
    weights = dict(loaded.unet.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], weight.float()) for name, weight in half.items())
    save_file(half, directory / "unet" / "diffusion_pytorch_model.ema.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no diffusion_pytorch_model.safetensors in .*variants ema, fp16: keep one"):
        load_pretrained(PretrainedConfig(path=directory), SHAPE)


def test_a_network_for_any_size_takes_that_of_the_data(saved: tuple[UNet, Path]) -> None:
    edit(saved[1], sample_size=None)
    assert load_pretrained(PretrainedConfig(path=saved[1]), (3, 16, 16)).unet.config["sample_size"] == 16


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "conditioned on text"),
        ({"_class_name": "DiTTransformer2DModel"}, "of class DiTTransformer2DModel; only UNet2DModel"),
        ({"num_class_embeds": 10}, "class-conditional"),
        ({"class_embed_type": "timestep"}, "class-conditional"),
        ({"in_channels": 1, "out_channels": 1}, "made for 1 channels, the data have 3"),
        ({"out_channels": 6}, "predicts 6 channels from 3"),
        ({"sample_size": 32}, "made for 32x32 pixels, the data have 8x8"),
        ({"sample_size": [8, 16]}, "made for 8x16 pixels"),
        ({"time_embedding_type": "fourier"}, "fourier time embedding"),
        ({"layers_per_block": 2}, "weights"),
        ({"block_out_channels": [8, 32]}, "weights"),
    ],
)
def test_unsuitable_networks_are_refused(saved: tuple[UNet, Path], settings: dict[str, Any], reason: str) -> None:
    edit(saved[1], **settings)
    with pytest.raises(InputError, match=reason):
        load_pretrained(PretrainedConfig(path=saved[1]), SHAPE)


@pytest.mark.parametrize("fault", ["missing", "surplus", "corrupt", "pickle"])
def test_faulty_weights_are_refused(saved: tuple[UNet, Path], fault: str) -> None:
    file = saved[1] / "unet" / WEIGHTS
    weights = load_file(file)
    if fault == "missing":
        del weights["conv_in.bias"]
        save_file(weights, file, {"format": "pt"})
    elif fault == "surplus":
        save_file({**weights, "conv_extra.bias": torch.zeros(3)}, file, {"format": "pt"})
    elif fault == "corrupt":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        torch.save(weights, file.with_suffix(".bin"))
        file.unlink()
    reason = {"missing": "conv_in.bias", "surplus": "conv_extra.bias", "pickle": "safetensors only"}.get(fault, "load")
    with pytest.raises(InputError, match=reason):
        load_pretrained(PretrainedConfig(path=saved[1]), SHAPE)


def test_what_is_no_network_is_refused(saved: tuple[UNet, Path]) -> None:
    directory = saved[1]
    with pytest.raises(InputError, match="no such directory"):
        load_pretrained(PretrainedConfig(path=directory / "nowhere"), SHAPE)
    for content in ("{", "[]"):
        (directory / "unet" / "config.json").write_text(content)
        with pytest.raises(InputError, match="not a JSON object"):
            load_pretrained(PretrainedConfig(path=directory), SHAPE)
    (directory / "unet" / "config.json").unlink()
    with pytest.raises(InputError, match="it has no config"):
        load_pretrained(PretrainedConfig(path=directory), SHAPE)
