"""Ten samples of a tiny pretrained model, and a teacher's stored answers at them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cdt.diffusion.config import DiffusionConfig
from cdt.networks.build import build_network
from cdt.networks.config import UNetConfig
from cdt.origin import replay
from cdt.origin.answers import Answers
from cdt.origin.config import ReplayConfig
from cdt.origin.pretrained import Pretrained
from cdt.origin.replay import Replay

SHAPE = (1, 8, 8)
UNET = UNetConfig(channels=(8,), layers_per_block=1)
CONFIG = DiffusionConfig(prediction="v_prediction")


def answers_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Answers]:
    """Of so many draws of noise per sample; the samples are drawn here, the answers are not asked yet."""
    monkeypatch.setenv("CDT_CACHE", str(folder / "cache"))
    monkeypatch.setattr(replay, "FRESH_SAMPLES", 2)
    (folder / "checkpoint").mkdir()
    torch.manual_seed(0)
    save_file(build_network(UNET, SHAPE).state_dict(), folder / "checkpoint" / "ema.safetensors")
    origin = Pretrained(folder, UNET, CONFIG, folder / "checkpoint")
    samples = Replay(origin, ReplayConfig.model_validate({"samples": 10, "sampler": {"steps": 2}}), SHAPE, True)
    samples.draw()
    return lambda draws: Answers(origin, samples, draws)
