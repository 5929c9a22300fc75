"""The main job on scikit-learn's digits: biased shards, a constrained run and its unconstrained twin, one table.

python tools/demo.py [--seed 0] [--samples 2000] [--out runs/demo]
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

CONFIG = Path(__file__).parent.parent / "configs" / "digits-fair.yaml"
CUT = {"4": 0.1, "5": 0.1, "7": 0.1}


def main() -> int:
    return command("A fair sampler from biased data.", Path("runs/demo"), demo)


def command(description: str, place: Path, show: Callable[[Path, int, int, list[str]], None]) -> int:
    """Runs a demonstration with the options that all of them have; its exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=0, help="of data, training and samples")
    parser.add_argument("--samples", type=int, default=2000, help="drawn from each run")
    parser.add_argument(
        "--out", type=Path, help=f"directory to write; default: the first free of {place}, {place}-2, ..."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="other settings for all runs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    from cdt.errors import CdtError

    try:
        show(arguments.out or _first_free(place), arguments.seed, arguments.samples, arguments.overrides)
    except CdtError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def demo(out: Path, seed: int, samples: int, overrides: list[str]) -> None:
    console, started = Console(), time.monotonic()
    with console.status("loading Ray, PyTorch and DeepSpeed"):
        import cdt
        from cdt.cli.evaluation_table import evaluation_table
        from cdt.cli.progress import progress_bar
        from cdt.cluster.session import local_ray
        from cdt.data.format.index import Index
        from cdt.data.sources import SOURCES
        from cdt.data.write.shard import shard
        from cdt.monitor.pictures import save_images
        from cdt.runs.evaluation import evaluate_run, train_judge

    shard(SOURCES["digits"](), out / "shards" / "full", seed=seed)
    shard(SOURCES["digits"](), out / "shards" / "biased", keep=CUT, seed=seed)
    common = [f"run.dir={out}", f"run.seed={seed}", f"data.shards={out / 'shards' / 'biased'}", *overrides]
    with local_ray():
        with progress_bar(console, "constrained  ") as show:
            constrained = cdt.train(cdt.RunConfig.load(CONFIG, [*common, "run.name=constrained"]), show)
        twin = [*common, "run.name=unconstrained", f"run.fork={constrained.directory}", "constraints={}"]
        with progress_bar(console, "unconstrained") as show:
            unconstrained = cdt.train(cdt.RunConfig.load(CONFIG, twin), show)

    with console.status("training the judge on the full, balanced data"):
        reference = Index.load(out / "shards" / "full")
        judge = train_judge(reference)
    evaluations = {}
    for title, run in (("without", unconstrained), ("with", constrained)):
        with console.status(f"drawing {samples} samples {title} constraints"):
            images = run.sample(samples, seed=seed)
        save_images(images[:256], run.directory / "samples.png")
        evaluations[title] = evaluate_run(run, reference, judge, images)
    console.print(evaluation_table(evaluations, console))
    for what, path in (
        ("sample grids", f"{unconstrained.directory}/samples.png and {constrained.directory}/samples.png"),
        ("TensorBoard", f"tensorboard --logdir {out}"),
        ("runs", f"{unconstrained.directory} and {constrained.directory}"),
    ):
        console.print(f"{what:<14}{path}", highlight=False, soft_wrap=True)
    console.print(f"{'time':<14}{time.monotonic() - started:.0f} s", highlight=False)


def _first_free(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{number}") if number > 1 else path for number in range(1, 10_000))
    return next(name for name in names if not name.exists())


if __name__ == "__main__":
    sys.exit(main())
