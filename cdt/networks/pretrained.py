"""Networks that others trained: any unconditional UNet2DModel that diffusers saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cdt.errors import InputError
from cdt.networks.config import PretrainedConfig
from cdt.networks.unet import UNet
from cdt.records import OBJECT, read_record

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_pretrained(config: PretrainedConfig, shape: tuple[int, int, int], *, checkpointing: bool = False) -> UNet:
    """The network saved at ``config.path``, its weights read from safetensors only.

    Raises InputError if there is none, if it is conditional, or if it was made for data of another shape [C, H, W].
    """
    directory = find_unet(config.path)
    check_settings(read_settings(directory), shape, directory)
    variant = _variant(directory)
    from diffusers.models.unets.unet_2d import UNet2DModel  # seconds to import: configurations are read without it

    try:
        loaded: Any = UNet2DModel.from_pretrained(
            directory,
            variant=variant,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).split(". ")[0]  # diffusers adds advice that does not apply here
        raise InputError(f"network.path: cannot load the weights in {directory}: {reason}") from error
    unet, report = loaded
    faults = sorted(str(name) for names in report.values() for name in names)
    if faults:
        raise InputError(
            f"network.path: the weights in {directory} do not match its config.json: "
            f"{len(faults)} missing, surplus or misshapen, {faults[0]} the first"
        )
    unet.register_to_config(sample_size=shape[1] if shape[1] == shape[2] else shape[1:])
    return UNet(unet.train(), checkpointing=checkpointing)


def _variant(directory: Path) -> str | None:
    """The variant of the weights to read, such as fp16; None if they are there without one. Raises InputError."""
    if any((directory / name).is_file() for name in (WEIGHTS, f"{WEIGHTS}.index.json")):
        return None
    stem = WEIGHTS.removesuffix("safetensors")
    files = [path.name.removeprefix(stem) for path in directory.glob(f"{stem}*safetensors*")]
    found = sorted({name.partition(".")[0].partition("-")[0] for name in files})
    if len(found) == 1:
        return found[0]
    others = f" alone, but of the variants {', '.join(found)}: keep one" if found else ""
    raise InputError(f"network.path: no {WEIGHTS} in {directory}{others}; weights are read from safetensors only")


def find_unet(path: Path) -> Path:
    """The directory with the network's config.json: ``path`` or ``path/unet``."""
    for directory in (path / "unet", path):
        if (directory / "config.json").is_file():
            return directory
    lack = "it has no config.json or unet/config.json" if path.is_dir() else "there is no such directory"
    raise InputError(f"network.path: {path} is not a UNet2DModel saved by diffusers: {lack}")


def read_settings(directory: Path) -> dict[str, Any]:
    """config.json of the network in ``directory``, checked to describe a UNet2DModel."""
    try:
        settings = read_record(directory / "config.json", OBJECT)
    except InputError as error:
        raise InputError(f"network.path: {directory / 'config.json'} is not a JSON object: {error}") from error
    name = settings.get("_class_name")
    if name == "UNet2DConditionModel":
        raise InputError(
            f"network.path: {directory} holds a UNet2DConditionModel, which is conditioned on text or the like; "
            "cdt trains unconditional networks (UNet2DModel)"
        )
    if name != "UNet2DModel":
        raise InputError(f"network.path: {directory} holds a network of class {name}; only UNet2DModel can be loaded")
    return settings


def check_settings(settings: dict[str, Any], shape: tuple[int, int, int], directory: Path) -> None:
    """InputError unless a UNet2DModel of these settings is an unconditional noise or v predictor for ``shape``."""
    C, H, W = shape
    size = settings.get("sample_size") or (H, W)
    side = (size, size) if isinstance(size, int) else tuple(size)
    inputs, outputs = settings.get("in_channels", 3), settings.get("out_channels", 3)
    embedding = settings.get("time_embedding_type", "positional")
    conditional = settings.get("num_class_embeds") is not None or settings.get("class_embed_type") is not None
    reasons = {
        "it is class-conditional; cdt trains unconditional networks": conditional,
        f"its {embedding} time embedding cannot take continuous timesteps": embedding != "positional",
        f"it predicts {outputs} channels from {inputs}; both must be the image's": inputs != outputs,
        f"it is made for {inputs} channels, the data have {C}": inputs != C,
        f"it is made for {side[0]}x{side[-1]} pixels, the data have {H}x{W}": side != (H, W),
    }
    for reason, applies in reasons.items():
        if applies:
            raise InputError(f"network.path: the network in {directory} cannot be used: {reason}")
