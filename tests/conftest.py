"""What all tests share: one thread per process, hypothesis without a clock, real ranks that are started once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from real_ranks import RealRanks

    from cdt.config import RunConfig
    from cdt.data.format.index import Index
    from cdt.engine.ranks import Ranks

# A busy machine is no failure, and continuous integration tries the same examples every time.
settings.register_profile("cdt", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cdt")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread per process. Torch is not imported for it: what needs torch has imported it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave nothing in the user's cache."""
    os.environ["CDT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Scikit-learn's digits in shards, class 4 cut to a fifth."""
    from cdt.data.format.index import Index
    from cdt.data.sources import SOURCES
    from cdt.data.write.shard import shard

    root = tmp_path_factory.mktemp("digits") / "shards"
    shard(SOURCES["digits"](), root, keep={"4": 0.2}, shard_mb=1)
    return Index.load(root)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in ``data``, and the finished run ``whole`` with checkpoints at steps 2, 4, 6 and 8."""
    import tiny

    from cdt.runs.start import train

    home = tmp_path_factory.mktemp("home")
    tiny.write_shards(home / "data")
    train(tiny.config(home / "data", home / "whole", train={"checkpoint_steps": 2}))
    return home


@pytest.fixture
def whole(home: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(home / "whole", tmp_path / "whole"))


@pytest.fixture
def other(home: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A function from settings to the configuration of another tiny run, in a directory of its own."""
    import tiny

    return lambda **sections: tiny.config(home / "data", tmp_path / "runs" / "other", **sections)


@pytest.fixture
def alone() -> Iterator[Ranks]:
    """The only rank of a group, which goes away again unless it was there before."""
    import torch.distributed as dist

    from cdt.engine.ranks import Ranks

    mine = not dist.is_initialized()
    if mine:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage] (torch documents it)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Ranks.current()
    if mine:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def real_ranks(digits: Index, tmp_path_factory: pytest.TempPathFactory) -> RealRanks:
    """All scenarios, run once. They share as few starts of processes as possible."""
    from real_ranks import RealRanks

    return RealRanks(tmp_path_factory.mktemp("real_ranks"), digits.root)
