"""What users may get wrong, at random from a seed: configurations that are changed, and commands with odd arguments.

``python fuzz.py HOME configurations|commands SEED COUNT`` tries so many in one process, of bounded memory, and prints
what became of each as a line of JSON. Nothing here reaches a network or trains a run.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LIMIT_S = 60
"""Seconds for one call; the machine may be busy."""
MEMORY = 12 * 2**30
"""Bytes of address space, of which torch alone takes several GiB."""
LONGEST = 8000
"""Characters of a message; one with fifty problems is long."""
ALLOWED = (0, 1, 2)
"""Exit statuses."""


class Call(NamedTuple):
    """A call of the command and what became of it."""

    arguments: list[str]
    status: int | None
    said: str
    """On stderr."""
    seconds: float
    fault: str | None
    """What must never be."""


class Tally(NamedTuple):
    """What became of all calls."""

    tried: int
    accepted: int
    refused: int
    failed: int
    """With exit status 1."""
    slowest: float
    faults: list[Call]

    def __str__(self) -> str:
        return (
            f"{self.tried} tried, {self.accepted} accepted, {self.refused} refused, {self.failed} failed, "
            f"the slowest took {self.slowest:.1f} s, {len(self.faults)} faults"
        )


class _TooLongError(BaseException):
    pass


def _too_long(number: int, frame: object) -> None:
    raise _TooLongError


def call(arguments: Sequence[str]) -> Call:
    """``cdt`` with these arguments, in this process."""
    from cdt.cli.command import main

    out, err, status, fault = io.StringIO(), io.StringIO(), None, None
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_S)
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except _TooLongError:
        fault = "no answer\n" + traceback.format_exc()
    except BaseException:
        fault = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = err.getvalue()
    fault = fault or wrong(status, said)
    return Call([*arguments], status, said[:LONGEST], time.monotonic() - started, fault)


def wrong(status: int | None, said: str) -> str | None:
    """What is wrong with how a command ended."""
    if "Traceback (most recent call last)" in said:
        return "a traceback is printed"
    if status not in ALLOWED:
        return f"exit status {status}"
    if len(said) > LONGEST:
        return f"{len(said)} characters are printed"
    if status == 0:
        return None
    if said.startswith("usage: "):
        return None if "error: " in said else "the usage has no reason"
    first, *others = said.splitlines() or [""]
    if not first.startswith("cdt "):
        return "the reason is not told in a line"
    listed = first.endswith((" problems", ":"))
    return None if listed or len(others) <= 1 else "more than a line is printed"


def tally(calls: Sequence[Call]) -> Tally:
    statuses = Counter(each.status for each in calls)
    slowest = max(each.seconds for each in calls)
    faults = [each for each in calls if each.fault]
    return Tally(len(calls), statuses[0], statuses[2], statuses[1], slowest, faults)


# Configurations

NESTED = "[" * 500
BOMB = (
    "{a: &a [x,x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], "
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c], e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d], f: [*e,*e,*e,*e,*e,*e,*e,*e,*e]}"
)
SMALLER_BOMB = "{a: &a [x,x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], c: [*b,*b,*b,*b,*b,*b,*b,*b,*b]}"
VALUES = [
    *("0", "1", "2", "3", "7", "-1", "0.5", "1e3", "1e-4", "1e30"),
    *("1e308", "-1e308", "1e-308", "1e999", "0x10", "0o17"),
    *(".inf", "-.inf", ".nan", "1_000", "007", "1.0", str(2**31), str(2**63), str(2**64), str(10**30), "9" * 5000),
    *("true", "false", "yes", "no", "on", "null", "~", "''", "' '", "x", "auto", "four", "2024-01-01", "12:30:00"),
    *("[]", "{}", "[1]", "[a, b]", "[1, [2, [3]]]", "{a: 1}", "{a: {b: {c: 1}}}", "[{}]", "[null]", "[true, 1]"),
    *("{class: 4}", "{class: [4, 5], max_loss: 1}", "{where: {x: 1}, max_loss: 1}", "{min_frequency: 0.5}"),
    *("!!bool maybe", "!!timestamp foo", "!!set [a]", "!!int {=: 1}", "!!binary x", "!!omap [a: 1]", "!!str 4", "! 4"),
    *("!!python/object/apply:os.system [true]", "!!python/name:os.system"),
    *("!x 1", "!!float 1", "!!null ''", "!!seq {}"),
    *("&a [*a]", "*a", "{<<: {a: 1}}", "{<<: 1, a: 2}", "&a 1", "{? [a] : 1}", "{a: 1, a: 2}", "{1: 2, true: 3}"),
    *(NESTED, "{a: " * 500, "- " * 100, BOMB, SMALLER_BOMB),
    *("x" * 5000, "[" + "1," * 5000 + "]", "{" + "a, " * 50 + "}"),
    *('"\\0"', '"\\uD800"', '"\\UFFFFFFFF"', '"a\\nb"', '"\\x1b[31m"'),
    *('"\\x7f"', "'\ufeff'", "\u202e", "é", "\U0001f600"),
    *("/", "..", ".", "/dev/null", "/proc/self/mem", "~/x", "a/../b", "x" * 300, "a b", "a=b", "a#b", "pipe:cat {}"),
    *("ftp://x/y", "|", ">", "@x", "`x`", "%x", "---", "...", "? x", ": x", "-", "'", '"', "#", ","),
]
SANE = [
    "0",
    "1",
    "2",
    "4",
    "16",
    "64",
    "1000",
    "100000",
    "0.01",
    "0.3",
    "0.999",
    "1.5",
    "1e-6",
    "true",
    "false",
    "null",
    "a",
]
"""What some setting takes, if not this one."""
LINES = [
    *("a", "a:", ": a", "- a", "? a", "\ta: 1", "a: 1\n a: 2"),
    *("---", "...", "--- a", "%YAML 1.1\n---", "%TAG ! x\n---"),
    *("<<: {run: {name: a}}", "<<: *x", "x: &x {a: 1}\ny: *x"),
    *("run: {}", "run:", "data: 1", "constraints: []", "train:"),
    *("network: {kind: dti}", "network: null", "{", "}", "[", "]", "\0", "\x07", "\x1b[2J", "\ufeff", "\u2028", "\x85"),
    *("'a", '"a', "a: |\n b", "a: >\n", "&a", "*a", "!a"),
    *("!!str a: 1", "1: 1", "null: 1", "? [a]\n: 1", "? {a: 1}\n: 1"),
]


def paths(model: Any = None) -> Iterator[str]:
    """The settings of a configuration, and of each kind of constraint and network."""
    from pydantic import BaseModel

    from cdt.config import RunConfig
    from cdt.constraints import KINDS
    from cdt.words import alternatives

    model = model or RunConfig
    for name, field in model.model_fields.items():
        key = field.validation_alias if isinstance(field.validation_alias, str) else name
        yield key
        if key == "constraints":
            yield from ("constraints.four", "constraints.new", "constraints.base", "constraints.a/b")
            for kind in KINDS:
                yield from (f"constraints.{name}.{below}" for name in ("four", "five", "new") for below in paths(kind))
        for inner in alternatives(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from (f"{key}.{below}" for below in paths(inner))


class Configurations:
    """A configuration that can train, changed in some places: text of the file, and overrides."""

    def __init__(self, home: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.text = (home / "tiny.yaml").read_text(encoding="utf-8")
        self.file = home / "changed.yaml"
        self.settings = sorted({*paths()})

    def arguments(self) -> list[str]:
        """The next one is written; the command that reads it."""
        content = self.content() if self.random.random() < 0.6 else self.text.encode()
        self.file.write_bytes(content)
        few = 0 if content != self.text.encode() and self.random.random() < 0.7 else self.random.choice([1, 1, 1, 2, 3])
        return ["train", str(self.file), "run.name=fuzz", "--dry-run", *(self.override() for _ in range(few))]

    def override(self) -> str:
        setting = self.random.choice(self.settings)
        odd = self.random.random()
        if odd < 0.03:
            setting = ".".join([setting] * self.random.choice([2, 40]))
        elif odd < 0.06:
            setting = self.random.choice(
                ["", ".", "a..b", "x" * 3000, " ", "run.", "é", "network.kind.x", "-x", "\x1b"]
            )
        return f"{setting}={self.value()}".replace("\0", "")

    def value(self) -> str:
        kind = self.random.random()
        if kind < 0.6:
            return self.random.choice(VALUES)
        if kind < 0.8:
            return self.random.choice(SANE)
        return self.random.choice(["-", "", ""]) + str(
            self.random.randrange(10 ** self.random.choice([1, 2, 3, 6, 20]))
        )

    def content(self) -> bytes:
        lines = self.text.splitlines()
        for _ in range(self.random.choice([1, 1, 2, 4])):
            place = self.random.randrange(len(lines))
            match self.random.randrange(8):
                case 0:
                    del lines[place]
                case 1:
                    lines.insert(place, lines[self.random.randrange(len(lines))])
                case 2:
                    lines.insert(place, self.random.choice(LINES))
                case 3:
                    lines[place] = self.random.choice(["", " ", "  ", "\t", "- "]) + lines[place]
                case 4:
                    letters = list(lines[place] or " ")
                    letters[self.random.randrange(len(letters))] = self.random.choice("\0\t:{}[]#&*!|>'\"%@`é,-? \x1b")
                    lines[place] = "".join(letters)
                case 5:
                    lines = lines[: place + 1]
                case _:
                    key, colon, _ = lines[place].partition(":")
                    lines[place] = f"{key}{colon} {self.value()}"
        text = "\n".join(lines) + "\n"
        coding = self.random.choice(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"])
        return text.encode(coding, errors="replace")


# Commands

WORDS = [
    *("", " ", "nowhere", "no/where", ".", "..", "/dev/null"),
    *("x" * 300, "x" * 5000, "a\nb", "a\x1b[31mb", "é", "\udcff"),
    *("-", "--", "---", "-x", "--x", "--x=1", "--help=1", "-n"),
    *("-n5", "1", "-1", "1e3", "nan", "9" * 5000, "a=b", "=", "{}"),
    *("ftp://x/y", "://", "*.tar", "{0..3}.tar", "{0..99999999999}.tar", "@nowhere", "@", "auto", "last", "best"),
]
OPTIONS = {
    "--keep": ["4=0.1", "4=2", "4=x", "4", "=", "4=0.1,4=0.2", "4=nan", "4=-1", "x=0.5", ",", "", "4=1e999"],
    "--only": ["4", "44", "", ",", "4,4", "4,x", "x" * 1000],
    "--drop": ["4", "44", "", ","],
    "--resize": ["0", "-1", "x", "1e3", "9" * 5000, "8", "1000000000000"],
    "--split": ["train=1", "train=0.5,test=0.5", "train=2", "=", "a", "a/b=1", "..=1", "train=nan", "x" * 300 + "=1"],
    "--seed": ["0", "-1", "x", "9" * 5000, str(2**64), "1.5"],
    "--shard-mb": ["1", "0", "-1", "nan", "inf", "x", "1e-9", "1e308"],
    "--pack": [None],
    "--no-pack": [None],
    "--attributes": ["nowhere.csv", "/dev/null", ""],
    "--class-field": ["label", "", "x" * 1000],
    "--max-bad": ["0", "1", "2", "-1", "nan", "x"],
    "--dry-run": [None],
    "--address": ["", "x", "http://127.0.0.1:1", "127.0.0.1:x", "127.0.0.1:99999"],
    "--checkpoint": ["last", "best", "4", "5", "-1", "x", "", "9" * 5000, "4.0", "²"],
    "--sampler": ["ddim", "euler", "", "DDIM"],
    "--steps": ["1", "0", "-1", "x", "9" * 5000, "1000000", "1.5"],
    "--raw": [None],
    "-n": ["1", "0", "-1", "x", "9" * 5000, "1.5"],
    "-o": ["x.png", "x.npz", "x.jpg", "no/x.png", "", ".", "/dev/null", "x" * 300 + ".png", "x.PNG", "run/x"],
    "--reference": ["nowhere", "/dev/null", ""],
    "--architecture": ["plain", "x", ""],
    "--attribute": ["x", ""],
    "--follow": [None],
    "--directory": ["nowhere", "/dev/null", "."],
    "--wheel": ["nowhere.whl", "/dev/null"],
    "--help": [None],
}
OWN = {
    "shard": ["digits", "folder", "idx", "hf", "out", "nothing", "pictures"],
    "index": ["data", "data/train/000000.tar", "out", "damaged.tar"],
    "verify": ["data", "damaged"],
    "train": ["tiny.yaml", "data", "run.name=x", "train.lr=x", "run.workers=99999"],
    "resume": ["run", "data", "train.lr=1", "train.lr=x", "run.name=x", "network.depth=2", "train.dual_steps=4"],
    "fetch": ["run", "out"],
    "status": ["run", "data"],
    "sample": ["run", "data"],
    "classifier": ["data", "out.safetensors", "out", "tiny.yaml", "nowhere/x.safetensors"],
    "evaluate": ["nowhere", "data"],
    "export": ["run", "out", "data"],
    "submit": ["tiny.yaml", "run.name=x", "data"],
    "jobs": [],
    "stop": ["x"],
    "doctor": [],
}
"""By verb: words that mean something to it."""
NEEDED = {"index": 2, "classifier": 2, "export": 2, "fetch": 2, "jobs": 0, "doctor": 0}
"""How many words a verb wants, if not one."""
OF_VERB = {
    "shard": (
        "--keep",
        "--only",
        "--drop",
        "--resize",
        "--split",
        "--seed",
        "--shard-mb",
        "--pack",
        "--no-pack",
        "--attributes",
    ),
    "index": ("--class-field", "--split", "--resize", "--max-bad"),
    "train": ("--address",),
    "resume": ("--address",),
    "sample": ("--checkpoint", "--sampler", "--steps", "--raw", "-n", "-o", "--seed"),
    "classifier": ("--split", "--attribute", "--architecture", "--steps", "--seed"),
    "evaluate": ("--checkpoint", "--reference", "--split", "-n", "--seed"),
    "export": ("--checkpoint", "--sampler", "--steps", "--raw"),
    "submit": ("--address", "--follow", "--directory", "--wheel"),
    "jobs": ("--address",),
    "stop": ("--address",),
    "doctor": (),
}


class Commands:
    """A verb with some of its arguments, of others, and of none."""

    def __init__(self, home: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.turn = 0

    def arguments(self) -> list[str]:
        verb, chance = [*OWN][self.turn % len(OWN)], self.random
        self.turn += 1
        count = NEEDED.get(verb, 1) if chance.random() < 0.7 else chance.choice([0, 1, 2, 3])
        words = [[chance.choice(OWN[verb] if OWN[verb] and chance.random() < 0.7 else WORDS)] for _ in range(count)]
        for _ in range(chance.choice([0, 1, 1, 2, 3])):
            own = OF_VERB.get(verb, ())
            option = chance.choice(own if own and chance.random() < 0.93 else [*OPTIONS])
            values = OPTIONS[option] if chance.random() < 0.85 else WORDS
            value = chance.choice(values)
            words.append([option] if value is None or chance.random() < 0.04 else [option, value])
        chance.shuffle(words)
        if verb == "shard" and chance.random() < 0.8:
            source = chance.choice(["digits", "folder", "idx"])
            words = [
                [source],
                *([chance.choice(["pictures", "nothing", "nowhere"])] for _ in range(source != "digits")),
                *words,
            ]
        if verb == "sample" and chance.random() < 0.5:
            words.append(["-o", chance.choice(OPTIONS["-o"])])
        if verb == "train":
            words.append(["--dry-run"])
        if "hf" in (word for part in words for word in part):
            words.append(["--image"])  # without a value: the hub is not asked
        if verb == "doctor":
            words.append(["--x"] if chance.random() < 0.5 else ["--address", chance.choice(["x", "127.0.0.1:x"])])
        return [verb, *(word for part in words for word in part)]


KINDS = {"configurations": Configurations, "commands": Commands}


def tried(home: Path, kind: str, seed: int, count: int) -> list[Call]:
    """So many, in a process of their own that starts in ``home``."""
    done = subprocess.run(
        [sys.executable, __file__, str(home), kind, str(seed), str(count)],
        capture_output=True,
        text=True,
        cwd=home,
        timeout=600 + count * LIMIT_S / 10,
        check=False,
    )
    calls = [Call(**json.loads(line)) for line in done.stdout.splitlines()]
    assert len(calls) == count, f"it ended after {calls[-1:]}:\n{done.stderr[-3000:]}"
    return calls


def _main(home: str, kind: str, seed: str, count: str) -> None:
    import torch

    from cdt.runs import start  # noqa: F401 - the first call is as fast as the others

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source = KINDS[kind](Path(home), int(seed))
    for _ in range(int(count)):
        print(json.dumps(call(source.arguments())._asdict()), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
