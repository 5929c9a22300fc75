"""What cdt uses of DeepSpeed although DeepSpeed does not promise to keep it.

Nothing else in cdt touches DeepSpeed's internals. tests/engine/test_private.py says what each of them is used for.
``network`` is DeepSpeed's engine, ``weight`` a parameter of the network in it.
"""

from __future__ import annotations

import contextlib
import importlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from torch import Tensor

READERS = (
    *("checkpoint.autoep_universal", "checkpoint.deepspeed_checkpoint", "checkpoint.ds_to_universal"),
    *("checkpoint.reshape_3d_utils", "checkpoint.universal_checkpoint", "checkpoint.zero_checkpoint"),
    *("runtime.base_optimizer", "runtime.zero.stage3"),
)
"""The modules of DeepSpeed that call ``torch.load`` to read a checkpoint; its checkpoint engine is replaced apart."""


def readers() -> list[ModuleType]:
    """Imports DeepSpeed."""
    return [importlib.import_module(f"deepspeed.{name}") for name in READERS]


def classes_in_files() -> list[Any]:
    """What DeepSpeed's files hold besides tensors and Python's own types."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, fragment_address]


def write_universal(arguments: Namespace) -> None:
    """Converts a checkpoint into DeepSpeed's universal format."""
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(arguments)


def read_with(network: Any, load: Callable[..., Any]) -> None:
    """Replaces the function with which the engine reads its files."""
    network.checkpoint_engine.load = load


@contextlib.contextmanager
def written_with(network: Any, save: Callable[[Any, str], None]) -> Iterator[Callable[[Any, str], None]]:
    """Replaces the function with which the engine writes a file. Yields DeepSpeed's own."""
    writer = network.checkpoint_engine
    own = writer.save
    writer.save = save
    try:
        yield own
    finally:
        writer.save = own


def copy_no_scripts(network: Any) -> None:
    """A save would copy scripts next to its files: on rank 0 alone, between barriers, so an error hangs the others."""
    network._copy_recovery_script = lambda directory: None


@contextlib.contextmanager
def universal(network: Any) -> Iterator[None]:
    """Inside this context, the engine loads universal checkpoints."""
    options = network._config
    options.load_universal_checkpoint = True
    try:
        yield
    finally:
        options.load_universal_checkpoint = False


def skip_update(optimizer: Any, skipped: bool) -> None:
    """Tells DeepSpeed whether an update was skipped, where ZeRO and mixed precision do not find out themselves."""
    optimizer.overflow = skipped


def fragment(weight: Any) -> tuple[int, Tensor] | None:
    """At stages 1 and 2: the start and the fp32 values of what this rank masters; None if it masters nothing of it."""
    mapping = weight._hp_mapping
    return None if mapping is None else (mapping.lp_fragment_address.start, mapping.hp_fragment)


def part(weight: Any) -> Tensor:
    """At stage 3: this rank's part of the flattened weight, in its precision; all parts have the same, padded size."""
    return weight.ds_tensor


def whole_numel(weight: Any) -> int:
    """At stage 3: how many values the whole weight has."""
    return weight.ds_numel


def fp32_copies(optimizer: Any) -> Iterator[tuple[Any, Tensor]]:
    """At stage 0 in bf16: each weight and its fp32 copy."""
    for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        yield from zip(lows, highs, strict=True)
