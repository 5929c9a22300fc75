"""Exports: what others load gives the images that we draw."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import sample
from torch import nn

from cdt.diffusion.config import DiffusionConfig, SamplerConfig
from cdt.diffusion.process import Process
from cdt.diffusion.sampler import Sampler, sample_seed
from cdt.diffusion.variance_preserving import VariancePreserving
from cdt.errors import InputError, RunError
from cdt.networks.build import build_network
from cdt.networks.config import DiTConfig, PretrainedConfig, UNetConfig
from cdt.networks.dit import DiT
from cdt.networks.network import Network
from cdt.runs.card import CardFacts
from cdt.runs.export import export_pipeline

# diffusers turns a tensor into an array in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (3, 8, 8)
FACTS = CardFacts(
    name="pets",
    source="a folder, split train",
    class_counts={"cat": 3, "dog": 5},
    shape=SHAPE,
    network="unet",
    parameters=10,
    training={"steps": 3},
    cdt_version="1.0",
    requirements=[],
    usage="how to load a run",
)
DRAW = """
import sys, numpy, torch
from diffusers import DDPMPipeline
directory, steps, *seeds = sys.argv[1:]
pipeline = DDPMPipeline.from_pretrained(directory)
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
images = pipeline(len(seeds), generator=generators, num_inference_steps=int(steps), output_type="np").images
numpy.save(directory + "/images.npy", images)
"""


def unet() -> Network:
    torch.manual_seed(0)
    return build_network(UNetConfig(channels=(8, 16), layers_per_block=1), SHAPE)


def process(prediction: str = "epsilon") -> Process:
    return VariancePreserving.from_config(DiffusionConfig.model_validate({"prediction": prediction}))


def exported(network: Network, process: Process, directory: Path, *, sampler: str, steps: int) -> None:
    settings = SamplerConfig.model_validate({"name": sampler, "steps": steps})
    export_pipeline(network, Sampler(settings, process, SHAPE), directory, FACTS)


def as_images(x: torch.Tensor) -> np.ndarray:
    """[N, C, H, W] in [-1, 1] as diffusers' ``output_type="np"`` has it: [N, H, W, C] in [0, 1]."""
    return (x / 2 + 0.5).permute(0, 2, 3, 1).numpy()


def pipeline_images(directory: Path, seed: int, count: int, steps: int) -> np.ndarray:
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(directory)
    generators = [torch.Generator().manual_seed(sample_seed(seed, k)) for k in range(count)]
    drawn = pipeline(count, generator=generators, num_inference_steps=steps, output_type="np", return_dict=False)
    return np.asarray(drawn[0])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "ddpm"])
def test_the_pipeline_draws_our_images(tmp_path: Path, sampler: str, prediction: str) -> None:
    network, steps = unet(), 20
    exported(network, process(prediction), tmp_path / "x", sampler=sampler, steps=steps)
    ours = sample(network, process(prediction), SHAPE, 5, seed=2, sampler=sampler, steps=steps)
    np.testing.assert_allclose(pipeline_images(tmp_path / "x", 2, 5, steps), as_images(ours), atol=1e-5, rtol=0)
    assert ours.std() > 0.1


def test_the_pipeline_draws_our_images_in_another_process(tmp_path: Path) -> None:
    network, steps, v = unet(), 12, process("v_prediction")
    exported(network, v, tmp_path / "x", sampler="dpmpp_2m", steps=steps)
    seeds = [str(sample_seed(7, k)) for k in range(4)]
    subprocess.run([sys.executable, "-c", DRAW, str(tmp_path / "x"), str(steps), *seeds], check=True)
    ours = sample(network, v, SHAPE, 4, seed=7, sampler="dpmpp_2m", steps=steps)
    np.testing.assert_allclose(np.load(tmp_path / "x" / "images.npy"), as_images(ours), atol=1e-5, rtol=0)


def test_an_exported_pipeline_can_be_trained_on_and_exported_again(tmp_path: Path) -> None:
    exported(unet(), process(), tmp_path / "first", sampler="ddim", steps=10)
    again = build_network(PretrainedConfig(path=tmp_path / "first"), SHAPE)
    exported(again, process(), tmp_path / "second", sampler="ddim", steps=10)
    ours = sample(unet(), process(), SHAPE, 2, seed=0, sampler="ddim", steps=10)
    np.testing.assert_allclose(pipeline_images(tmp_path / "second", 0, 2, 10), as_images(ours), atol=1e-5, rtol=0)


def test_images_that_are_not_square(tmp_path: Path) -> None:
    network = build_network(UNetConfig(channels=(8,), layers_per_block=1), (1, 4, 8))
    exported(network, process(), tmp_path / "x", sampler="ddim", steps=5)
    ours = sample(network, process(), (1, 4, 8), 2, seed=0, sampler="ddim", steps=5)
    np.testing.assert_allclose(pipeline_images(tmp_path / "x", 0, 2, 5), as_images(ours), atol=1e-5, rtol=0)


def test_the_readme_of_a_dit_says_how_to_load_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = DiT(DiTConfig(width=16, depth=1, heads=2), SHAPE)
    nn.init.normal_(network.predict.weight)
    exported(network, process(), tmp_path / "x", sampler="dpmpp_2m", steps=10)
    readme = (tmp_path / "x" / "README.md").read_text()
    assert "library_name: cdt" in readme
    code = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, nn.Module] = {}
    exec(code[0], found)
    x, timestep = torch.randn(2, *SHAPE), torch.tensor([3.5, 999.0])
    assert torch.equal(found["network"](x, timestep), network(x, timestep))
    assert (tmp_path / "x" / "scheduler" / "scheduler_config.json").is_file()


def test_the_readme_of_a_pipeline_says_how_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(unet(), process(), tmp_path / "x", sampler="dpmpp_2m", steps=3)
    readme = (tmp_path / "x" / "README.md").read_text()
    assert "library_name: diffusers" in readme
    assert readme.count("## Use") == 1
    code = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, list[object]] = {}
    exec(code[0], found)
    assert len(found["images"]) == 16


def test_exporting_prints_nothing_and_fills_an_empty_directory(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exported(unet(), process(), tmp_path, sampler="ddim", steps=10)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "model_index.json", "scheduler", "unet"}
    assert list(tmp_path.parent.glob(".*partial")) == []
    assert capfd.readouterr() == ("", "")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("work")
    for directory, reason in ((tmp_path, "not empty"), (tmp_path / "mine", "is a file")):
        with pytest.raises(InputError, match=reason):
            exported(unet(), process(), directory, sampler="ddim", steps=10)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_unipc_and_unsuitable_steps_are_refused(tmp_path: Path) -> None:
    for sampler, steps, reason in (("unipc", 10, "cannot run unipc"), ("ddim", 2000, "more than the 1000")):
        with pytest.raises(InputError, match=reason):
            exported(unet(), process(), tmp_path / "x", sampler=sampler, steps=steps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("network", [unet(), DiT(DiTConfig(), SHAPE)], ids=["unet", "dit"])
def test_a_disk_that_takes_no_more_leaves_nothing_behind(tmp_path: Path, network: Network) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(RunError, match="cannot write the export"):
            exported(network, process(), tmp_path / "x", sampler="ddim", steps=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
