"""One real run through Ray and DeepSpeed on two workers, and what it must leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cdt
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard

CONFIG = """
run: {dir: runs, workers: 2, threads: 1}
data: {shards: data, epoch_samples: 128}
network: {kind: unet, channels: [8, 16], layers_per_block: 1}
constraints:
  four: {class: 4, min_frequency: 0.2, window: 0.5}
  rare: {class: [5, 7], min_frequency: 0.2, window: 0.5}
probe: {draws: 16}
train: {batch_size: 32, warm_steps: 8, dual_steps: 12, checkpoint_steps: 12, log_steps: 4, lr: 0.002, grid_images: 4}
dual: {eta: 0.004}  # no step at its limit of one e-fold: the multipliers depend on the losses
sampler: {steps: 4}
"""


TUNE = """
init: runs/both
run: {dir: runs, workers: 2, threads: 1}
data: {shards: new, epoch_samples: 128}
adapter: {rank: 2}
engine: {zero_stage: 3}
constraints: {old: {prior: {max_kl: 0.5}, window: 0.5}}
probe: {draws: 64}
replay: {samples: 100, teacher_offload: true, sampler: {steps: 2}}
train: {batch_size: 32, warm_steps: 0, dual_steps: 12, log_steps: 4, lr: 0.002, grid_images: 0}
"""


def run_cdt(directory: Path, *arguments: str, status: int = 0) -> str:
    """``cdt`` in a process of its own; all that it printed."""
    environment = {**os.environ, "PYTHONWARNINGS": "", "COLUMNS": "100", "CDT_CACHE": str(directory / "cache")}
    command = [sys.executable, "-m", "cdt", *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


SHADOWS = ("statistics", "random", "torch", "numpy", "ray")
"""Names of modules that files in the working directory have, too."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with shards, a configuration and the finished run ``runs/both``, and with files that are in the way.

    TMPDIR is too long for sockets. ``listening`` and ``folders`` are what was seen of the run's processes.
    """
    home = tmp_path_factory.mktemp("home")
    shard(SOURCES["digits"](), home / "data", keep={"4": 0.1})
    (home / "both.yaml").write_text(CONFIG)
    for name in (*SHADOWS, "cdt"):
        (home / f"{name}.py").write_text(f"raise ImportError({name!r} ' of the working directory')\n")
    place = home / "temporary" / ("long" * 30)
    place.mkdir(parents=True)
    environment = {**os.environ, "PYTHONWARNINGS": "", "COLUMNS": "100", "TMPDIR": str(place)}
    # As the command `cdt`, which does not import from the working directory.
    command = [sys.executable, "-P", "-m", "cdt", "train", "both.yaml"]
    with (home / "screen").open("w") as screen:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=screen, stderr=screen)
        listening, folders = set[str](), dict[str, int]()
        while process.poll() is None:
            listening |= {f"{name} on {address}" for name, address in listening_processes(process.pid)}
            folders |= {str(path): path.stat().st_mode & 0o777 for path in folders_of_ray(process.pid)}
            time.sleep(0.5)
    assert process.returncode == 0, (home / "screen").read_text()
    (home / "cdt.py").unlink()
    (home / "listening").write_text("\n".join(sorted(listening)))
    (home / "folders").write_text(json.dumps(folders))
    return home


def processes_of(pid: int) -> Iterator[psutil.Process]:
    try:
        process = psutil.Process(pid)
        yield from (process, *process.children(recursive=True))
    except psutil.NoSuchProcess:
        return


def listening_processes(pid: int) -> Iterator[tuple[str, str]]:
    """Names, and addresses on which they listen."""
    for process in processes_of(pid):
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    yield process.name(), connection.laddr.ip
        except psutil.Error:
            continue


def folders_of_ray(pid: int) -> Iterator[Path]:
    """The folders that the commands of Ray's processes name, and what is between these and /tmp."""
    for process in processes_of(pid):
        try:
            sockets = [word.partition("=")[2] for word in process.cmdline() if word.startswith("--raylet_socket_name=")]
        except psutil.Error:
            continue
        for socket in sockets:
            yield from (path for path in list(Path(socket).parents)[:-2] if path.is_dir())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ema(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:09d}" / "ema.safetensors")


def relative_distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    x, y = (torch.cat([weights[name].double().flatten() for name in sorted(weights)]) for weights in (a, b))
    return float((x - y).norm() / y.norm())


