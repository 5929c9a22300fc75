"""Settings of DeepSpeed: cdt's own, and raw options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, FiniteFloat, field_validator

from cdt.schema import Config

_OWNED = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size, run.workers and engine.accumulation",
    "gradient_accumulation_steps": "engine.accumulation",
    "gradient_clipping": "engine.clip",
    "optimizer": "train.lr, train.betas and train.weight_decay",
    "scheduler": "train.lr_warmup_steps and train.cooldown_steps",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "bfloat16": "engine.precision",
    "amp": "engine.precision",
    "torch_autocast": "engine.precision",
}
_BUCKET = 50_000_000
"""Gradients that are reduced at once: so few that most are reduced while the backward pass goes on."""
_LARGEST = 2**63 - 1
"""Of any number among raw options; DeepSpeed's own default of a threshold."""
_MOST_AT_ONCE = 10**10
"""Weights or gradients in a buffer: ten times what is of use, and more than an accelerator holds."""
_SIZES = ("_size", "_threshold", "_distance", "_parameters")
"""Ends of names of options that are never negative."""


class EngineConfig(Config):
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over the workers: 0 nothing, 1 the optimiser state, 2 also gradients, 3 also weights."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the forward and backward pass; master weights and statistics are always fp32 or better. tf32: fp32 whose
    products are rounded to 10 bits on GPUs that can."""
    eval_precision: Literal["fp32", "tf32"] = "fp32"
    """Of what is evaluated under the averages: probes, generated samples and grids."""
    deterministic: bool = False
    """On GPUs: only kernels that give the same bits each time, which cost time. On CPUs all do."""
    accumulation: int = Field(default=1, ge=1, le=10**6)
    """Micro-batches per step."""
    clip: FiniteFloat = Field(default=1.0, ge=0, le=1e12)
    """Largest norm of the gradient; 0: no clipping."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Raw DeepSpeed options that cdt does not set itself."""

    @field_validator("deepspeed")
    @classmethod
    def _no_contradiction(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key in options:
            if key in _OWNED:
                raise ValueError(f"{key} contradicts cdt's own setting: use {_OWNED[key]}")
        zero = options.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError("zero_optimization must be a mapping; the stage is engine.zero_stage")
        if "stage" in zero:
            raise ValueError("zero_optimization.stage contradicts cdt's own setting: use engine.zero_stage")
        for path, number in _numbers(options, ""):
            _check_number(path, number)
        return options


def _numbers(options: Any, path: str) -> Iterator[tuple[str, int | float]]:
    """Every number in raw options, with its path."""
    if isinstance(options, dict | list):
        for key, value in options.items() if isinstance(options, dict) else enumerate(options):
            yield from _numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(options, int | float) and not isinstance(options, bool):
        yield path, options


def _check_number(path: str, number: int | float) -> None:
    """Raises ValueError for what DeepSpeed might take, and nobody can mean."""
    name = path.rpartition(".")[2]
    least = 1 if name == "reduce_bucket_size" else 0 if name.endswith(_SIZES) else -_LARGEST
    most = _MOST_AT_ONCE if name.endswith("bucket_size") else _LARGEST
    if not least <= number <= most:  # so nan is refused, too
        shown = (
            f"{number:.4g}" if isinstance(number, float) or abs(number) < _LARGEST else "a number of too many digits"
        )
        raise ValueError(f"{path}: got {shown}; must be a number >= {least:.4g} and <= {most:.4g}")


def bucket_size(engine: EngineConfig, trained: int) -> int:
    """How many gradients are reduced at once: DeepSpeed allocates buffers of this size, however few there are."""
    stated = engine.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size")
    return int(stated) if isinstance(stated, int | float) else min(trained, _BUCKET)


def deepspeed_options(
    engine: EngineConfig, batch_size: int, world: int, trained: int, *, gpus: bool = False
) -> dict[str, Any]:
    """The configuration that DeepSpeed gets. ``batch_size`` must divide by workers times accumulation.

    ``trained``: how many weights are.
    """
    raw = dict(engine.deepspeed)
    return {
        # It waits for the device twice in each micro-batch. At stage 3 DeepSpeed's own streams are ordered by that.
        "timers": {"throughput": {"enabled": engine.zero_stage == 3}},
        "zero_force_ds_cpu_optimizer": False,  # AdamW of torch updates off-loaded weights, too
        **raw,
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // (world * engine.accumulation),
        "gradient_accumulation_steps": engine.accumulation,
        "gradient_clipping": engine.clip,
        "bf16": {"enabled": engine.precision == "bf16"},
        "zero_optimization": {
            "reduce_bucket_size": bucket_size(engine, trained),
            "overlap_comm": gpus and world > 1,
            **raw.get("zero_optimization", {}),  # what it makes of a size that is no number, DeepSpeed says
            "stage": engine.zero_stage,
        },
    }
