"""The ``cdt`` command: one thin function per verb. What they do stands elsewhere."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence

from rich.console import Console

from cdt.cli.parser import build_parser, parse
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
        return VERBS[arguments.verb](arguments, Console()) or 0
    except CdtError as error:
        print(f"cdt {arguments.verb}: {_printable(str(error))}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"cdt {arguments.verb}: {_printable(str(reason))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        how = "terminated" if terminated else "interrupted"
        print(f"cdt {arguments.verb}: {how}{f'; {interrupt}' if interrupt.args else ''}", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def _terminated(number: int, frame: object) -> None:
    raise Terminated


def shard(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import counting_bar
    from cdt.cli.report import split_lines
    from cdt.data.sources import SOURCES
    from cdt.data.write.select import parse_fractions, parse_names
    from cdt.data.write.shard import shard as write_shards

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
    from cdt.cli.progress import counting_bar
    from cdt.cli.report import split_lines
    from cdt.data.inspect.foreign import index_shards

    chosen = {name: vars(arguments)[name] for name in ("split", "class_field", "resize", "max_bad")}
    with counting_bar(console, "scanning shards") as progress:
        header, notes = index_shards(arguments.urls, arguments.out, **chosen, progress=progress)
    counts = {name: split.class_counts for name, split in header.splits.items()}
    tars = sum(len(split.shards) for split in header.splits.values())
    _say(console, *notes, *split_lines(arguments.out, counts, header.class_names, tars))


def verify(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import counting_bar
    from cdt.data.inspect.verify import verify as read_everything

    with counting_bar(console, "verifying") as progress:
        report = read_everything(arguments.shards, progress)
    if not report.ok:
        raise InputError(f"{arguments.shards} is damaged:\n  " + "\n  ".join(report.problems))
    _say(console, f"{arguments.shards}: {report.samples:,} samples in {report.shards:,} shards are as the index says")


def train(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import progress_bar
    from cdt.cli.report import end_of_training
    from cdt.cluster.session import cluster
    from cdt.config import RunConfig
    from cdt.runs.dryrun import describe_plan
    from cdt.runs.start import train as run_training

    config = RunConfig.load(arguments.config, arguments.overrides)
    if arguments.dry_run:
        with cluster(arguments.address):
            _say(console, describe_plan(config))
        return
    with progress_bar(console, config.run.name) as show:
        run = run_training(config, show, arguments.address)
    console.print(end_of_training(run.directory, run.constraint_rows(), run.bad_samples()))


def resume(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import progress_bar
    from cdt.cli.report import end_of_training
    from cdt.runs.start import resume as resume_training

    with progress_bar(console, arguments.run.resolve().name) as show:
        run = resume_training(arguments.run, arguments.overrides, show, arguments.address)
    console.print(end_of_training(run.directory, run.constraint_rows(), run.bad_samples()))


def fetch(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.runs.mirror import fetch as fetch_run

    fetch_run(arguments.url, arguments.directory)
    _say(console, f"run: {arguments.directory}; continue it with `cdt resume {arguments.directory}`")


def status(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.report import end_of_training
    from cdt.runs.run import load
    from cdt.runs.status import describe_status

    _say(console, *describe_status(arguments.run))
    if rows := load(arguments.run).constraint_rows():
        console.print(end_of_training(arguments.run, rows))


def submit(arguments: argparse.Namespace, console: Console) -> int:
    from cdt.cluster.jobs import Jobs

    jobs = Jobs(arguments.address)
    name = jobs.submit(arguments.config, arguments.overrides, arguments.directory, arguments.wheel)
    _say(console, f"job {name}: {arguments.config} on {jobs.address}; end it with `cdt stop {name}`")
    if not arguments.follow:
        return 0
    try:
        return jobs.follow(name, lambda text: console.out(text, end="", highlight=False))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"job {name} goes on; end it with `cdt stop {name}`") from None


def jobs(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.report import jobs_table
    from cdt.cluster.jobs import Jobs

    console.print(jobs_table([vars(row) for row in Jobs(arguments.address).rows()]))


def stop(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cluster.jobs import Jobs

    found = Jobs(arguments.address)
    with console.status("the run saves and leaves"):
        ended = found.stop(arguments.job)
    _say(console, f"job {arguments.job} {ended}: {found.last_words(arguments.job)}")


def doctor(arguments: argparse.Namespace, console: Console) -> int:
    from cdt.cluster.doctor import examine

    found = examine(arguments.address, arguments.paths)
    _say(console, *map(str, found))
    return int(any(line.remedy for line in found))


def sample(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.runs.output import check_samples_file, save_samples
    from cdt.runs.run import load

    run = load(arguments.run, arguments.checkpoint)
    check_samples_file(arguments.out)
    images = run.sample(
        arguments.n, seed=arguments.seed, sampler=arguments.sampler, steps=arguments.steps, raw=arguments.raw
    )
    origin = {"name": f"samples of {run.config.run.name}", "model": run.checkpoint.name, "seed": arguments.seed}
    save_samples(images, arguments.out, origin, bounded=run.bounded)
    _say(console, f"{arguments.n} samples: {arguments.out}")


def classifier(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.evaluation_table import classifier_table
    from cdt.data.format.index import Index
    from cdt.runs.evaluation import classifier_of
    from cdt.runs.output import check_new_file

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
    from cdt.cli.evaluation_table import evaluation_table
    from cdt.data.format.index import Index
    from cdt.runs.evaluation import evaluate_run, train_judge
    from cdt.runs.run import load

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
    from cdt.runs.run import load

    run = load(arguments.run, arguments.checkpoint)
    run.export(arguments.directory, sampler=arguments.sampler, steps=arguments.steps, raw=arguments.raw)
    _say(console, f"exported to {arguments.directory}; its README.md says how to load it")


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(_printable(line), markup=False, highlight=False, soft_wrap=True)


def _printable(text: str) -> str:
    """Names in data may hold anything, a terminal's control sequences too."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


VERBS: dict[str, Callable[[argparse.Namespace, Console], int | None]] = {
    verb.__name__: verb
    for verb in (
        *(shard, index, verify, train, resume, fetch, status, sample, classifier, evaluate, export),
        *(submit, jobs, stop, doctor),
    )
}
