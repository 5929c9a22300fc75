"""Every small file of a run, damaged in every place: what reads it refuses in one line, or goes on without it.

Each case changes one file and calls what stands behind `cdt status`, `sample`, `export`, `evaluate`, `resume`, `init`
and `--checkpoint best`, in this process. The ordinary form changes every so many bytes, the slow one all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import rows

from cdt import filenames
from cdt.checkpoints.checkpoint import network_weights, newest_sound, prune, read_state
from cdt.errors import CdtError, DamagedWarning, InputError
from cdt.origin.pretrained import open_pretrained
from cdt.runs.continuity import changed, check_unfinished
from cdt.runs.evaluation import constraint_states
from cdt.runs.mirror import Mirror
from cdt.runs.presence import SIGN, who_works
from cdt.runs.run import Run, has_checkpoint
from cdt.runs.status import describe_status

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NEWEST = "checkpoints/step-000000008"
ALL = ("status", "sample", "a step", "best", "evaluate", "init", "resume", "others")
FILES = {
    f"{NEWEST}/manifest.json": ALL,
    f"{NEWEST}/state.json": ALL,
    filenames.CONFIG: (*ALL, "network"),
    filenames.DATA: ("sample", "network", "evaluate", "init", "resume"),
    filenames.CALIBRATION: ("evaluate",),
    filenames.EVALUATION: ("card",),
    filenames.METRICS: ("status",),
    filenames.EVENTS: ("status", "evaluate"),
    filenames.DUAL: ("status", "card", "evaluate"),
    SIGN: ("status", "others"),
}
"""By file: what reads it."""
EVALUATION = {
    "samples": 4,
    "class_names": ["a", "b"],
    "class_counts": [1, 3],
    "shares": [0.25, 0.75],
    "intervals": [[0.0, 0.5], [0.5, 1.0]],
    "tv_uniform": 0.25,
    "tv_floor": 0.1,
    "confident": 1.0,
    "frechet": None,
    "judge_accuracy": 0.9,
    "judge_held_out": 7,
    "near_copies": [
        {
            "label": 1,
            "training": 3,
            "generated": 3,
            "near_copies": 1,
            "expected": 0.1,
            "chance": 0.2,
            "threshold": 0.1,
            "median_generated": None,
            "median_real": 0.3,
        }
    ],
    "constraints": [],
    "divergence": None,
}


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that a run can have, without what no reader here needs."""
    place = tmp_path_factory.mktemp("files") / "whole"
    shutil.copytree(home / "whole", place, ignore=shutil.ignore_patterns("tb", "samples", "step-000000002"))
    (place / "evaluation.json").write_text(json.dumps(EVALUATION))
    (place / SIGN).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1.5}))
    return place


def readers(directory: Path, file: str) -> dict[str, Callable[[], object]]:
    """What the verbs read of a run before they do their work, of those that read ``file``."""

    def looked_at() -> None:
        for line in describe_status(directory):
            if "is damaged" in line:
                warnings.warn(line, DamagedWarning, stacklevel=2)

    def resumed() -> None:
        found, passed_over = newest_sound(directory / "checkpoints")
        run = Run(directory)
        assert found is not None
        state = read_state(found)
        check_unfinished(directory, state, changed(run, ["train.dual_steps=8"]))
        for problem in passed_over:  # which it records
            warnings.warn(problem, DamagedWarning, stacklevel=2)
        assert run.data["class_counts"]

    def sampled() -> None:
        run = Run(directory)
        network_weights(run.checkpoint)
        run.sampler()

    def best() -> object:
        return Run(directory, "best").state.step

    def evaluated() -> None:
        run = Run(directory)
        constraint_states(run, range(len(run.data["class_names"])))
        run.windows()
        run.calibration()
        run.bad_samples()

    def begun() -> None:
        origin = open_pretrained(directory)
        origin.check_images((1, 8, 8), "uint8")
        origin.weights()

    found: dict[str, Callable[[], object]] = {
        "status": looked_at,
        "sample": sampled,
        "network": lambda: Run(directory).network(),
        "a step": lambda: Run(directory, "8").checkpoint,
        "best": best,
        "evaluate": evaluated,
        "init": begun,
        "resume": resumed,
        "card": lambda: Run(directory).card_facts(),
        "others": lambda: (who_works(directory), has_checkpoint(directory), Mirror(directory, "memory://x").is_due()),
    }
    return {verb: found[verb] for verb in FILES[file]}


