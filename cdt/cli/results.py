"""`cdt sample`, `cdt classifier`, `cdt evaluate`, `cdt export`: what a run has learnt."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from cdt.cli.verb import Verb, add_checkpoint, add_max_bad, add_run, add_sampling, positive, say
from cdt.errors import InputError


def _add_sample(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser)
    parser.add_argument("-n", type=positive, default=64, help="how many (default: 64)")
    parser.add_argument(
        "-o",
        dest="out",
        type=Path,
        required=True,
        help="FILE.png: a grid; FILE.npz: uint8 images; or a new directory for shards",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the noise of sample k depends on seed and k alone (default: 0)"
    )


def _sample(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.runs.output import check_samples_file, save_samples
    from cdt.runs.run import load

    run = load(arguments.run, arguments.checkpoint, check=arguments.check)
    check_samples_file(arguments.out)
    images = run.sample(
        arguments.n, seed=arguments.seed, sampler=arguments.sampler, steps=arguments.steps, raw=arguments.raw
    )
    origin = {"name": f"samples of {run.config.run.name}", "model": run.checkpoint.name, "seed": arguments.seed}
    save_samples(images, arguments.out, origin, bounded=run.bounded)
    say(console, f"{arguments.n} samples of {run.checkpoint.name}: {arguments.out}")


def _architecture(text: str) -> str:
    from cdt.judges.networks import ARCHITECTURES

    if text not in ARCHITECTURES:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(ARCHITECTURES)})")
    return text


def _add_classifier(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="a directory written by `cdt shard`, best balanced")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument("--split", default="train", help="split of the shards (default: train)")
    parser.add_argument("--attribute", metavar="NAME", help="tell the values of this attribute apart, not the classes")
    parser.add_argument(
        "--architecture",
        type=_architecture,
        metavar="KIND",
        default="plain",
        help="type of network; `cdt evaluate` uses `residual`, so prefer the other (default: plain)",
    )
    parser.add_argument(
        "--steps", type=positive, default=320, help="more for tens of thousands of images (default: 320)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of weights and batches; `cdt evaluate` uses 0 (default: 1)"
    )
    add_max_bad(parser)


def _classifier(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.evaluation_table import classifier_table, left_out_note
    from cdt.data.format.index import Index
    from cdt.data.format.problems import check_max_bad
    from cdt.runs.evaluation import classifier_of, labelled
    from cdt.runs.output import check_new_file

    check_new_file(arguments.out, {".safetensors"}, "OUT")
    if arguments.out.exists():
        raise InputError(f"OUT {arguments.out}: it exists; name a new file")
    check_max_bad(arguments.max_bad)
    index = Index.load(arguments.shards, arguments.split)
    with console.status("training the classifier"):
        trained = classifier_of(
            index,
            arguments.attribute,
            architecture=arguments.architecture,
            steps=arguments.steps,
            seed=arguments.seed,
            max_bad=arguments.max_bad,
        )
    trained.save(arguments.out)
    console.print(classifier_table(trained))
    asked = labelled(index, arguments.attribute)
    say(console, *left_out_note([*asked.left_out, *(name for name in asked.labels if name not in trained.labels)]))
    say(console, f"classifier of {len(trained.labels)} labels: {arguments.out}")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--reference", type=Path, help="shards to train the judge on, best balanced (default: the run's own)"
    )
    parser.add_argument("--split", default="train", help="split of the reference (default: train)")
    parser.add_argument("-n", type=positive, default=2000, help="samples to judge (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")


def _evaluate(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.evaluation_table import evaluation_table
    from cdt.data.format.index import Index
    from cdt.runs.evaluation import evaluate_run, train_judge
    from cdt.runs.run import load

    run = load(arguments.run, arguments.checkpoint, check=arguments.check)
    data = run.config.data
    reference = Index.load(arguments.reference or data.shards, arguments.split, data.allow_pipe)
    taken = run.checkpoint.name  # opened first: what is damaged is then told before the judge is trained
    with console.status("training the judge"):
        judge = train_judge(reference, max_bad=data.max_bad_fraction)
    with console.status(f"drawing {arguments.n} samples"):
        samples = run.sample(arguments.n, seed=arguments.seed)
    evaluation = evaluate_run(run, reference, judge, samples)
    say(console, f"samples of {taken}:")
    console.print(evaluation_table({run.config.run.name: evaluation}, console))


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser)
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to; new or empty")


def _export(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.runs.run import load

    run = load(arguments.run, arguments.checkpoint, check=arguments.check)
    run.export(arguments.directory, sampler=arguments.sampler, steps=arguments.steps, raw=arguments.raw)
    say(console, f"{run.checkpoint.name} is exported to {arguments.directory}; its README.md says how to load it")


VERBS = (
    Verb("sample", "draw samples from a run's EMA weights", _add_sample, _sample),
    Verb("classifier", "train a classifier, for constraints on generated samples", _add_classifier, _classifier),
    Verb(
        "evaluate",
        "judge a run's samples: shares, total variation, Fréchet distance, near-copies",
        _add_evaluate,
        _evaluate,
    ),
    Verb("export", "write a diffusers pipeline with a model card", _add_export, _export),
)
