"""What the ``cdt`` command understands: its verbs and their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Like ``parse_args``; but argparse takes ``key=value`` for unknown where an option stands before it."""
    arguments, unknown = parser.parse_known_args(argv)
    if "overrides" in arguments:
        arguments.overrides = [*arguments.overrides, *(text for text in unknown if not text.startswith("-"))]
        unknown = [text for text in unknown if text.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdt", description="Train diffusion models under requirements.")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    def add(verb: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(verb, help=text, description=text)

    _add_sources(add("shard", "write images as WebDataset shards with an index"))

    added = add("index", "write an index for WebDataset shards that exist already")
    added.add_argument("urls", nargs="+", metavar="URL", help="tars: paths or URLs, x-{000..099}.tar, or @FILE of them")
    added.add_argument("out", type=Path, metavar="OUT", help="the directory of the index; it can be that of the tars")
    added.add_argument("--class-field", metavar="NAME", help="the label is this field of .json (.cls)")
    added.add_argument("--split", default="train", metavar="NAME", help="what to call these samples (train)")
    added.add_argument("--resize", type=_positive, metavar="N", help="read images of all sizes as squares of N pixels")
    added.add_argument("--max-bad", type=float, default=0.001, metavar="F", help="share that may be unusable (0.001)")

    added = add("verify", "check shards against their index: counts, checksums, every image")
    added.add_argument("shards", metavar="SHARDS", help="a directory written by `cdt shard` or `cdt index`, or its URL")

    added = add("train", "train a new run")
    added.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; see configs/")
    _add_overrides(added, "settings that replace those of the file")
    _add_address(added)
    added.add_argument("--dry-run", action="store_true", help="check everything, print the plan, write nothing")

    added = add("resume", "continue a run from its newest complete checkpoint")
    added.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    _add_overrides(added, "settings that may change, as train.dual_steps")
    _add_address(added)

    added = add("fetch", "bring a run back from the object store that it was mirrored to (run.mirror)")
    added.add_argument("url", metavar="URL", help="of the run, as s3://bucket/runs/NAME")
    added.add_argument("directory", type=Path, metavar="DIR", help="the new run directory")

    added = add("status", "where a run stands, and whether something trains it")
    added.add_argument("run", type=Path, metavar="RUN", help="a run directory")

    added = add("sample", "draw samples from a run's EMA weights")
    _add_sampling(added)
    added.add_argument("-n", type=_positive, default=64, help="how many (64)")
    added.add_argument(
        "-o",
        dest="out",
        type=Path,
        required=True,
        help="FILE.png: a grid; FILE.npz: uint8 images; or a new directory for shards",
    )
    added.add_argument("--seed", type=int, default=0, help="the noise of sample k depends on seed and k alone (0)")

    added = add("classifier", "train a classifier of shards, for constraints on what is generated")
    added.add_argument("shards", type=Path, metavar="SHARDS", help="a directory written by `cdt shard`, best balanced")
    added.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write")
    added.add_argument("--split", default="train", help="split of the shards (train)")
    added.add_argument("--attribute", metavar="NAME", help="tell the values of this attribute apart, not the classes")
    added.add_argument(
        "--architecture", choices=("plain", "residual"), default="plain", help="the evaluation's is residual (plain)"
    )
    added.add_argument("--steps", type=_positive, default=320, help="more for tens of thousands of images (320)")
    added.add_argument("--seed", type=int, default=1, help="of weights and batches; the evaluation's is 0 (1)")

    added = add("evaluate", "judge a run's samples: shares, total variation, Fréchet distance, near-copies")
    _add_run(added)
    added.add_argument("--reference", type=Path, help="shards to train the judge on, best balanced (the run's own)")
    added.add_argument("--split", default="train", help="split of the reference (train)")
    added.add_argument("-n", type=_positive, default=2000, help="samples to judge (2000)")
    added.add_argument("--seed", type=int, default=0, help="of the samples (0)")

    added = add("export", "write a diffusers pipeline with a model card")
    _add_sampling(added)
    added.add_argument("directory", type=Path, metavar="DIR", help="where to; new or empty")

    added = add("submit", "send a run to a Ray cluster as a job, with the files of this directory")
    added.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; its paths are the cluster's")
    _add_overrides(added, "settings that replace those of the file")
    _add_dashboard(added)
    added.add_argument("--follow", action="store_true", help="show what the job prints, and end as it ends")
    added.add_argument("--directory", type=Path, default=Path(), metavar="DIR", help="what is shipped (this directory)")
    added.add_argument("--wheel", type=Path, metavar="FILE.whl", help="of cdt, for nodes that have another one")

    _add_dashboard(add("jobs", "the jobs of a Ray cluster"))

    added = add("stop", "have a job save and leave")
    added.add_argument("job", metavar="ID", help="as `cdt submit` and `cdt jobs` show it")
    _add_dashboard(added)

    added = add("doctor", "what this machine, or all nodes of a cluster, can train; what to do about the rest")
    added.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="that all nodes must see: run directories, shards"
    )
    _add_address(added)
    return parser


