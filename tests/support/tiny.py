"""The smallest run that has everything: five classes of the digits, a tiny DiT, two constraints, this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdt.config import RunConfig
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.settings import dump_yaml, parse

TREE: dict[str, Any] = {
    "run": {"name": "tiny", "workers": 0},
    "data": {"epoch_samples": 32},
    "network": {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
    # An untrained v-predictor draws grey images; an eps-predictor draws black and white, where much looks the same.
    "diffusion": {"prediction": "v_prediction"},
    "constraints": {"four": {"class": 4, "min_frequency": 0.2}, "five": {"class": 5, "max_loss": 300.0, "window": 0.5}},
    "probe": {"draws": 8},
    "train": {"batch_size": 16, "warm_steps": 4, "dual_steps": 4, "log_steps": 2, "lr": 0.01, "grid_images": 0},
    "sampler": {"steps": 4},
}
"""Two dual steps; checkpoints at steps 4 and 8."""


def write_shards(out: Path, **options: Any) -> Path:
    """Digits 2 to 6, class 4 cut to a tenth."""
    shard(SOURCES["digits"](), out, **{"only": ["2", "3", "4", "5", "6"], "keep": {"4": 0.1}, "shard_mb": 1, **options})
    return out


def config(shards: Path, directory: Path, init: Path | None = None, **sections: Any) -> RunConfig:
    """TREE with other settings in some of its sections; the run is ``directory``.

    With ``init`` network and process are those of a pretrained model.
    """
    tree: dict[str, Any]
    tree = {name: {**TREE.get(name, {}), **sections.get(name, {})} for name in TREE.keys() | sections.keys()}
    if init is not None:
        tree |= {"init": str(init)} | {name: sections.get(name, {}) for name in ("network", "diffusion")}
    tree["constraints"] = sections.get("constraints", TREE["constraints"])
    tree["data"]["shards"] = str(sections.get("data", {}).get("shards", shards))
    tree["run"] |= {"dir": str(directory.parent), "name": directory.name}
    return parse(RunConfig, tree, where="tiny")


def write_config(path: Path, shards: Path, **sections: Any) -> Path:
    """The same as YAML, its runs in ``runs`` beside it."""
    path.write_text(dump_yaml(config(shards, path.parent / "runs" / path.stem, **sections)))
    return path
