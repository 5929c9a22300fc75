"""What all tests share: one thread per process, hypothesis without a clock, real ranks that are started once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings
from torch._C._distributed_c10d import HashStore

from cdt.cluster.session import set_environment
from cdt.data.format.index import Index
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.engine.ranks import Ranks

torch.set_num_threads(1)

# A busy machine is no failure, and continuous integration tries the same examples every time.
settings.register_profile("cdt", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cdt")

SUPPORT = Path(__file__).parent / "support"
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


def run_ranks(script: str, world: int, folder: Path, *arguments: object) -> list[str]:
    """What each of the processes of a script printed: started together as the ranks of one group."""
    set_environment()
    processes, outputs = [], [folder / f"{script} {world} {rank}.txt" for rank in range(world)]
    for rank, path in enumerate(outputs):
        environment = os.environ | {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
        command = [sys.executable, str(SUPPORT / script), str(rank), *map(str, arguments)]
        with path.open("w") as output:
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
    try:
        statuses = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    printed = [path.read_text() for path in outputs]
    if any(statuses):
        pytest.fail("\n\n".join(text[-3000:] for text in printed))
    return printed


@pytest.fixture(scope="session")
def two_ranks(digits: Index, two_ranks_folder: Path) -> list[dict[str, Any]]:
    """What the two processes of two_ranks.py measured, by rank."""
    printed = run_ranks("two_ranks.py", 2, two_ranks_folder, two_ranks_folder, digits.root)
    told = [json.loads((two_ranks_folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return [measured | {"printed": text} for measured, text in zip(told, printed, strict=True)]


@pytest.fixture(scope="session")
def other_ranks(two_ranks: list[dict[str, Any]], two_ranks_folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What other_ranks.py measured on one rank, then on two, by rank."""
    told: dict[int, list[dict[str, Any]]] = {}
    for world in (1, 2):
        run_ranks("other_ranks.py", world, two_ranks_folder, world, two_ranks_folder)
        files = [two_ranks_folder / f"{world}-rank-{rank}.json" for rank in range(world)]
        told[world] = [json.loads(file.read_text()) for file in files]
    return told
