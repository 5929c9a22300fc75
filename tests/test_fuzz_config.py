"""Thousands of wrong configurations and commands: each ends soon, is refused in a line, and has no traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import fuzz
import pytest
import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def place(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run ``run``, its shards ``data``, a configuration ``tiny.yaml``, and damaged things."""
    place = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(home / "data", place / "data")
    shutil.copytree(home / "whole", place / "run")
    tiny.write_config(place / "tiny.yaml", place / "data")
    shutil.copytree(place / "data", place / "damaged")
    (place / "damaged" / "index.json").write_text("{}")
    (place / "damaged.tar").write_bytes(b"x" * 2000)
    (place / "nothing").mkdir()
    (place / "pictures" / "a").mkdir(parents=True)
    (place / "pictures" / "a" / "1.png").write_bytes(b"no picture")
    return place


def judged(calls: list[fuzz.Call]) -> None:
    found = fuzz.tally(calls)
    print(found)
    told = [f"cdt {each.arguments}: {each.fault}\n{each.said}" for each in found.faults]
    assert not told, f"{found}\n" + "\n\n".join(told[:10])


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_some(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    source = fuzz.KINDS[kind](place, seed=1)
    judged([fuzz.call(source.arguments()) for _ in range(60)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
@pytest.mark.parametrize(("kind", "count"), [("configurations", 400), ("commands", 160)])
def test_many(place: Path, kind: str, count: int, seed: int) -> None:
    judged(fuzz.tried(place, kind, seed, count))


def test_what_is_a_fault() -> None:
    assert fuzz.wrong(0, "") is None
    assert fuzz.wrong(2, "cdt train: a: no such file\n") is None
    assert fuzz.wrong(2, "cdt train: a: 2 problems\n  b\n  c\n") is None
    assert fuzz.wrong(2, "usage: cdt train\ncdt train: error: no\n") is None
    assert fuzz.wrong(1, "Traceback (most recent call last):\n  a\n") == "a traceback is printed"
    assert fuzz.wrong(139, "") == "exit status 139"
    assert fuzz.wrong(2, "") == "the reason is not told in a line"
    assert fuzz.wrong(2, "cdt train: a\nb\nc\n") == "more than a line is printed"