def test_the_screen_shows_the_progress_and_the_result_and_nothing_else(home: Path) -> None:
    lines = [line for line in (home / "screen").read_text().splitlines() if line.strip()]
    assert len(lines) == 5, lines
    assert "20/20" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["constraint", "four", "rare"]
    assert "runs/both" in lines[4]


def test_nothing_listens_where_other_machines_reach_it(home: Path) -> None:
    listening = (home / "listening").read_text().splitlines()
    assert any("raylet" in each for each in listening), listening
    assert any("RayTrainWorker" in each for each in listening), listening
    assert not [each for each in listening if not each.endswith((" on 127.0.0.1", " on ::ffff:127.0.0.1", " on ::1"))]


def test_the_files_of_ray_are_private_and_removed(home: Path) -> None:
    folders = {Path(path): mode for path, mode in json.loads((home / "folders").read_text()).items()}
    outermost = min(folders, key=lambda path: len(path.parts))
    assert outermost.parent == Path("/tmp")  # TMPDIR was too long
    assert folders[outermost] == 0o700
    assert not outermost.exists()


def test_the_run_directory(home: Path) -> None:
    run = home / "runs" / "both"
    names = {"config.yaml", "data.json", "calibration.json", "metrics.jsonl", "events.jsonl", "dual.jsonl", "README.md"}
    assert names | {"checkpoints", "samples", "tb"} <= {path.name for path in run.iterdir()}
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-000000008",
        "step-000000012",
        "step-000000020",
    ]
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [4, 8, 12, 16, 20]
    assert [row["event"] for row in rows(run / "events.jsonl")].count("calibrated") == 2
    assert cdt.load(run).state.step == 20


def test_the_journal_has_a_row_per_period_and_constraint(home: Path) -> None:
    journal = rows(home / "runs" / "both" / "dual.jsonl")
    assert [(row["period"], row["step"], row["constraint"]) for row in journal] == [
        (1, 12, "four"),
        (1, 12, "rare"),
        (2, 16, "four"),
        (2, 16, "rare"),
        (3, 20, "four"),
        (3, 20, "rare"),
    ]
    for row in journal:
        assert row["count"] == 16
        assert row["slack"] == pytest.approx(row["threshold"] - row["loss"])
        assert row["satisfied"] == (row["slack"] >= 0)
        assert 0 <= row["lambda"] < 10


