from __future__ import annotations

from cdt.config import RunConfig
from cdt.schema import resumable


def test_what_may_change_when_a_run_is_resumed() -> None:
    """Everything else would make it another run."""
    assert sorted(resumable(RunConfig)) == [
        *("data.cache_mb", "data.loader_workers", "data.shards"),
        *("dual.cap", "dual.eta", "dual.gamma", "dual.kp", "dual.nu", "dual.stop_when_satisfied_for"),
        *("run.hang_minutes", "run.max_restarts", "run.min_workers", "run.mirror", "run.patience_minutes"),
        *("run.placement", "run.threads", "run.workers", "sampler.name", "sampler.steps"),
        *("train.checkpoint_minutes", "train.checkpoint_steps", "train.cooldown_steps", "train.dual_steps"),
        *("train.grid_images", "train.keep_checkpoints", "train.log_steps", "train.lr", "train.max_skipped"),
    ]
