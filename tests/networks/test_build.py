"""The table of networks: every kind can be configured and built, and costs nothing to configure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from cdt.networks.build import BUILDERS, build_network
from cdt.networks.config import NetworkConfig, UNetConfig
from cdt.networks.unet import build_unet

NETWORK = TypeAdapter(NetworkConfig)


def test_every_kind_of_configuration_has_a_builder() -> None:
    kinds = {config.model_fields["kind"].default for config in get_args(get_args(NetworkConfig)[0])}
    assert kinds == set(BUILDERS)


def test_each_kind_builds_a_network_for_the_shape(tmp_path: Path) -> None:
    shape, x = (1, 8, 8), torch.randn(2, 1, 8, 8)
    small = {"channels": [8, 16], "layers_per_block": 1}
    build_unet(UNetConfig.model_validate(small), shape).unet.save_pretrained(tmp_path)
    for settings in (
        {"kind": "unet", **small},
        {"kind": "dit", "width": 16, "heads": 2, "depth": 1},
        {"kind": "diffusers", "path": str(tmp_path)},
    ):
        network = build_network(NETWORK.validate_python(settings), shape)
        assert network(x, torch.tensor([0.0, 500.5])).shape == x.shape


@pytest.mark.parametrize("settings", [{"kind": "mlp"}, {"kind": "dit", "channels": [8]}, {"kind": "unet", "patch": 2}])
def test_unknown_kinds_and_settings_of_other_kinds_are_errors(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NETWORK.validate_python(settings)


def test_configurations_are_read_without_importing_diffusers() -> None:
    code = "import cdt.networks, cdt.diffusion.sampler, cdt.runs.export, sys; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
