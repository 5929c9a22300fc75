"""What users get wrong: one clear line each, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cdt.cli.command import main
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard

CONFIG = """
run: {workers: 0}
data: {shards: SHARDS}
network: {kind: unet, channels: [8, 16], layers_per_block: 1}
constraints:
  four: {class: 4, min_frequency: 0.1}
train: {batch_size: 16, warm_steps: 2, dual_steps: 2, grid_images: 0}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "digits"
    shard(SOURCES["digits"](), out, only=["4", "5", "6"])
    return out


@pytest.fixture
def config(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("SHARDS", str(shards)))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What ``cdt`` says on stderr when it refuses; it must leave no run behind."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not Path("runs").exists()
    return said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.shards=nowhere"], ["no such directory", "nowhere"]),
        (
            ["constraints={x: {class: [4, 5], frequency: 0.2}, y: {class: 4, min_frequency: 0.3}}"],
            ["no distribution has all of these shares: x exactly 0.2, y at least 0.3"],
        ),
        (
            ["network={kind: dit, patch: 8, width: 65536, depth: 2, heads: 64}"],
            ["network: its 171,809,374,272 weights cannot fit: 1 worker would need 3,436.2 GB of memory even"],
        ),
        (["constraints.four.class=8"], ["no samples of class 8"]),
        (["constraints.four.class=for"], ["'for' is not in the data"]),
        (["constraints.four.min_frequency=0.7", "constraints.five={class: 5, min_frequency: 0.7}"], ["1.4", "0.7143"]),
        (["constraints.four.max_loss=3"], ["min_frequency and max_loss", "exactly one budget"]),
        (["constraints.four={class: 4}"], ["exactly one of min_frequency, frequency, generated_frequency, max_kl, "]),
        (["constraints.four={class: 4, min_frequncy: 0.1}"], ["did you mean min_frequency"]),
        (["train.batch_size=15", "engine.accumulation=2"], ["15 is not divisible by engine.accumulation (2)", "16"]),
        (["run.workers=9999"], ["9999 workers", "slots"]),
        (["network.channels=[8, 8, 8, 8, 8]"], ["5 levels do not fit images of 8x8"]),
        (["train.learning_rate=1", "network.kind=unett", "engine.zero_stage=7"], ["3 problems", "unet", "zero_stage"]),
        (["engine.deepspeed={train_batch_size: 3}"], ["contradicts", "train.batch_size"]),
        (["sampler.steps=2000"], ["sampler.steps", "1000"]),
        (["run.fork=elsewhere"], ["no such directory", "elsewhere"]),
    ],
)
def test_a_run_that_cannot_start(
    overrides: list[str], words: list[str], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "train", config, *overrides)
    assert all(word in said for word in words), said


def test_floors_on_all_classes_that_sum_to_one_are_no_error(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    floors = [f"constraints.c{name}={{class: {name}, min_frequency: 0.3333333333333333}}" for name in (4, 5, 6)]
    assert main(["train", str(config), "constraints={}", *floors, "--dry-run"]) == 0
    assert "3 constraints" in capsys.readouterr().out


def test_shards_that_do_not_match_their_index(
    config: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(shards, tmp_path / name))

    missing, extra, short, flipped, bare = map(damaged, ("missing", "extra", "short", "flipped", "bare"))
    tar = "train/000000.tar"
    (missing / tar).unlink()
    shutil.copy(extra / tar, extra / "train/000009.tar")
    (short / tar).write_bytes((short / tar).read_bytes()[:-1024])
    content = bytearray((flipped / tar).read_bytes())
    content[700] ^= 1
    (flipped / tar).write_bytes(content)
    (bare / "index.json").unlink()

    for root, words in (
        (missing, "is missing"),
        (extra, "not in the index"),
        (short, "instead of"),
        (bare, "index.json"),
    ):
        assert words in refused(capsys, "train", config, f"data.shards={root}")
        refused(capsys, "verify", root)
    assert "wrong checksum" in refused(capsys, "verify", flipped)
    assert main(["verify", str(shards)]) == 0


def test_an_index_with_a_wrong_count(
    config: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(shards, tmp_path / "count"))
    header = json.loads((root / "index.json").read_text())
    header["splits"]["train"]["count"] += 1
    (root / "index.json").write_text(json.dumps(header))
    assert "not a valid index" in refused(capsys, "train", config, f"data.shards={root}")


def test_a_conditional_network(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        num_class_embeds=10,
    )
    network.save_pretrained(tmp_path / "conditional")
    said = refused(capsys, "train", config, f"network={{kind: diffusers, path: {tmp_path / 'conditional'}}}")
    assert "class-conditional" in said


def test_an_existing_run_directory(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("elsewhere/tiny").mkdir(parents=True)
    said = refused(capsys, "train", config, "run.dir=elsewhere")
    assert "elsewhere/tiny exists already" in said
    assert "run.name=NAME" in said
    assert not list(Path("elsewhere/tiny").iterdir())


def test_no_ninja_and_no_compiler(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", "/nonexistent")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent/bin")
    said = refused(capsys, "train", config)
    assert "ninja is missing" in said
    assert "c++ is missing" in said


def test_sources_that_cannot_be_sharded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such directory" in refused(capsys, "shard", "folder", "nowhere", "out")
    assert "did you mean" in refused(capsys, "shard", "digits", "out", "--drop", "44")
    assert "--keep" in refused(capsys, "shard", "digits", "out", "--keep", "4=2")
    assert not Path("out").exists()


def test_unknown_commands_answer_without_loading_anything() -> None:
    code = (
        "import sys; from cdt.cli.command import main\ntry: main(['trian'])\nexcept SystemExit as e: status = e.code\n"
    )
    code += "print(status, [m for m in ('torch', 'ray', 'deepspeed', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"
