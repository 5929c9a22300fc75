"""Runs, shards and names of caches that commit f5d204e wrote: today's code reads them and continues them.

``tests/data_of_the_past/README.md`` says how they were made. The expected end of each run was computed by the same
commit. On a processor with the same vector instructions it is met bit by bit: CDT_TEST_BITWISE=1 asserts that.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import cdt
from cdt.checkpoints.checkpoint import TrainState, damage, read_state, read_weights
from cdt.config import RunConfig
from cdt.data.format.index import Index
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.origin.answers import Answers
from cdt.origin.config import ReplayConfig
from cdt.origin.pretrained import open_pretrained
from cdt.origin.replay import Replay
from cdt.runs.start import resume
from cdt.settings import dump_yaml, load_yaml, parse

# Of the libraries, while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PAST = Path(__file__).parent.parent / "data_of_the_past"
PLACE_THEN = "/tmp/past"
"""Where the runs were when they were made: their absolute paths begin with it."""
STEPS = {"plain": (11, 20), "tuned": (7, 16)}
"""By run: the step of its checkpoint, and its last step."""
RUNS = pytest.mark.parametrize("name", STEPS)
BITWISE = os.environ.get("CDT_TEST_BITWISE") == "1"


def moved_to(place: Path) -> Path:
    """A copy of the past, its absolute paths changed as a user does who moved the directory."""
    shutil.copytree(PAST, place)
    for name in STEPS:
        for file in (place / name / "config.yaml", place / name / "data.json"):
            file.write_text(file.read_text().replace(PLACE_THEN, str(place)))
    return place


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The runs as they were left."""
    return moved_to(tmp_path / "past")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs after today's code has continued them to the end."""
    place = moved_to(tmp_path_factory.mktemp("past") / "past")
    for name in STEPS:
        resume(place / name)
    return place


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected_state(name: str) -> TrainState:
    return TrainState.from_json(json.loads((PAST / "expected" / name / "state.json").read_text()))


def distance(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Relative L2 over all weights together but the keys' biases.

    A softmax does not see those: their gradient is rounding alone, and AdamW moves them as far as any other weight.
    With other vector instructions they are 1.0e-5 of the norm away, all others together 8e-8.
    """
    assert weights.keys() == others.keys()
    one, other = (
        torch.cat([seen(name, each[name]).double() for name in sorted(weights)]) for each in (weights, others)
    )
    return float((one - other).norm() / other.norm())


def seen(name: str, weight: Tensor) -> Tensor:
    if not name.endswith("qkv.bias"):
        return weight.flatten()
    query, _, value = weight.chunk(3)
    return torch.cat([query, value])


def lacking(then: Any, now: Any, where: str = "") -> list[str]:
    """Settings of ``then`` that ``now`` does not have, or has with another value."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [line for key, value in then.items() for line in lacking(value, now.get(key), f"{where}.{key}")]
    return [] if then == now else [f"{where}: {then} became {now}"]


def assert_close(now: Any, then: Any, tolerance: float) -> None:
    """The same tree of numbers and words, numbers within the relative ``tolerance``."""
    if isinstance(then, dict):
        assert now.keys() == then.keys()
        for key, value in then.items():
            assert_close(now[key], value, tolerance)
    elif isinstance(then, list | tuple):
        assert len(now) == len(then)
        for one, other in zip(now, then, strict=True):
            assert_close(one, other, tolerance)
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=tolerance, abs=tolerance)
    else:
        assert now == then


@RUNS
def test_its_checkpoint_is_whole_and_opens(begun: Path, name: str) -> None:
    run = cdt.load(begun / name)
    assert run.state.step == STEPS[name][0]
    assert damage(run.checkpoint) is None
    images = run.sample(2)
    assert images.shape == (2, 1, 8, 8)
    assert images.isfinite().all()


@RUNS
def test_its_configuration_means_what_it_meant(begun: Path, name: str) -> None:
    """New settings may have come; those of the past are there, unchanged."""
    path = begun / name / "config.yaml"
    config = parse(RunConfig, load_yaml(path), where="past")
    (begun / "again.yaml").write_text(dump_yaml(config))
    assert lacking(load_yaml(path), load_yaml(begun / "again.yaml")) == []
    assert parse(RunConfig, load_yaml(begun / "again.yaml"), where="again") == config


@RUNS
def test_the_state_in_mid_period_is_read_as_it_was(begun: Path, name: str) -> None:
    """Multipliers that are still to come, begun sums of a period, a calibrated dual state."""
    path = cdt.load(begun / name).checkpoint
    state, written = read_state(path), json.loads((path / "state.json").read_text())
    assert state.stream.history[-1][0] > state.step
    assert state.sums == written["sums"] is not None
    assert state.dual == written["dual"] is not None
    assert state.stream.counters == written["stream"]["counters"]


@pytest.mark.parametrize("shards", ["shards", "new_shards", "replay"])
def test_its_shards_are_whole(shards: str) -> None:
    assert verify(PAST / shards).problems == []


def test_the_samples_are_those_of_the_past(begun: Path) -> None:
    """The shards ``replay`` are the first 24 samples of the run ``plain``, in whole shades of 255."""
    index = Index.load(begun / "replay")
    shard_order = np.argsort(index.keys())
    stored = ImageReader(index, 0).images(np.arange(24))[shard_order]
    drawn = ((cdt.load(begun / "plain").sample(24).clamp(-1, 1) + 1) * 127.5).round().numpy()
    assert np.abs(drawn - stored).max() <= (0 if BITWISE else 1)


def test_caches_have_the_names_of_the_past(begun: Path) -> None:
    """A name is a hash of all that the content depends on: with another name it would be drawn and asked again."""
    names = json.loads((PAST / "expected" / "names.json").read_text())
    origin = open_pretrained(begun / "plain")
    drawn = Replay(origin, ReplayConfig(samples=24), (1, 8, 8), bounded=True)
    given = Replay(origin, ReplayConfig(shards=begun / "replay"), (1, 8, 8), bounded=True)
    assert origin.digest() == names["model"]
    assert drawn.directory.name == names["replay"]
    assert Answers(origin, given, 2).path.name == names["answers"]


@RUNS
def test_it_ends_at_the_same_weights(finished: Path, name: str) -> None:
    path = cdt.load(finished / name).checkpoint
    for raw, file in ((True, "weights"), (False, "ema")):
        expected = safetensors.torch.load_file(PAST / "expected" / name / f"{file}.safetensors")
        found = read_weights(path, raw)
        assert distance(found, expected) <= 1e-6
        if BITWISE:
            assert all(torch.equal(found[name], expected[name]) for name in expected)


@RUNS
def test_it_ends_at_the_same_multipliers(finished: Path, name: str) -> None:
    """And the journal says of each period what it said then."""
    found, expected = rows(finished / name / "dual.jsonl"), rows(PAST / "expected" / name / "dual.jsonl")
    assert_close(found, expected, 0 if BITWISE else 1e-5)


@RUNS
def test_it_has_drawn_the_same_samples(finished: Path, name: str) -> None:
    state, expected = read_state(cdt.load(finished / name).checkpoint), expected_state(name)
    assert state.step == STEPS[name][1]
    assert state.stream.batch == expected.stream.batch
    assert state.stream.counters == expected.stream.counters
    assert_close(state.stream.history, expected.stream.history, 0 if BITWISE else 1e-5)
