"""What a configuration with ``init`` leaves to the pretrained model: the network and the noise process."""

from __future__ import annotations

from cdt.config import RunConfig
from cdt.diffusion.config import DiffusionConfig
from cdt.origin.pretrained import open_pretrained
from cdt.settings import parse


def resolve(config: RunConfig) -> RunConfig:
    """``config`` with network and noise process of the pretrained model for each setting that it does not state.

    A resolved configuration states all of them, so resolving it opens nothing. Raises InputError when the pretrained
    model cannot be opened, or what is stated does not go together with its noise process.
    """
    if config.init is None or (config.network is not None and "schedule" in config.diffusion.model_fields_set):
        return config
    origin = open_pretrained(config.init)
    stated = config.diffusion.model_dump(mode="json", exclude_unset=True)
    diffusion = parse(DiffusionConfig, origin.diffusion.model_dump(mode="json") | stated, where="diffusion")
    return config.model_copy(update={"network": config.network or origin.network, "diffusion": diffusion})
