"""Trained networks for others to use: a pipeline of diffusers, or for the own DiT its weights, settings, scheduler."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from cdt.diffusion.process import Process
from cdt.diffusion.sampler import make_scheduler
from cdt.errors import InputError, RunError
from cdt.networks.dit import DiT, save_dit
from cdt.networks.unet import UNet
from cdt.runs.card import CardFacts, model_card

PIPELINE_USE = """
from diffusers import DDPMPipeline

images = DDPMPipeline.from_pretrained("{name}")(batch_size=16, num_inference_steps={steps}).images
"""

DIT_USE = """
import cdt.networks

# network(x, timestep) is the raw prediction; scheduler/ is diffusers' scheduler to sample with, in {steps} steps.
network = cdt.networks.load_dit("{name}")
"""


def export_pipeline(
    network: nn.Module,
    process: Process,
    directory: Path,
    *,
    sampler: str,
    steps: int,
    facts: CardFacts,
    bounded: bool = True,
) -> None:
    """Write ``network`` with its scheduler to ``directory``, and a model card, with how to load it, as README.md.

    A UNet becomes a DDPMPipeline of diffusers, which with one generator ``torch.Generator().manual_seed(sample_seed(
    seed, k))`` per image, ``num_inference_steps=steps`` and ``output_type="np"`` gives the images of ``sample``. A DiT
    becomes ``dit.safetensors``, ``config.json`` and ``scheduler/``.

    Raises InputError if ``directory`` is not new or empty, for unsuitable ``steps``, and for UniPC, which DDPMPipeline
    cannot run; RunError if the disk does not take it. Then nothing is left behind.
    """
    directory = directory.resolve()
    check_new(directory)
    if sampler == "unipc" and isinstance(network, UNet):
        raise InputError("sampler: diffusers' DDPMPipeline cannot run unipc; export with dpmpp_2m, ddim or ddpm")
    scheduler = make_scheduler(sampler, process, steps, bounded=bounded)
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if isinstance(network, DiT):
            save_dit(network, partial)
            scheduler.save_pretrained(partial / "scheduler")
            library, use = "cdt", DIT_USE
        elif isinstance(network, UNet):
            from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline  # seconds to import

            DDPMPipeline(unet=network.unet, scheduler=scheduler).save_pretrained(partial)
            library, use = "diffusers", PIPELINE_USE
        else:
            raise TypeError(f"no export for networks of type {type(network).__name__}")
        usage = use.format(name=directory.name, steps=steps)
        card = model_card(replace(facts, usage=usage, library=library))
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.rename(directory)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write the export to {directory}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new(directory: Path) -> None:
    """InputError unless there is nothing at ``directory``, or an empty directory."""
    if directory.is_dir():
        if any(directory.iterdir()):
            raise InputError(f"{directory} exists and is not empty; name another directory for the export")
    elif directory.exists():
        raise InputError(f"{directory} is a file; name a new directory for the export")
