"""Ways to a fair sampler, side by side: constraints against rebalancing with lambda* and against doing nothing.

python tools/bench/fairness.py digits [--seeds 0 1 2] [--out runs/fairness] [--setting three|ten] [--arms NAME ...]
python tools/bench/fairness.py idx DIRECTORY ...          # MNIST's files: 16x16, classes 4, 5, 7 cut to a twentieth

All arms of a seed fork from one warm checkpoint and take equally many samples; what the dual arms measure is on top and
is reported as CPU time. Setting `three` asks for 0.1 of each cut class, `ten` for 0.09 of every class. The classifier
that steers (plain, seed 1) is another than the one that judges (residual, seed 0). Results are appended to
OUT/results.jsonl as they come, and arms that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CUT = ("4", "5", "7")
ARMS: dict[str, dict[str, Any]] = {
    "unconstrained": {"constraints": "none"},
    "fixed lambda*": {"constraints": "loss", "dual.rule": "fixed"},
    "dual, probe": {"constraints": "loss"},
    "dual, generated": {"constraints": "generated"},  # its period is the protocol's, long as sampling costs
    "reweight lambda*": {"constraints": "loss", "dual.rule": "fixed", "data.estimator": "reweight"},
    "separate lambda*": {"constraints": "loss", "dual.rule": "fixed", "data.estimator": "separate"},
}
"""What distinguishes the arms. ``separate`` takes its price: batches larger by the number of its parts, fewer steps."""


@dataclass(frozen=True)
class Protocol:
    """A data set, its network and the lengths of training."""

    source: tuple[str, ...]
    keep: float
    resize: int | None
    settings: dict[str, Any]
    window: float
    generated_period: int
    judge_steps: int
    sampler_steps: int


COMMON = {
    "run.workers": 0,
    "diffusion.prediction": "v_prediction",
    "diffusion.weighting": "simple",
    "train.batch_size": 64,
    "train.grid_images": 0,
    "train.log_steps": 50,
    "data.epoch_samples": 1600,
}
PROTOCOLS = {
    "digits": Protocol(
        ("digits",),
        0.1,
        None,
        {
            "network": {"kind": "unet", "channels": [16, 32], "layers_per_block": 1},
            "train": {"warm_steps": 800, "dual_steps": 600, "lr": 2e-3, "ema_decay": 0.99},
        },
        window=0.0,
        generated_period=25,
        judge_steps=320,
        sampler_steps=20,
    ),
    "idx": Protocol(
        ("idx",),
        0.05,
        16,
        {
            "network": {"kind": "unet", "channels": [16, 32, 64], "layers_per_block": 1},
            "train": {"warm_steps": 3000, "dual_steps": 1000, "lr": 1e-3, "ema_decay": 0.995},
        },
        window=0.5,
        generated_period=50,
        judge_steps=1500,
        sampler_steps=20,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Constraints against rebalancing.")
    parser.add_argument("data", choices=PROTOCOLS)
    parser.add_argument("directory", nargs="?", help="of the IDX files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/fairness"))
    parser.add_argument("--setting", choices=("three", "ten"), default="three")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--samples", type=int, default=2000)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    protocol = PROTOCOLS[arguments.data]
    out = arguments.out / arguments.data
    for seed in arguments.seeds:
        bench = Bench(protocol, arguments.directory, out, seed, arguments.samples)
        for arm in arguments.arms:
            bench.run(arm, arguments.setting)
    Console(width=140).print(table(rows(out), arguments.setting))


class Bench:
    """One seed: its data, its judges, its warm model, and the arms that fork from it."""

    def __init__(self, protocol: Protocol, directory: str | None, out: Path, seed: int, samples: int) -> None:
        self.protocol, self.out, self.seed, self.samples = protocol, out, seed, samples
        self.folder = out / f"seed-{seed}"
        self._prepare(directory)

    def _prepare(self, directory: str | None) -> None:
        from cdt.data.format.index import Index
        from cdt.data.sources import SOURCES
        from cdt.data.write.shard import shard
        from cdt.judges import Classifier
        from cdt.runs.evaluation import classifier_of

        p = self.protocol
        cut: dict[str, float] = {c: p.keep for c in CUT}  # noqa: C420 (keys would be literals)
        for shards, keep in ((self.out / "full", None), (self.folder / "biased", cut)):
            if not shards.exists():
                source = SOURCES[p.source[0]](*([directory] if directory else []))
                shard(source, shards, keep=keep, resize=p.resize, seed=self.seed)
        self.reference = Index.load(self.out / "full")
        self.steering = self.out / "steering.safetensors"
        if not self.steering.exists():
            classifier_of(self.reference, steps=p.judge_steps).save(self.steering)
        judge = self.out / "judge.safetensors"
        if not judge.exists():
            classifier_of(self.reference, architecture="residual", seed=0, steps=p.judge_steps).save(judge)
        self.judge = Classifier.load(judge)
        self.warm = self.folder / "warm"
        if not list(self.warm.glob("checkpoints/step-*")):
            self._train("warm", {}, **{"train.dual_steps": 0})

    def _train(self, name: str, constraints: dict[str, Any], **changes: Any) -> Any:
        """A run, anew where one was interrupted."""
        import cdt

        shutil.rmtree(self.folder / name, ignore_errors=True)
        tree: dict[str, Any] = {"constraints": constraints, "sampler": {"steps": self.protocol.sampler_steps}}
        nested = {f"{section}.{key}": v for section, keys in self.protocol.settings.items() for key, v in keys.items()}
        flat = COMMON | nested | changes
        flat |= {"run.seed": self.seed, "run.dir": str(self.folder), "run.name": name}
        flat["data.shards"] = str(self.folder / "biased")
        for path, value in flat.items():
            section, _, key = path.partition(".")
            tree.setdefault(section, {})[key] = value
        return cdt.train(cdt.RunConfig.model_validate(tree))

    def run(self, arm: str, setting: str) -> None:
        from cdt.runs.evaluation import evaluate_run

        constraints = self._constraints(ARMS[arm]["constraints"], setting)
        if not constraints:
            setting = "any"
        done = {(row["seed"], row["arm"], row["setting"]) for row in rows(self.out)}
        if (self.seed, arm, setting) in done:
            return
        changes = {key: value for key, value in ARMS[arm].items() if key != "constraints"}
        if ARMS[arm]["constraints"] == "generated":
            changes["dual.period"] = self.protocol.generated_period
        if changes.get("data.estimator") == "separate":
            parts = len(constraints) + 1
            steps = self.protocol.settings["train"]["dual_steps"]
            changes |= {"train.batch_size": 64 * parts, "train.dual_steps": steps // parts}
            changes |= {"train.ema_decay": 1 - (1 - self.protocol.settings["train"]["ema_decay"]) * parts}
        name = f"{setting}-{arm.replace(' ', '-').replace('*', '').replace(',', '')}"
        started = time.process_time()
        run = self._train(name, constraints, **{"run.fork": str(self.warm)}, **changes)
        seconds = time.process_time() - started
        samples = run.sample(self.samples, seed=self.seed)
        evaluation = evaluate_run(run, self.reference, self.judge, samples)
        row = {
            "seed": self.seed,
            "arm": arm,
            "setting": setting,
            "seconds": seconds,
            "shares": list(evaluation.shares),
            "tv": evaluation.tv_uniform,
            "frechet": evaluation.frechet,
            "confident": evaluation.confident,
            "near_copies": [found.near_copies for found in evaluation.near_copies],
            "near_copies_expected": [found.expected for found in evaluation.near_copies],
            "lambdas": {row["constraint"]: row["lambda"] for row in run.constraint_rows()},
        }
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"seed {self.seed} {setting} {arm}: TV {row['tv']:.3f} in {seconds:.0f} s", flush=True)

    def _constraints(self, kind: str, setting: str) -> dict[str, Any]:
        if kind == "none":
            return {}
        names, floor = (CUT, 0.1) if setting == "three" else (tuple(self.reference.class_names), 0.09)
        if kind == "generated":
            budget = {"generated_frequency": {"min": floor, "classifier": str(self.steering)}}
            return {f"class {name}": {"class": name, **budget} for name in names}
        budget = {"min_frequency": floor, "window": self.protocol.window}
        return {f"class {name}": {"class": name, **budget} for name in names}


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(found: list[dict[str, Any]], setting: str) -> Table:
    """Medians over the seeds, and the range of the total variation."""
    printed = Table(title=f"setting: {setting}", box=None)
    for column in ("arm", "seeds", "least", "4 / 5 / 7", "TV", "range", "Fréchet", "sure", "copies (expected)", "s"):
        printed.add_column(column, no_wrap=True)
    for arm in ARMS:
        chosen = [row for row in found if row["arm"] == arm and row["setting"] in (setting, "any")]
        if not chosen:
            continue
        tvs = [row["tv"] for row in chosen]
        shares = [statistics.median(row["shares"][int(c)] for row in chosen) for c in CUT]
        copies = sum(sum(row["near_copies"]) for row in chosen)
        expected = sum(sum(row["near_copies_expected"]) for row in chosen)
        printed.add_row(
            arm,
            str(len(chosen)),
            f"{min(min(row['shares']) for row in chosen):.3f}",
            " / ".join(f"{share:.3f}" for share in shares),
            f"{statistics.median(tvs):.3f}",
            f"{min(tvs):.3f} to {max(tvs):.3f}",
            f"{statistics.median(row['frechet'] for row in chosen):.2f}",
            f"{statistics.median(row['confident'] for row in chosen):.3f}",
            f"{copies} ({expected:.1f})",
            f"{statistics.median(row['seconds'] for row in chosen):.0f}",
        )
    return printed


if __name__ == "__main__":
    main()
