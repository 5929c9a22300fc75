"""Probe and windows on two ranks, in figures that one rank must repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scenario import Scenario
from small_engine import DIFFUSION, SEED
from torch import Tensor

from cdt.constraints import MaxLoss, MinFrequency, Population, Requirements
from cdt.data.format.index import Index
from cdt.data.read.reader import ImageReader
from cdt.engine.ranks import Ranks
from cdt.measure.probe import Probe, ProbeSet
from cdt.training.calibrate import find_windows


@dataclass(frozen=True)
class Probed:
    windows: list[float]
    exemplars: list[int]
    """Which rows this rank read to find windows, each question summed up in a number."""
    total: list[float]
    """Sums, sums of squares and counts by constraint."""
    squares: list[float]
    count: list[float]
    gathered: list[float]
    forwards: int
    again: tuple[list[float], list[float]]
    """Sums and counts of the differences from the first measurement, for constraints 0 and 2 alone."""


@contextmanager
def listening(reader: ImageReader) -> Iterator[list[int]]:
    """Which rows are asked for, each question summed up in a number."""
    questions: list[int] = []
    images = reader.images

    def ask(rows: np.ndarray) -> np.ndarray:
        questions.append(int(rows.sum()))
        return images(rows)

    reader.images = ask
    yield questions
    reader.images = images


def probed(index: Index, ranks: Ranks) -> Probed:
    """Probe and windows on this many ranks, in figures that one rank must repeat."""
    population = Population(index.classes, index.class_names, index.attributes, "digits")
    constraints = {
        "four": MinFrequency(classes=("4",), min_frequency=0.2),
        "low": MaxLoss(classes=("0", "1", "2"), max_loss=9.0, window="auto"),
        "mid": MaxLoss(classes=("1", "4"), max_loss=9.0, window=-0.5),
    }
    requirements = Requirements.bind(constraints, population)
    reader = ImageReader(index, 512)
    with listening(reader) as exemplars:
        windows = find_windows(requirements, reader, DIFFUSION.process, ranks, SEED)
    named = zip(requirements.rows.items(), windows.tolist(), strict=True)
    sets = [ProbeSet(name, rows, reader, window) for (name, rows), window in named]
    probe = Probe(sets, 9, DIFFUSION.process, ranks, seed=SEED, chunk=4)
    forwards = 0

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        nonlocal forwards
        forwards += 1
        return x * (0.9 - timestep[:, None, None, None] / 2000)

    measured = probe.measure(network, np.arange(3))
    whole, all_forwards = probe.gather(measured), forwards
    sums = probe.sums(measured)
    some = probe.sums(probe.measure(network, np.array([0, 2])).minus(whole))
    return Probed(
        windows=windows.tolist(),
        exemplars=exemplars,
        total=sums.total.tolist(),
        squares=sums.squares.tolist(),
        count=sums.count.tolist(),
        gathered=whole.tolist(),
        forwards=all_forwards,
        again=(some.total.tolist(), some.count.tolist()),
    )


PROBED = Scenario("probed", lambda place: probed(Index.load(place.shards), place.ranks))
SCENARIOS = [PROBED]
