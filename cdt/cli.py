"""The ``cdt`` command: one thin function per verb. What they do stands elsewhere."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from cdt.errors import CdtError, InputError, Terminated

# Verbs import what they need, so that `cdt --help` and wrong options answer at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb. Exit status 0: done; 1: failed while running; 2: the input is wrong; 130: interrupted;
    143: terminated.

    What went wrong is said in one or few lines; only a bug has a traceback.
    """
    arguments = parse(build_parser(), argv)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        arguments.verb(arguments, Console())
    except CdtError as error:
        print(f"cdt {arguments.name}: {_printable(str(error))}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"cdt {arguments.name}: {_printable(str(reason))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        how = "terminated" if terminated else "interrupted"
        print(f"cdt {arguments.name}: {how}{f'; {interrupt}' if interrupt.args else ''}", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    return 0


def _terminated(number: int, frame: object) -> None:
    raise Terminated


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Like ``parse_args``; but argparse takes ``key=value`` for unknown where an option stands before it."""
    arguments, unknown = parser.parse_known_args(argv)
    if "overrides" in arguments:
        arguments.overrides = [*arguments.overrides, *(text for text in unknown if not text.startswith("-"))]
        unknown = [text for text in unknown if text.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def shard(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.data.select import parse_fractions, parse_names
    from cdt.data.shard import shard as write_shards
    from cdt.data.sources import SOURCES
    from cdt.monitor.progress import counting_bar
    from cdt.monitor.report import split_lines

    where = [] if arguments.source == "digits" else [arguments.directory]
    where += [arguments.attributes] if arguments.source == "folder" else []
    where += [arguments.image, arguments.label] if arguments.source == "hf" else []
    source = SOURCES[arguments.source](*where)
    with counting_bar(console, "writing shards") as progress:
        summary = write_shards(
            source,
            arguments.out,
            keep=parse_fractions(arguments.keep, "--keep") if arguments.keep is not None else None,
            only=parse_names(arguments.only, "--only") if arguments.only is not None else (),
            drop=parse_names(arguments.drop, "--drop") if arguments.drop is not None else (),
            split=parse_fractions(arguments.split, "--split") if arguments.split is not None else None,
            resize=arguments.resize,
            seed=arguments.seed,
            shard_mb=arguments.shard_mb,
            pack=arguments.pack,
            progress=progress,
        )
    splits = summary.header.splits
    tars = sum(len(split.shards) for split in splits.values())
    counts = {name: split.class_counts for name, split in splits.items()}
    _say(console, *summary.notes, *split_lines(arguments.out, counts, summary.header.class_names, tars))


def index(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.data.foreign import index_shards
    from cdt.monitor.progress import counting_bar
    from cdt.monitor.report import split_lines

    chosen = {name: vars(arguments)[name] for name in ("split", "class_field", "resize", "max_bad")}
    with counting_bar(console, "scanning shards") as progress:
        header, notes = index_shards(arguments.urls, arguments.out, **chosen, progress=progress)
    counts = {name: split.class_counts for name, split in header.splits.items()}
    tars = sum(len(split.shards) for split in header.splits.values())
    _say(console, *notes, *split_lines(arguments.out, counts, header.class_names, tars))


def verify(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.data.verify import verify as read_everything
    from cdt.monitor.progress import counting_bar

    with counting_bar(console, "verifying") as progress:
        report = read_everything(arguments.shards, progress)
    if not report.ok:
        raise InputError(f"{arguments.shards} is damaged:\n  " + "\n  ".join(report.problems))
    _say(console, f"{arguments.shards}: {report.samples:,} samples in {report.shards:,} shards are as the index says")


def train(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.config import RunConfig
    from cdt.dryrun import describe_plan
    from cdt.monitor.progress import progress_bar
    from cdt.monitor.report import end_of_training
    from cdt.start import train as run_training

    config = RunConfig.load(arguments.config, arguments.overrides)
    if arguments.dry_run:
        _say(console, describe_plan(config))
        return
    with progress_bar(console, config.run.name) as show:
        run = run_training(config, show)
    console.print(end_of_training(run.directory, run.constraint_rows(), run.bad_samples()))


def resume(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.monitor.progress import progress_bar
    from cdt.monitor.report import end_of_training
    from cdt.start import resume as resume_training

    with progress_bar(console, arguments.run.resolve().name) as show:
        run = resume_training(arguments.run, arguments.overrides, show)
    console.print(end_of_training(run.directory, run.constraint_rows(), run.bad_samples()))


def status(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.monitor.report import end_of_training
    from cdt.run import load
    from cdt.status import describe_status

    _say(console, *describe_status(arguments.run))
    if rows := load(arguments.run).constraint_rows():
        console.print(end_of_training(arguments.run, rows))


def sample(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.output import check_samples_file, save_samples
    from cdt.run import load

    run = load(arguments.run, arguments.checkpoint)
    check_samples_file(arguments.out)
    images = run.sample(
        arguments.n, seed=arguments.seed, sampler=arguments.sampler, steps=arguments.steps, raw=arguments.raw
    )
    origin = {"name": f"samples of {run.config.run.name}", "model": run.checkpoint.name, "seed": arguments.seed}
    save_samples(images, arguments.out, origin, bounded=run.bounded)
    _say(console, f"{arguments.n} samples: {arguments.out}")


def classifier(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.data.index import Index
    from cdt.evaluate.table import classifier_table
    from cdt.measure import classifier_of
    from cdt.output import check_new_file

    check_new_file(arguments.out, {".safetensors"}, "OUT")
    if arguments.out.exists():
        raise InputError(f"OUT {arguments.out}: it exists; name a new file")
    index = Index.load(arguments.shards, arguments.split)
    with console.status("training the classifier"):
        trained = classifier_of(
            index,
            arguments.attribute,
            architecture=arguments.architecture,
            steps=arguments.steps,
            seed=arguments.seed,
        )
    trained.save(arguments.out)
    console.print(classifier_table(trained))
    _say(console, f"classifier of {len(trained.labels)} labels: {arguments.out}")


def evaluate(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.data.index import Index
    from cdt.evaluate.table import evaluation_table
    from cdt.measure import evaluate_run, train_judge
    from cdt.run import load

    run = load(arguments.run, arguments.checkpoint)
    data = run.config.data
    reference = Index.load(arguments.reference or data.shards, arguments.split, data.allow_pipe)
    with console.status("training the judge"):
        judge = train_judge(reference)
    with console.status(f"drawing {arguments.n} samples"):
        samples = run.sample(arguments.n, seed=arguments.seed)
    evaluation = evaluate_run(run, reference, judge, samples)
    console.print(evaluation_table({run.config.run.name: evaluation}, console))


def export(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.run import load

    run = load(arguments.run, arguments.checkpoint)
    run.export(arguments.directory, sampler=arguments.sampler, steps=arguments.steps, raw=arguments.raw)
    _say(console, f"exported to {arguments.directory}; its README.md says how to load it")


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(_printable(line), markup=False, highlight=False, soft_wrap=True)


def _printable(text: str) -> str:
    """Names in data may hold anything, a terminal's control sequences too."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cdt", description="Train diffusion models under requirements.")
    verbs = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)

    def add(verb: Callable[[argparse.Namespace, Console], None], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(verb.__name__, help=text, description=text)
        added.set_defaults(verb=verb)
        return added

    _add_sources(add(shard, "write images as WebDataset shards with an index"))

    added = add(index, "write an index for WebDataset shards that exist already")
    added.add_argument("urls", nargs="+", metavar="URL", help="tars: paths or URLs, x-{000..099}.tar, or @FILE of them")
    added.add_argument("out", type=Path, metavar="OUT", help="the directory of the index; it can be that of the tars")
    added.add_argument("--class-field", metavar="NAME", help="the label is this field of .json (.cls)")
    added.add_argument("--split", default="train", metavar="NAME", help="what to call these samples (train)")
    added.add_argument("--resize", type=_positive, metavar="N", help="read images of all sizes as squares of N pixels")
    added.add_argument("--max-bad", type=float, default=0.001, metavar="F", help="share that may be unusable (0.001)")

    added = add(verify, "check shards against their index: counts, checksums, every image")
    added.add_argument("shards", metavar="SHARDS", help="a directory written by `cdt shard` or `cdt index`, or its URL")

    added = add(train, "train a new run")
    added.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; see configs/")
    _add_overrides(added, "settings that replace those of the file")
    added.add_argument("--dry-run", action="store_true", help="check everything, print the plan, write nothing")

    added = add(resume, "continue a run from its newest complete checkpoint")
    added.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    _add_overrides(added, "settings that may change, as train.dual_steps")

    added = add(status, "where a run stands, and whether something trains it")
    added.add_argument("run", type=Path, metavar="RUN", help="a run directory")

    added = add(sample, "draw samples from a run's EMA weights")
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

    added = add(classifier, "train a classifier of shards, for constraints on what is generated")
    added.add_argument("shards", type=Path, metavar="SHARDS", help="a directory written by `cdt shard`, best balanced")
    added.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write")
    added.add_argument("--split", default="train", help="split of the shards (train)")
    added.add_argument("--attribute", metavar="NAME", help="tell the values of this attribute apart, not the classes")
    added.add_argument(
        "--architecture", choices=("plain", "residual"), default="plain", help="the evaluation's is residual (plain)"
    )
    added.add_argument("--steps", type=_positive, default=320, help="more for tens of thousands of images (320)")
    added.add_argument("--seed", type=int, default=1, help="of weights and batches; the evaluation's is 0 (1)")

    added = add(evaluate, "judge a run's samples: shares, total variation, Fréchet distance, near-copies")
    _add_run(added)
    added.add_argument("--reference", type=Path, help="shards to train the judge on, best balanced (the run's own)")
    added.add_argument("--split", default="train", help="split of the reference (train)")
    added.add_argument("-n", type=_positive, default=2000, help="samples to judge (2000)")
    added.add_argument("--seed", type=int, default=0, help="of the samples (0)")

    added = add(export, "write a diffusers pipeline with a model card")
    _add_sampling(added)
    added.add_argument("directory", type=Path, metavar="DIR", help="where to; new or empty")
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
