"""Fine-tuning without forgetting: a model of digits learns the nines, with the prior constraint and without.

python tools/demo_finetune.py [--seed 0] [--samples 2000] [--out runs/demo-finetune]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from demo import command
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from cdt.evaluate.results import Divergence

CONFIGS = Path(__file__).parent.parent / "configs"
NEW = 9


@dataclass(frozen=True)
class Arm:
    """What a model generates."""

    shares: np.ndarray
    """[K], as the judge sees its samples."""
    frechet: float
    """Between its samples of the old classes and the real ones."""
    divergence: Divergence | None


def demo(out: Path, seed: int, samples: int, overrides: list[str]) -> None:
    console, started = Console(), time.monotonic()
    with console.status("loading Ray, PyTorch and DeepSpeed"):
        import cdt
        from cdt.cli.progress import progress_bar
        from cdt.cluster.session import local_ray
        from cdt.data.format.index import Index
        from cdt.data.sources import SOURCES
        from cdt.data.write.shard import shard
        from cdt.monitor.pictures import save_images
        from cdt.runs.evaluation import divergence_from_origin, read_images, train_judge

    shard(SOURCES["digits"](), out / "shards" / "full", seed=seed)
    shard(SOURCES["digits"](), out / "shards" / "old", drop=[str(NEW)], seed=seed)
    shard(SOURCES["digits"](), out / "shards" / "new", only=[str(NEW)], seed=seed)
    runs = {}

    def train(name: str, config: str, *settings: str) -> None:
        given = [f"run.dir={out}", f"run.name={name}", f"run.seed={seed}", *settings, *overrides]
        with progress_bar(console, f"{name:<11}") as show:
            runs[name] = cdt.train(cdt.RunConfig.load(CONFIGS / config, given), show)

    new = [f"init={out / 'pretrained'}", f"data.shards={out / 'shards' / 'new'}"]
    with local_ray():
        train("pretrained", "digits-pretrain.yaml", f"data.shards={out / 'shards' / 'old'}")
        train("plain", "digits-finetune.yaml", *new, "constraints={}")
        train("constrained", "digits-finetune.yaml", *new)

    with console.status("training the judge on all digits"):
        judge = train_judge(Index.load(out / "shards" / "full"))
    real, _ = read_images(Index.load(out / "shards" / "old"))
    window = runs["constrained"].calibration()[0]["window"]
    arms = {}
    for name, run in runs.items():
        with console.status(f"drawing {samples} samples: {name}"):
            images = run.sample(samples, seed=seed)
            divergence = divergence_from_origin(run, 1000, window, seed=seed)
        save_images(images[:256], run.directory / "samples.png")
        arms[name] = judged(images, judge, real, divergence)
    console.print(table(arms))
    budget = runs["constrained"].config.constraints["old"].prior.max_kl
    console.print(
        f"KL in nats on log-SNR up to {window:g}, on fresh samples of the pretrained model. With supports apart, the "
        f"budget leaves the new class up to 1 - exp(-{budget:g}) = {1 - np.exp(-budget):.1%}.",
        highlight=False,
    )
    console.print(f"{'sample grids':<14}{out}/*/samples.png", highlight=False, soft_wrap=True)
    console.print(f"{'time':<14}{time.monotonic() - started:.0f} s", highlight=False)


def judged(images: Tensor, judge: Any, real: Tensor, divergence: Divergence | None) -> Arm:
    """Samples [N, C, H, W] before the judge; ``real``: images of the old classes."""
    from cdt.evaluate.frechet import frechet_distance

    labels = judge.probabilities(images).argmax(dim=1)
    shares = np.bincount(labels.numpy(), minlength=len(judge.labels)) / len(images)
    return Arm(shares, frechet_distance(judge.network.features, real, images[labels != NEW]), divergence)


def table(arms: dict[str, Arm]) -> Table:
    from cdt.evaluate.histogram import total_variation

    def among_old(shares: np.ndarray) -> np.ndarray:
        return np.delete(shares, NEW) / np.delete(shares, NEW).sum()

    def nats(found: Divergence | None) -> str:
        return "-" if found is None else f"{found.nats:.2f} ± {found.standard_error:.2f}"

    def budget(found: Divergence | None) -> str:
        return "-" if found is None or found.budget is None else f"{found.budget:.2f}"

    before, *_ = arms.values()
    rows = {
        "share of the old classes": [f"{1 - arm.shares[NEW]:.1%}" for arm in arms.values()],
        "share of the new class": [f"{arm.shares[NEW]:.1%}" for arm in arms.values()],
        "old classes: total variation from before": [
            f"{total_variation(among_old(arm.shares), among_old(before.shares)):.3f}" for arm in arms.values()
        ],
        "old classes: Fréchet distance to real ones": [f"{arm.frechet:.2f}" for arm in arms.values()],
        "KL from the pretrained model": [nats(arm.divergence) for arm in arms.values()],
        "  budget": [budget(arm.divergence) for arm in arms.values()],
    }
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    shown.add_column("")
    for name in arms:
        shown.add_column(name, justify="right")
    for label, values in rows.items():
        shown.add_row(label, *values)
    return shown


if __name__ == "__main__":
    sys.exit(command("Fine-tuning without forgetting.", Path("runs/demo-finetune"), demo))