def one_line(error: CdtError) -> bool:
    """Several problems of a configuration have a line each."""
    lines = str(error).splitlines()
    return len(lines) == 1 or (filenames.CONFIG in lines[0] and "problems" in lines[0])


class Tried:
    """What came of many changes to the files of one run."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.counts, self.wrong = directory, Counter[str](), list[str]()

    def one(self, file: str, content: bytes, what: str) -> None:
        path = self.directory / file
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            self.read(file, what)
        finally:
            path.write_bytes(whole)

    def read(self, file: str, what: str) -> None:
        self.counts["tried"] += 1
        refused = passed_over = False
        for verb, read in readers(self.directory, file).items():
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    read()
                except CdtError as error:
                    refused = True
                    if not one_line(error) or "weights_only" in str(error):
                        self.wrong.append(f"{file}, {what}, {verb}: {error}")
                except Exception as error:
                    self.wrong.append(f"{file}, {what}, {verb}: {type(error).__name__}: {str(error)[:200]}")
            passed_over |= any(issubclass(each.category, DamagedWarning) for each in said)
        self.counts["refused by a verb" if refused else "passed over" if passed_over else "without effect"] += 1


def flipped(content: bytes, every: int) -> Iterator[tuple[bytes, str]]:
    """One bit of each byte, of every so many: another one from byte to byte."""
    for place in range(0, len(content), every):
        changed = bytearray(content)
        changed[place] ^= 1 << (place // every) % 8
        yield bytes(changed), f"byte {place}"


def mutations(content: bytes) -> Iterator[tuple[bytes, str]]:
    """Other things in place of the whole and of each value, and each key left out."""
    short = ("", "null", "[]", "5", '""', "{}", '{"files": []}', "\0", "NaN")
    for text in (*short, "[" * 100_000, '{"a":' * 100_000, "9" * 5000):
        yield text.encode(), f"whole is {text[:20]!r}"
    yield content[: len(content) // 2], "cut off"
    yield content + b"\xff\xfe", "more after it"
    try:
        tree = json.loads(content)
    except ValueError:
        return
    for path in places(tree):
        for value in (None, [], {}, "x", -1, 1e308, 2**63, True, "../../etc/passwd", [[[[]]]]):
            yield json.dumps(put(tree, path, value)).encode(), f"{path} is {value!r}"
        yield json.dumps(put(tree, path, ...)).encode(), f"{path} is left out"


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of long lists, the first two entries."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in below:
        yield (*path, key)
        yield from places(value, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with ``value`` at ``path``, which is left out for ``...``."""
    copy = json.loads(json.dumps(tree))
    node = copy
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return copy


@pytest.mark.parametrize("file", FILES)
def test_some_bytes_of_each_file_flipped(file: str, run: Path) -> None:
    content, tried = (run / file).read_bytes(), Tried(run)
    for damaged, what in flipped(content, max(1, len(content) // 6)):
        tried.one(file, damaged, what)
    assert tried.wrong == []


@pytest.mark.parametrize("file", [file for file in FILES if file != filenames.CONFIG])
def test_other_things_in_place_of_a_file(file: str, run: Path) -> None:
    content, tried = (run / file).read_bytes(), Tried(run)
    cases = list(mutations(content))
    for damaged, what in (*cases[:14], *cases[14 :: max(1, len(cases) // 10)]):
        tried.one(file, damaged, what)
    assert tried.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_byte_of_each_file_flipped_and_every_value_replaced(file: str, run: Path) -> None:
    content, tried = (run / file).read_bytes(), Tried(run)
    others = () if file == filenames.CONFIG else mutations(content)  # tests/test_settings.py has them
    for damaged, what in (*flipped(content, 1), *others):
        tried.one(file, damaged, what)
    print(file, dict(tried.counts))
    assert tried.wrong == []


@pytest.mark.parametrize("file", FILES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(file: str, run: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(run, tmp_path / "run"))
    (place / file).unlink()
    os.mkfifo(place / file)
    tried = Tried(place)
    tried.read(file, "a pipe")
    assert tried.wrong == []


def test_pruning_leaves_what_it_cannot_read(run: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(run, tmp_path / "run"))
    (place / NEWEST / "state.json").write_bytes(b"x" * (place / NEWEST / "state.json").stat().st_size)
    prune(place / "checkpoints", keep=1, milestones=())
    assert (place / NEWEST).exists()
    assert rows(place, "metrics.jsonl")
    with pytest.raises(InputError, match=r"step-000000008 is damaged: state\.json: contents differ"):
        _ = Run(place, "8").state
