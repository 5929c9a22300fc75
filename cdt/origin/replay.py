"""Replay: samples of the pretrained model in a shard directory, drawn once, or original data that the user has."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdt.data.format.header import read_header
from cdt.data.format.index import Index
from cdt.data.plan.order import stream_key
from cdt.data.read.cache import cache_directory
from cdt.data.sources.generated import open_generated
from cdt.data.write.shard import shard
from cdt.diffusion.sampler import BATCH, Sampler
from cdt.errors import DamagedWarning, InputError
from cdt.files import remove
from cdt.origin.config import ReplayConfig
from cdt.origin.pretrained import Pretrained

TRAIN, FRESH = "train", "fresh"
"""Splits of replay: what is trained on, and what its divergence is measured on."""
FRESH_SAMPLES = 2048


class Replay:
    """The pretrained model's samples, of which some are trained on and others measured on."""

    def __init__(self, origin: Pretrained, config: ReplayConfig, shape: tuple[int, int, int], bounded: bool) -> None:
        """``bounded``: whether images are pixels; those of the pretrained model are like those of the data."""
        self._origin, self._config, self._shape = origin, config, shape
        self._sampler = Sampler(config.sampler, origin.process, shape, bounded)
        self._theirs = None if config.shards == "auto" else config.shards

    @cached_property
    def directory(self) -> Path:
        """Where its shards are or will be; of drawn ones the name is a hash of all that they depend on."""
        digest = hashlib.sha256(json.dumps(self._made_of).encode()).hexdigest()
        return self._theirs or cache_directory() / "replay" / digest[:32]

    @cached_property
    def _made_of(self) -> dict[str, Any]:
        config = self._config
        return {
            "name": "generated",
            "model": self._origin.digest(),
            "shape": list(self._shape),
            "bounded": self._sampler.bounded,
            "sampler": config.sampler.model_dump(),
            "samples": [config.samples, FRESH_SAMPLES],
            "seed": config.seed,
        }

    @property
    def given(self) -> bool:
        """Whether the shards are the user's own: drawn ones are named by all that they depend on."""
        return self._theirs is not None

    @property
    def missing(self) -> bool:
        """Whether it is still to be drawn: its cache has no index, a damaged one, lacks shards, or is another's."""
        return self._theirs is None and self._problem() is not None

    def _problem(self) -> str | None:
        """Why the cache cannot be used. The images themselves have checksums, which are compared as they are read."""
        try:
            source = read_header(self.directory).source
            for split in (TRAIN, FRESH):
                Index.load(self.directory, split).check_sizes()
        except InputError as error:
            return str(error)
        made_of = json.loads(json.dumps(self._made_of))
        others = [name for name, value in made_of.items() if name != "seed" and source.get(name) != value]
        return f"its samples are of another {' and '.join(others)}" if others else None

    def count(self) -> int:
        """Samples to train on. Raises InputError when the user's shards cannot be opened."""
        return self._config.samples if self._theirs is None else self.index().count

    def index(self) -> Index:
        """Those to train on."""
        return Index.load(self.directory, TRAIN)

    def fresh(self) -> Index | None:
        """Those to measure on, which are not trained on; None where the user's shards have no split of that name."""
        return Index.load(self.directory, FRESH) if FRESH in read_header(self.directory).splits else None

    def check(self) -> None:
        """Raises InputError when it cannot be drawn."""
        if self._theirs is None:
            self._sampler.check()

    def draw(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Draws what is missing; ``progress(done, total)`` per batch.

        A DamagedWarning tells why, if not for the first time. Raises RunError when the disk refuses.
        """
        if self.directory.exists():
            warnings.warn(
                f"{self.directory} cannot be used: {self._problem()}; replay is drawn again",
                DamagedWarning,
                stacklevel=2,
            )
        total = self._config.samples + FRESH_SAMPLES
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = self._origin.build(self._shape).to(device)
        images = torch.empty(total, *self._shape)
        for first in range(0, total, BATCH):
            count = min(BATCH, total - first)
            # Other noise than that of `cdt sample` with the same seed.
            seed = stream_key(self._config.seed, "replay") >> 1
            images[first : first + count] = self._sampler.draw(network, count, seed=seed, first=first, device=device)
            progress(first + count, total)
        remove(self.directory)  # what is left of a damaged cache
        splits = np.repeat([TRAIN, FRESH], [self._config.samples, FRESH_SAMPLES])
        source = open_generated(images, self._made_of, bounded=self._sampler.bounded, splits=splits)
        shard(source, self.directory, pack=None)
