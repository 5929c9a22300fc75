"""DeepSpeed's files: written without surprises, read as data and never executed, divided anew for other workers."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cdt.engine.host_copies import Copies


def load_data_only(path: Any, map_location: Any = None, weights_only: bool = True) -> Any:
    """In place of DeepSpeed's own way to read its files, which executes what they say."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, fragment_address]):
        return _torch_load(path, map_location=map_location, weights_only=True)


_torch_load = torch.load


@contextlib.contextmanager
def data_only() -> Iterator[None]:
    """Wherever DeepSpeed calls ``torch.load`` itself, it gets ``load_data_only``."""
    torch.load = load_data_only
    try:
        yield
    finally:
        torch.load = _torch_load


def to_universal(saved: Path, out: Path) -> None:
    """Writes DeepSpeed's universal checkpoint of the one in ``saved``: each weight whole, with its optimiser state.

    In this process, without its pool of others: they would read files in DeepSpeed's own way.
    """
    from deepspeed.checkpoint import ds_to_universal

    arguments = argparse.Namespace(
        input_folder=str(saved),
        output_folder=str(out),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    silence = io.StringIO()
    with data_only(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        ds_to_universal.main(arguments)


@contextlib.contextmanager
def captured(writer: Any, copies: Copies) -> Iterator[list[Callable[[], Path]]]:
    """What DeepSpeed saves meanwhile is copied and not written: each call of what is yielded writes one file.

    They raise OSError. A rank on which DeepSpeed itself raised, between its barriers, would hang the rest.
    """
    write = writer.save
    writes: list[Callable[[], Path]] = []

    def take(state_dict: Any, path: str) -> None:
        copied = copies.tree(Path(path).name, state_dict)
        writes.append(lambda: _written(write, copied, path))

    writer.save = take
    try:
        yield writes
    finally:
        writer.save = write


def _written(write: Callable[[Any, str], None], tree: Any, path: str) -> Path:
    try:
        write(tree, path)
    except RuntimeError as error:
        # How torch's zip writer reports a disk that refuses; it keeps the reason to itself.
        raise OSError(f"{path} could not be written, perhaps the disk is full ({error})") from error
    return Path(path)
