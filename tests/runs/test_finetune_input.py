"""What users get wrong when they fine-tune: one clear line each, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from cdt.cli.command import main
from cdt.data.format.index import Index
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.origin import replay
from cdt.runs.evaluation import classifier_of
from cdt.runs.start import train

# Of the libraries, while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CONFIG = """
init: INIT
data: {shards: new}
run: {name: tuned, workers: 0}
constraints:
  old: {prior: {max_kl: 0.5}, window: 0.5}
probe: {draws: 8, generated_samples: 16}
replay: {samples: 16, sampler: {steps: 2}}
sampler: {steps: 2}
train: {batch_size: 16, warm_steps: 0, dual_steps: 2, grid_images: 0}
"""
NET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of new digits, a run on old ones, and a pipeline."""
    home = tmp_path_factory.mktemp("home")
    shard(SOURCES["digits"](), home / "new", only=["8", "9"], shard_mb=1)
    tiny.write_shards(home / "old")
    train(tiny.config(home / "old", home / "pretrained", constraints={}))
    DDPMPipeline(unet=UNet2DModel(**NET), scheduler=DDPMScheduler()).save_pretrained(home / "pipeline")
    classifier_of(Index.load(home / "new"), steps=5).save(home / "judge.safetensors")
    return home


@pytest.fixture
def refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What ``cdt train`` says when it refuses to start from a model; it leaves no run behind."""
    monkeypatch.setenv("CDT_CACHE", str(home / "cache"))
    monkeypatch.setattr(replay, "FRESH_SAMPLES", 8)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").symlink_to(home / "new")

    def say(init: Path, *overrides: str) -> str:
        Path("tuned.yaml").write_text(CONFIG.replace("INIT", str(init)))
        assert main(["train", "tuned.yaml", *overrides]) == 2
        said = capsys.readouterr().err.strip()
        assert "Traceback" not in said
        assert len(said.splitlines()) == 1
        assert not Path("runs").exists() or not any(Path("runs").iterdir())
        return said

    return say


def changed(pipeline: Path, to: Path, part: str, **settings: Any) -> Path:
    """A copy of a pipeline with other settings in one of its files."""
    shutil.copytree(pipeline, to)
    known = json.loads((to / part).read_text())
    (to / part).write_text(json.dumps(known | settings))
    return to


def test_a_directory_that_is_no_pipeline(home: Path, tmp_path: Path, refused: Refused) -> None:
    assert "init: no such directory" in refused(tmp_path / "nowhere")
    assert "is neither a run (no config.yaml) nor a pipeline of diffusers" in refused(home / "new")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sample_size": 16}, "it is made for 16x16 pixels, the data have 8x8"),
        ({"in_channels": 3, "out_channels": 3}, "it is made for 3 channels, the data have 1"),
        ({"num_class_embeds": 10}, "it is class-conditional; cdt trains unconditional networks"),
    ],
)
def test_a_pipeline_for_other_images(
    settings: dict[str, Any], reason: str, home: Path, tmp_path: Path, refused: Refused
) -> None:
    assert reason in refused(changed(home / "pipeline", tmp_path / "other", "unet/config.json", **settings))


def test_a_run_on_other_images(home: Path, tmp_path: Path, refused: Refused) -> None:
    shard(SOURCES["digits"](), tmp_path / "larger", only=["9"], resize=16)
    said = refused(home / "pretrained", f"data.shards={tmp_path / 'larger'}")
    assert "was trained on images of shape [1, 8, 8] (uint8), the data have [1, 16, 16]" in said


def test_a_scheduler_that_cannot_be_mapped(home: Path, tmp_path: Path, refused: Refused) -> None:
    settings = {"_class_name": "EDMEulerScheduler"}
    said = refused(changed(home / "pipeline", tmp_path / "edm", "scheduler/scheduler_config.json", **settings))
    assert re.search(r"it is a EDMEulerScheduler; these can be: .*DDPMScheduler", said)


def test_the_setting_that_is_meant_is_named(home: Path, refused: Refused) -> None:
    def said(*overrides: str) -> str:
        return refused(home / "pretrained", *overrides)

    assert "replay.shards: no such directory" in said("replay.shards=nowhere")
    assert "replay: sampler.steps: 2000 is more than" in said("replay.sampler.steps=2000")
    assert "replay.samples: got 1000000000000; must be" in said("replay.samples=1000000000000")
    reference = "constraints.nine={class: 9, max_kl: 1, reference: nowhere}"
    assert "constraints.nine: reference: no such directory" in said(reference)
    judged = "constraints.nine={class: 9, generated_frequency: {min: 0.1, classifier: nowhere.safetensors}}"
    assert "constraints.nine: " in said(judged)
    assert "constraints.nine.max_excess: " in said("constraints.nine={class: 9, max_excess: 1.0e+308}")


def test_budgets_that_cannot_be_met(home: Path, refused: Refused) -> None:
    """One that is none, and a floor that is further from the pretrained model than its budget allows."""
    assert "constraints.old.prior.max_kl: got 0; must be a finite number > 0" in refused(
        home / "pretrained", "constraints.old.prior.max_kl=0"
    )
    judged = f"{{class: 9, generated_frequency: {{min: 0.99, classifier: {home / 'judge.safetensors'}}}}}"
    said = refused(
        home / "pretrained", f"constraints.nine={judged}", "constraints.old={prior: {max_kl: 0.01}, window: null}"
    )
    assert "constraints.nine: a share of 0.99 is at least" in said
    assert said.endswith("prior.max_kl is 0.01")
