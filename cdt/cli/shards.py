"""`cdt shard`, `cdt index`, `cdt verify`: data as WebDataset shards."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from cdt.cli.verb import Verb, add_max_bad, positive, say
from cdt.errors import InputError


def _add_shard(parser: argparse.ArgumentParser) -> None:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("out", type=Path, metavar="OUT", help="the directory to write; new or empty")
    options.add_argument(
        "--keep", metavar="C=F,...", help="share of a class to keep, as in 4=0.1,5=0.1 or '\"a, b\"=0.1'"
    )
    options.add_argument("--only", metavar="C,...", help="only these classes; quote as in CSV: '\"a, b\",c'")
    options.add_argument("--drop", metavar="C,...", help="all but these classes; quoted as for --only")
    options.add_argument("--resize", type=int, metavar="N", help="shorter side to N pixels, then the central square")
    options.add_argument("--split", metavar="S=F,...", help='divide the samples, as in "train=0.9,test=0.1"')
    options.add_argument("--seed", type=int, default=0, help="of order, --keep and --split (default: 0)")
    options.add_argument("--shard-mb", type=float, default=64, metavar="MB", help="largest size of a tar (default: 64)")
    options.add_argument(
        "--pack",
        action=argparse.BooleanOptionalAction,
        help="many images in one array (default: if an image has fewer than 4,096 bytes of pixels)",
    )
    add_max_bad(options)
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name, (summary, add_arguments, _) in SOURCE_ARGUMENTS.items():
        place = argparse.ArgumentParser(add_help=False)
        add_arguments(place)
        sources.add_parser(name, help=summary, parents=[place, options])


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")


def _folder(parser: argparse.ArgumentParser) -> None:
    _directory(parser)
    parser.add_argument("--attributes", type=Path, metavar="FILE.csv", help="column `file`, then one per attribute")


def _hub(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="NAME", help="of the data set, or its directory")
    parser.add_argument("--image", metavar="COLUMN", help="the column of images (default: the only one)")
    parser.add_argument("--label", metavar="COLUMN", help="the column of labels (default: the only one)")


SOURCE_ARGUMENTS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], tuple[str, ...]]] = {
    "digits": ("scikit-learn's digits, 8x8", _nothing, ()),
    "idx": ("MNIST's file format", _directory, ("directory",)),
    "folder": ("DIR/<class>/*.png, jpg, webp, ...", _folder, ("directory", "attributes")),
    "hf": ("a data set of the Hugging Face hub, or a local one", _hub, ("directory", "image", "label")),
}
"""Of each of ``cdt.data.sources.SOURCES``: help, arguments, and which of them open it, in order."""


def _shard(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import counting_bar
    from cdt.cli.report import split_lines
    from cdt.data.sources import SOURCES
    from cdt.data.write.select import parse_fractions, parse_names
    from cdt.data.write.shard import shard

    source = SOURCES[arguments.source](*(vars(arguments)[name] for name in SOURCE_ARGUMENTS[arguments.source][2]))
    with counting_bar(console, "writing shards") as progress:
        summary = shard(
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
            max_bad=arguments.max_bad,
            progress=progress,
        )
    splits = summary.header.splits
    tars = sum(len(split.shards) for split in splits.values())
    counts = {name: split.class_counts for name, split in splits.items()}
    say(console, *summary.notes, *split_lines(arguments.out, counts, summary.header.class_names, tars))


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "urls", nargs="+", metavar="URL", help="tars: paths or URLs, x-{000..099}.tar, or @FILE with a list of them"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of the index; it can be that of the tars")
    parser.add_argument("--class-field", metavar="NAME", help="the label is this field of .json (default: .cls)")
    parser.add_argument("--split", default="train", metavar="NAME", help="what to call these samples (default: train)")
    parser.add_argument("--resize", type=positive, metavar="N", help="read images of all sizes as squares of N pixels")
    parser.add_argument(
        "--keys-by-shard", action="store_true", help="keys are unique only within a shard: put its name before them"
    )
    add_max_bad(parser)


def _index(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import counting_bar
    from cdt.cli.report import split_lines
    from cdt.data.inspect.foreign import index_shards

    chosen = {name: vars(arguments)[name] for name in ("split", "class_field", "resize", "keys_by_shard", "max_bad")}
    with counting_bar(console, "scanning shards") as progress:
        header, notes = index_shards(arguments.urls, arguments.out, **chosen, progress=progress)
    counts = {name: split.class_counts for name, split in header.splits.items()}
    tars = sum(len(split.shards) for split in header.splits.values())
    say(console, *notes, *split_lines(arguments.out, counts, header.class_names, tars))


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shards", metavar="SHARDS", help="a directory written by `cdt shard` or `cdt index`, or its URL"
    )


def _verify(arguments: argparse.Namespace, console: Console) -> None:
    from cdt.cli.progress import counting_bar
    from cdt.data.inspect.verify import verify

    with counting_bar(console, "verifying") as progress:
        report = verify(arguments.shards, progress)
    if not report.ok:
        raise InputError(f"{arguments.shards} is damaged:\n  " + "\n  ".join(report.problems))
    say(console, f"{arguments.shards}: {report.samples:,} samples in {report.shards:,} shards are as the index says")


VERBS = (
    Verb("shard", "write images as WebDataset shards with an index", _add_shard, _shard),
    Verb("index", "write an index for WebDataset shards that exist already", _add_index, _index),
    Verb("verify", "check shards against their index: counts, checksums, every image", _add_verify, _verify),
)
