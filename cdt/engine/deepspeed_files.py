"""DeepSpeed's files: written without surprises, read as data and never executed, converted for other workers."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from cdt.engine import deepspeed_private
from cdt.engine.host_copies import Copies


def load_data_only(path: Any, map_location: Any = None, weights_only: bool = True) -> Any:
    """In place of DeepSpeed's own way to read its files, which executes what they say.

    Raises pickle.UnpicklingError for a file with anything else in it than DeepSpeed's data.
    """
    with torch.serialization.safe_globals(deepspeed_private.classes_in_files()):
        return torch.load(path, map_location=map_location, weights_only=True)


class _DataOnlyTorch(ModuleType):
    """torch, but for ``load``."""

    load = staticmethod(load_data_only)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_one_at_a_time = threading.RLock()


UNFIT = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError),
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
)
"""What torch and DeepSpeed raise for files that hold something else than they expect."""


def reason_in(error: Exception) -> str:
    """Why a file of DeepSpeed's could not be loaded, in one line and without torch's advice to run what is in it."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than weights and optimiser state; it was not run"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.contextmanager
def data_only() -> Iterator[None]:
    """Meanwhile ``torch.load`` is ``load_data_only`` in DeepSpeed's modules, and in no others."""
    with _one_at_a_time:  # else the first thread to leave would end it for the second
        modules: list[Any] = [module for module in deepspeed_private.readers() if module.torch is torch]
        substitute = _DataOnlyTorch("torch")
        try:
            for module in modules:
                module.torch = substitute
            yield
        finally:
            for module in modules:
                module.torch = torch


def to_universal(saved: Path, out: Path) -> None:
    """Writes DeepSpeed's universal checkpoint of the one in ``saved``: each weight whole, with its optimiser state.

    In this process, without its pool of others: they would read files in DeepSpeed's own way.
    """
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
        deepspeed_private.write_universal(arguments)


@contextlib.contextmanager
def captured(network: Any, copies: Copies) -> Iterator[list[Callable[[], Path]]]:
    """What DeepSpeed's engine saves meanwhile is copied and not written: each call of what is yielded writes one file.

    They raise OSError. A rank on which DeepSpeed itself raised, between its barriers, would hang the rest.
    """
    writes: list[Callable[[], Path]] = []

    def take(state_dict: Any, path: str) -> None:
        copied = copies.tree(Path(path).name, state_dict)
        writes.append(lambda: _written(write, copied, path))

    with deepspeed_private.written_with(network, take) as write:
        yield writes


def _written(write: Callable[[Any, str], None], tree: Any, path: str) -> Path:
    try:
        write(tree, path)
    except RuntimeError as error:
        # How torch's zip writer reports a disk that refuses; it keeps the reason to itself.
        raise OSError(f"{path} could not be written, perhaps the disk is full ({error})") from error
    return Path(path)
