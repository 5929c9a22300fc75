"""Two real ranks, started once for all tests of this folder, and the process group of a process on its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from cdt.cluster.session import set_environment
from cdt.data.index import Index
from cdt.data.shard import shard
from cdt.data.sources import SOURCES
from cdt.training.ranks import Ranks

TWO_RANKS = Path(__file__).parent / "two_ranks.py"
TIMEOUT_S = 300


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Scikit-learn's digits in shards, class 4 cut to a fifth."""
    root = tmp_path_factory.mktemp("digits") / "shards"
    shard(SOURCES["digits"](), root, keep={"4": 0.2}, shard_mb=1)
    return Index.load(root)


@pytest.fixture
def alone() -> Iterator[Ranks]:
    """The only rank of a group, which goes away again unless it was there before."""
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield Ranks.current()
    if mine:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def two_ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="session")
def two_ranks(digits: Index, two_ranks_folder: Path) -> list[dict[str, Any]]:
    """What the two processes of two_ranks.py measured, by rank."""
    set_environment()
    folder = two_ranks_folder
    processes = []
    for rank in range(2):
        environment = os.environ | {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, str(TWO_RANKS), str(rank), str(folder), str(digits.root)]
        with (folder / f"output-{rank}.txt").open("w") as output:
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
    try:
        statuses = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    printed = [(folder / f"output-{rank}.txt").read_text() for rank in range(2)]
    if any(statuses):
        pytest.fail("\n\n".join(text[-3000:] for text in printed))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) | {"printed": printed[rank]} for rank in range(2)]
