"""Where fine-tuning begins: pipelines that diffusers saved, runs, and what is neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

from cdt.checkpoints.checkpoint import read_weights
from cdt.config import RunConfig
from cdt.diffusion import betas
from cdt.diffusion.loss import squared_error
from cdt.diffusion.noise import normals
from cdt.errors import InputError
from cdt.networks.config import DiTConfig
from cdt.origin.pretrained import check_continued, open_pretrained
from cdt.origin.resolve import resolve
from cdt.runs.start import check, train

# Of the libraries, while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    """A network as small as they come; other values than those of its start, whose output is nearly constant."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return unet.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its shards beside it in ``data``."""
    home = tmp_path_factory.mktemp("pretrained")
    tiny.write_shards(home / "data")
    train(tiny.config(home / "data", home / "run", constraints={}))
    return home / "run"


def pipeline(directory: Path, unet: UNet2DModel, scheduler: str = "DDPMScheduler", **settings: Any) -> Any:
    """Saved there; the scheduler."""
    made = getattr(diffusers, scheduler)(**settings)
    kind = DDIMPipeline if scheduler == "DDIMScheduler" else DDPMPipeline
    kind(unet=unet, scheduler=made).save_pretrained(directory)
    return made


@torch.no_grad()
def theirs(unet: UNet2DModel, scheduler: Any, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``mean (eps - eps_theta)^2`` as diffusers noises, predicts and converts: [B].

    The conversion is in float64: of 1 - alpha, float32 has three digits at the first timesteps.
    """
    x = scheduler.add_noise(x0, eps, t)
    output = unet(x, t).sample
    alphas = (1 - scheduler.betas.double()).cumprod(0)[t][:, None, None, None]
    a, s = alphas.sqrt(), (1 - alphas).sqrt()
    match scheduler.config.prediction_type:
        case "epsilon":
            predicted = output
        case "v_prediction":
            predicted = a * output + s * x
        case _:
            predicted = (x - a * output) / s
    return (eps - predicted).square().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("DDPMScheduler", {}),
        ("DDIMScheduler", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("PNDMScheduler", {"beta_schedule": "linear", "beta_start": 0.0002}),
    ],
)
def test_the_denoising_error_is_that_of_diffusers(
    scheduler: str, settings: dict[str, Any], prediction: str, unet: UNet2DModel, tmp_path: Path
) -> None:
    """In our parametrisation, to 1e-5 of its size."""
    made = pipeline(tmp_path / "model", unet, scheduler, prediction_type=prediction, **settings)
    origin = open_pretrained(tmp_path / "model")
    t = torch.tensor([3, 40, 200, 400, 600, 800, 990])
    x0, eps = (normals(seed, torch.arange(len(t)), SHAPE) for seed in (1, 2))
    process = origin.process
    ours = squared_error(origin.build(SHAPE), process, x0 / 2, process.logsnr(t.float()), eps)
    expected = theirs(unet, made, x0 / 2, eps, t)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_configuration_takes_network_and_process_of_a_pipeline(run: Path, unet: UNet2DModel, tmp_path: Path) -> None:
    pipeline(tmp_path / "model", unet, prediction_type="v_prediction", num_train_timesteps=500)
    tree = {"init": str(tmp_path / "model"), "data": {"shards": str(run.parent / "data")}}
    stated = RunConfig.model_validate(tree | {"diffusion": {"weighting": "simple"}})
    config = resolve(stated)
    assert config.resolved_network.kind == "diffusers"
    assert (config.diffusion.prediction, config.diffusion.timesteps) == ("v_prediction", 500)
    assert config.diffusion.weighting == "simple"
    assert config.train.warm_steps == 0, "it would forget meanwhile"
    assert RunConfig.model_validate(tree | {"train": {"warm_steps": 5}}).train.warm_steps == 5
    with pytest.raises(ValueError, match="diffusion"):
        RunConfig.model_validate(tree | {"diffusion": "simple"})
    checked = check(stated)
    assert checked.config == config
    weights = dict(checked.bound.build().named_parameters())
    assert all(torch.equal(weights[f"unet.{name}"], weight) for name, weight in unet.named_parameters())


def test_a_run_gives_its_ema_weights(run: Path) -> None:
    origin = open_pretrained(run)
    assert origin.checkpoint is not None
    ema, raw = (read_weights(origin.checkpoint, raw) for raw in (False, True))
    network = origin.build(SHAPE)
    assert not network.training
    for name, weight in network.named_parameters():
        assert torch.equal(weight, ema[name])
        assert not weight.requires_grad
    assert any(not torch.equal(ema[name], raw[name]) for name in ema)


def test_a_resolved_configuration_needs_its_pretrained_model_no_more(run: Path, tmp_path: Path) -> None:
    config = resolve(tiny.config(run.parent / "data", tmp_path / "new", init=run))
    moved = config.model_copy(update={"init": tmp_path / "nowhere"})
    assert resolve(RunConfig.model_validate(moved.model_dump(mode="json", by_alias=True))) == moved


def test_the_digest_is_of_what_samples_depend_on(run: Path, unet: UNet2DModel, tmp_path: Path) -> None:
    pipeline(tmp_path / "one", unet)
    pipeline(tmp_path / "same", unet)
    pipeline(tmp_path / "betas", unet, beta_end=0.03)
    other = UNet2DModel.from_config(unet.config)
    assert isinstance(other, UNet2DModel)
    pipeline(tmp_path / "weights", other)
    digests = {name: open_pretrained(tmp_path / name).digest() for name in ("one", "same", "betas", "weights")}
    assert digests["one"] == digests["same"]
    assert len({*digests.values(), open_pretrained(run).digest()}) == 4


def test_the_digest_of_an_earlier_version_is_accepted_on_a_processor_where_numpy_rounds_differently(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That version hashed a table of numpy's logarithms. Another model is still refused."""
    exact = betas.cosine_logsnr

    def by_numpy(*settings: Any) -> np.ndarray:
        table = exact(*settings[:-1])
        return np.nextafter(table, np.inf) if settings[-1] is np else table

    origin = open_pretrained(run)
    table = exact(origin.diffusion.timesteps, *origin.diffusion.cosine_range)
    earlier = origin._digest(np.nextafter(table, np.inf).tobytes() + b"v_prediction")
    assert origin.has_digest(origin.digest())
    assert not origin.has_digest(earlier)
    monkeypatch.setattr(betas, "cosine_logsnr", by_numpy)
    assert open_pretrained(run).has_digest(earlier)
    assert open_pretrained(run).digest() == origin.digest() != earlier


def test_what_is_neither_run_nor_pipeline_is_told(run: Path, unet: UNet2DModel, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "checkpoints")
    pipeline(tmp_path / "no scheduler", unet)
    shutil.rmtree(tmp_path / "no scheduler" / "scheduler")
    for name, reason in (
        ("nowhere", "no such directory"),
        (".", "is neither a run (no config.yaml) nor a pipeline of diffusers (no unet/config.json)"),
        ("no scheduler", "nor a pipeline of diffusers (no scheduler/scheduler_config.json)"),
        ("begun", "has no complete checkpoint yet"),
    ):
        with pytest.raises(InputError) as caught:
            open_pretrained(tmp_path / name)
        assert str(caught.value).startswith("init: ")
        assert reason in str(caught.value)


def test_images_of_another_kind_are_told(run: Path, unet: UNet2DModel, tmp_path: Path) -> None:
    origin = open_pretrained(run)
    origin.check_images(SHAPE, "uint8")
    for shape, dtype in (((3, 8, 8), "uint8"), ((1, 16, 16), "uint8"), (SHAPE, "float32")):
        with pytest.raises(InputError, match=r"trained on images of shape \[1, 8, 8\] \(uint8\), the data have"):
            origin.check_images(shape, dtype)
    classes: Any = UNet2DModel.from_config(unet.config, num_class_embeds=10)
    pipeline(tmp_path / "classes", classes)
    with pytest.raises(InputError, match="class-conditional; cdt trains unconditional"):
        open_pretrained(tmp_path / "classes").build(SHAPE)
    pipeline(tmp_path / "model", unet)
    for shape, reason in (((3, 8, 8), "made for 1 channels, the data have 3"), ((1, 16, 16), "made for 8x8 pixels")):
        with pytest.raises(InputError, match=reason):
            open_pretrained(tmp_path / "model").build(shape)


def test_weights_that_cannot_be_read_are_told(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    origin = open_pretrained(tmp_path / "run")
    assert origin.checkpoint is not None
    file = origin.checkpoint / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=r"init: .*/ema\.safetensors cannot be read"):
        origin.weights()
    (tmp_path / "run" / "data.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"data\.json cannot be read"):
        origin.check_images(SHAPE, "uint8")


def test_a_configuration_that_contradicts_its_pretrained_model_is_told(run: Path) -> None:
    origin = open_pretrained(run)
    check_continued(origin, origin.network, origin.diffusion.model_copy(update={"weighting": "min_snr"}))
    with pytest.raises(InputError, match=r"^network: it differs from that of"):
        check_continued(origin, DiTConfig(depth=2), origin.diffusion)
    for change, reason in (
        ({"prediction": "epsilon"}, r"diffusion\.prediction: .* predicts v_prediction"),
        ({"logsnr_shift": 1.0}, "diffusion: the schedule differs"),
        ({"timesteps": 500}, "diffusion: the schedule differs"),
    ):
        with pytest.raises(InputError, match=reason):
            check_continued(origin, origin.network, origin.diffusion.model_copy(update=change))