def test_tensorboard(home: Path) -> None:
    events = EventAccumulator(str(home / "runs" / "both" / "tb"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    constraint = {f"constraints/four/{name}" for name in ("lambda", "loss", "threshold", "slack", "satisfied")}
    training = {f"train/{name}" for name in ("loss", "grad_norm", "lr", "samples_per_s", "data_wait_s")}
    assert constraint | training | {"mixture/base", "mixture/rare"} <= tags
    assert events.Tags()["images"] == ["samples/ema"]


def test_one_process_gives_the_weights_and_multipliers_of_two(home: Path) -> None:
    run_cdt(home, "train", "both.yaml", "run.name=alone", "run.workers=0")
    runs = home / "runs"
    # Sums in another order; Adam divides by the gradient's size and so enlarges rounding where gradients vanish.
    assert relative_distance(ema(runs / "alone", 20), ema(runs / "both", 20)) < 1e-4
    for one, two in zip(rows(runs / "alone" / "dual.jsonl"), rows(runs / "both" / "dual.jsonl"), strict=True):
        assert one["lambda"] == pytest.approx(two["lambda"], rel=1e-5)
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_fine_tuning_on_two_workers_is_that_on_one(home: Path) -> None:
    """An adapter on a network whose weights are divided, beside a teacher that is divided and off-loaded."""
    shard(SOURCES["digits"](), home / "new", only=["9"])
    (home / "tune.yaml").write_text(TUNE)
    run_cdt(home, "train", "tune.yaml", "run.name=tuned")
    run_cdt(home, "train", "tune.yaml", "run.name=tuned-alone", "run.workers=0")
    runs = home / "runs"
    assert relative_distance(ema(runs / "tuned-alone", 12), ema(runs / "tuned", 12)) < 1e-4
    one, two = (rows(runs / name / "dual.jsonl") for name in ("tuned-alone", "tuned"))
    assert len(one) == 3
    for mine, other in zip(one, two, strict=True):
        assert mine["lambda"] == pytest.approx(other["lambda"], rel=1e-5)
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_resuming_ends_where_the_uninterrupted_run_ended(home: Path) -> None:
    runs = home / "runs"
    run_cdt(home, "train", "both.yaml", "run.name=cut", "run.workers=0", "train.dual_steps=4")
    run_cdt(home, "resume", "runs/cut", "train.dual_steps=12")
    assert relative_distance(ema(runs / "cut", 20), ema(runs / "alone", 20)) == 0
    assert rows(runs / "cut" / "dual.jsonl") == rows(runs / "alone" / "dual.jsonl")
    assert "complete: 20 of 20 steps" in run_cdt(home, "resume", "runs/cut", status=2)


def test_a_run_goes_on_with_other_numbers_of_workers(home: Path) -> None:
    """One, two (of three, over which a batch does not divide), one: the multipliers and weights of two throughout."""
    runs = home / "runs"
    run_cdt(home, "train", "both.yaml", "run.name=elastic", "run.workers=0", "train.dual_steps=2")
    more = ("run.workers=3", "run.min_workers=1", "train.dual_steps=7")
    assert "2 of 3 workers are used" in run_cdt(home, "resume", "runs/elastic", *more)
    run_cdt(home, "resume", "runs/elastic", "run.workers=0", "run.min_workers=null", "train.dual_steps=12")
    started = [row["text"] for row in rows(runs / "elastic" / "events.jsonl") if row["event"] == "start"]
    assert [text.partition(" on ")[2] for text in started] == ["1 workers", "2 workers", "1 workers"]
    assert relative_distance(ema(runs / "elastic", 20), ema(runs / "both", 20)) < 1e-4
    for one, two in zip(rows(runs / "elastic" / "dual.jsonl"), rows(runs / "both" / "dual.jsonl"), strict=True):
        assert one["lambda"] == pytest.approx(two["lambda"], rel=1e-5)


def test_a_twin_forks_from_the_warm_checkpoint(home: Path) -> None:
    run_cdt(home, "train", "both.yaml", "run.name=twin", "run.workers=0", "run.fork=runs/alone", "constraints={}")
    twin = home / "runs" / "twin"
    assert rows(twin / "events.jsonl")[0]["text"].startswith("step 8 of 20")
    assert not (twin / "dual.jsonl").exists()
    assert relative_distance(ema(twin, 20), ema(home / "runs" / "alone", 20)) > 1e-4


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of NumPy 2, about diffusers
def test_samples_evaluation_and_export(home: Path) -> None:
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    run_cdt(home, "sample", "runs/both", "-n", "5", "-o", "five.npz", "--seed", "3")
    five = np.load(home / "five.npz")["images"]
    assert five.shape == (5, 1, 8, 8)
    run_cdt(home, "evaluate", "runs/both", "-n", "20")
    evaluation = json.loads((home / "runs" / "both" / "evaluation.json").read_text())
    assert sum(evaluation["shares"]) == pytest.approx(1)
    assert "20 samples" in (home / "runs" / "both" / "README.md").read_text()
    run_cdt(home, "export", "runs/both", "exported")
    pipeline: Any = DDPMPipeline.from_pretrained(home / "exported")
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(cdt.sample_seed(3, k)) for k in range(5)]
    images = pipeline(batch_size=5, generator=generators, num_inference_steps=4, output_type="np").images
    ours = (cdt.load(home / "runs" / "both").sample(5, seed=3).numpy() + 1) / 2
    assert np.abs(images.transpose(0, 3, 1, 2) - ours).max() < 1e-5


def test_a_worker_that_fails_speaks_once(home: Path, tmp_path: Path) -> None:
    shard(SOURCES["digits"](), tmp_path / "data")
    (tmp_path / "both.yaml").write_text(CONFIG)
    tar = tmp_path / "data" / "train" / "000000.tar"
    content = bytearray(tar.read_bytes())
    content[100_000:400_000] = bytes(300_000)
    tar.write_bytes(content)
    said = run_cdt(tmp_path, "train", "both.yaml", status=1)
    assert said.count("000000.tar") == 1
    assert "cdt verify" in said
    assert "Traceback" not in said


def test_a_run_that_exists_can_be_resumed_or_needs_another_name(home: Path) -> None:
    said = run_cdt(home, "train", "both.yaml", "run.workers=0", status=2)
    assert "cdt resume runs/both" in said
    assert "run.name=NAME" in said
