"""Settings of the data: which shards, in which proportions, and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cdt.data.urls import PIPE
from cdt.schema import RESUMABLE, Config

DEFAULT_CACHE_GB = 20.0


class DataConfig(Config):
    shards: Annotated[str, RESUMABLE]
    """A directory written by ``cdt shard`` or ``cdt index``, or its URL (http, https, s3, gs, hf, pipe)."""
    allow_pipe: bool = False
    """Whether ``shards`` may be ``pipe:COMMAND``, run without a shell; it prints the file whose name replaces {}."""
    split: str = "train"
    """The split to train on."""
    epoch_samples: int | None = Field(default=None, ge=1, le=10**12)
    """Positions per epoch; default: the number of samples in the split."""
    estimator: Literal["resample", "reweight", "separate"] = "resample"
    """``resample`` draws constraint samples; ``reweight`` weights base samples (high variance for rare classes);
    ``separate`` draws as much from each constraint as from the data (for comparison)."""
    loader_workers: Annotated[int, RESUMABLE] = Field(default=0, ge=0, le=64)
    """Processes per rank that read and decode ahead; 0: in the training process."""
    lambda_lag: int = Field(default=4, ge=1, le=64)
    """Batches until new multipliers take effect in the stream, and the most that are read ahead."""
    cache_mb: Annotated[float, RESUMABLE] = Field(default=512.0, ge=0, le=1e9)
    """Keep the decoded data set in each process's memory if it is smaller than this."""
    shard_cache_gb: float = Field(default=DEFAULT_CACHE_GB, ge=0, le=1e9)
    """Disk space for shards from URLs, shared by all processes of a machine; in CDT_CACHE or the user's cache."""
    max_bad_fraction: float = Field(default=0.001, ge=0, le=1)
    """Share of the split's samples that may be unusable; each is replaced by another sample of its class."""

    @model_validator(mode="after")
    def _runs_only_what_is_allowed(self) -> DataConfig:
        if self.shards.startswith(PIPE) and not self.allow_pipe:
            raise ValueError(f"{self.shards} would run a command; data.allow_pipe: true allows it")
        if self.shards.startswith(PIPE) and "{}" not in self.shards:
            raise ValueError(f"{self.shards} has no {{}} in place of a file's name, as in pipe:cat /data/{{}}")
        return self
