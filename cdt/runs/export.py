"""Trained networks for others to use: each network knows how it is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from cdt.diffusion.sampler import Sampler
from cdt.errors import InputError, RunError
from cdt.files import resolved, written_aside
from cdt.networks.network import Network
from cdt.runs.card import CardFacts, model_card


def export_pipeline(network: Network, sampler: Sampler, directory: Path, facts: CardFacts) -> None:
    """Writes ``network`` with its scheduler to ``directory``, and a model card, with how to load it, as README.md.

    Raises InputError if ``directory`` is not new or empty, for unsuitable steps, and for a sampler that a loaded
    export cannot run; RunError if the disk does not take it. Then nothing is left behind.
    """
    directory = resolved(directory)
    check_new(directory)
    name, steps = sampler.config.name, sampler.config.steps
    if name in network.unusable_samplers:
        raise InputError(f"sampler: {network.unusable_samplers[name]}")
    scheduler = sampler.process.scheduler(name, steps, bounded=sampler.bounded)
    try:
        with written_aside(directory) as aside:
            aside.mkdir(parents=True)
            network.save(aside, scheduler)
            usage = network.usage.format(name=directory.name, steps=steps)
            card = model_card(replace(facts, usage=usage, library=network.library))
            (aside / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write the export to {directory}: {error}") from error


def check_new(directory: Path) -> None:
    """InputError unless there is nothing at ``directory``, or an empty directory."""
    if directory.is_dir():
        if any(directory.iterdir()):
            raise InputError(f"{directory} exists and is not empty; name another directory for the export")
    elif directory.exists():
        raise InputError(f"{directory} is a file; name a new directory for the export")
