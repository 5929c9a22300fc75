"""Goes on elsewhere with what engine_scenarios.py saved in mid-training: ``other_ranks.py RANK WORLD FOLDER``.

On one rank from the middle to the third quarter, then on two again to the end. Each rank writes what it measured to
``FOLDER/WORLD-rank-RANK.json``.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_engine import CASES, TRAIN, build, distance, forward_error, same, save, steps_of, train, uncovered, whole
from torch._C._distributed_c10d import FileStore

from cdt.checkpoints import checkpoint, universal
from cdt.engine.config import EngineConfig
from cdt.engine.ema import Ema
from cdt.engine.engine import Engine, start_deepspeed
from cdt.engine.ranks import Ranks


def go_on(folder: Path, config: EngineConfig, ranks: Ranks) -> dict[str, Any]:
    """From the newest of the checkpoints on this number of ranks; how far from the run that stayed on two."""
    end = steps_of(config)
    first, last = {1: (end // 2, 3 * end // 4), 2: (3 * end // 4, end)}[ranks.world]
    path = (folder if ranks.world == 1 else folder / "elastic") / checkpoint.checkpoint_name(first)
    engine = Engine(build, config, TRAIN, ranks)
    ema = Ema(engine)
    for _ in range(2):  # the second time it finds what was converted
        universal.load(path, folder / "elastic", engine, ema, ranks)
    told = {
        "uncovered": uncovered(engine, engine.fragments(), ranks) + uncovered(engine, ema.fragments, ranks),
        "forward_error": forward_error(engine, ema.fragments),
        "loaded": same(whole(engine), checkpoint.read_weights(path, raw=True)),
        "loaded_ema": same(whole(engine, ema.fragments), checkpoint.read_weights(path)),
        "damage": checkpoint.damage(path),
        "converted": sorted(found.name for found in (folder / "elastic").glob(".*")),
    }
    train(engine, ranks, first, last, lambda step: ema.update(TRAIN.ema_decay_at(step)))
    if ranks.world == 1:
        save(folder / "elastic", last, engine, ema, ranks)
        return told
    undisturbed = folder / checkpoint.checkpoint_name(end)
    weights, averages = (checkpoint.read_weights(undisturbed, raw) for raw in (True, False))
    names = sorted(weights)
    return told | {
        "distance": distance({name: whole(engine)[name] for name in names}, {name: weights[name] for name in names}),
        "ema_distance": distance(
            {name: whole(engine, ema.fragments)[name] for name in names}, {name: averages[name] for name in names}
        ),
    }


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = FileStore(str(folder / f"store of {world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=dt.timedelta(seconds=60))
    start_deepspeed()
    ranks, told = Ranks.current(), {}
    for name, (stage, precision, accumulation) in CASES.items():
        if accumulation == 1:
            config = EngineConfig.model_validate({"zero_stage": stage, "precision": precision})
            told[name] = go_on(folder / name, config, ranks)
    (folder / f"{world}-rank-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