def _add_sources(added: argparse.ArgumentParser) -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("out", type=Path, metavar="OUT", help="the directory to write; new or empty")
    options.add_argument("--keep", metavar="C=F,...", help='share of a class to keep, as in "4=0.1,5=0.1"')
    options.add_argument("--only", metavar="C,...", help="only these classes")
    options.add_argument("--drop", metavar="C,...", help="all but these classes")
    options.add_argument("--resize", type=int, metavar="N", help="shorter side to N pixels, then the central square")
    options.add_argument("--split", metavar="S=F,...", help='divide the samples, as in "train=0.9,test=0.1"')
    options.add_argument("--seed", type=int, default=0, help="of order, --keep and --split (0)")
    options.add_argument("--shard-mb", type=float, default=64, metavar="MB", help="largest size of a tar (64)")
    options.add_argument(
        "--pack", action=argparse.BooleanOptionalAction, help="many images in one array (below 4,096 bytes of pixels)"
    )
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("directory", type=Path, metavar="DIR")
    sources = added.add_subparsers(dest="source", metavar="SOURCE", required=True)
    sources.add_parser("digits", help="scikit-learn's digits, 8x8", parents=[options])
    sources.add_parser("idx", help="MNIST's file format", parents=[place, options])
    folder = sources.add_parser("folder", help="DIR/<class>/*.png, jpg, webp, ...", parents=[place, options])
    folder.add_argument("--attributes", type=Path, metavar="FILE.csv", help="column `file`, then one per attribute")
    name = argparse.ArgumentParser(add_help=False)
    name.add_argument("directory", metavar="NAME", help="of the data set, or its directory")
    hub = sources.add_parser("hf", help="a data set of the Hugging Face hub, or a local one", parents=[name, options])
    hub.add_argument("--image", metavar="COLUMN", help="the column of images (the only one)")
    hub.add_argument("--label", metavar="COLUMN", help="the column of labels (the only one)")


def _add_overrides(added: argparse.ArgumentParser, text: str) -> None:
    # With a default, argparse does not count them among the arguments that it misses.
    added.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)


def _add_address(added: argparse.ArgumentParser) -> None:
    text = "a Ray cluster of which this machine is a node, by its head, or auto to find it; else Ray starts here"
    added.add_argument("--address", metavar="HOST:PORT", help=text)


def _add_dashboard(added: argparse.ArgumentParser) -> None:
    text = "the cluster's dashboard, as http://127.0.0.1:8265 (RAY_API_SERVER_ADDRESS)"
    added.add_argument("--address", metavar="URL", help=text)


def _add_run(added: argparse.ArgumentParser) -> None:
    added.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    text = "last, best (all requirements met, then the lowest loss) or a step (last)"
    added.add_argument("--checkpoint", metavar="WHICH", default="last", help=text)


def _add_sampling(added: argparse.ArgumentParser) -> None:
    _add_run(added)
    added.add_argument("--sampler", choices=("ddim", "ddpm", "dpmpp_2m", "unipc"), help="the run's own by default")
    added.add_argument("--steps", type=_positive, help="network evaluations per sample; the run's own by default")
    added.add_argument("--raw", action="store_true", help="the raw weights instead of their moving average")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
