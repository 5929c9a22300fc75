"""A judge supplied as TorchScript: any network in one file, without its Python code."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cdt.errors import InputError
from cdt.files import open_regular, read_bytes
from cdt.judges.judge import Labels, in_batches
from cdt.records import LIMIT

LABELS = "labels.json"


@dataclass(frozen=True)
class ScriptJudge:
    """A TorchScript module from images [B, C, H, W] in [-1, 1] to logits [B, K]."""

    module: torch.jit.ScriptModule
    labels: tuple[str, ...]
    shape: tuple[int, int, int]

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities [N, K] of images [N, C, H, W] in [-1, 1]; InputError if they have another shape."""
        return in_batches(lambda batch: self.module(batch).softmax(dim=1), images, self.shape)

    @classmethod
    def load(cls, path: Path, shape: tuple[int, int, int]) -> ScriptJudge:
        """Reads a module to the CPU, and its labels, a JSON list of K names.

        They are the archive's extra file "labels.json" or, if it has none, the file PATH.labels.json beside it. The
        module is a program: load only what you trust. Raises InputError if the file is not TorchScript, has no labels,
        or if the module does not map images [2, C, H, W] to logits [2, K].
        """
        inside = {LABELS: ""}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # nothing else is read without pickle
            try:
                open_regular(path).close()  # else a pipe would be waited for
                module = torch.jit.load(path, map_location="cpu", _extra_files=inside).eval()
            except (OSError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"{path}: not TorchScript ({_first_line(error)}); pickled files are not read"
                ) from error
        judge = cls(module, _labels(path, inside[LABELS]), shape)
        try:
            logits = judge.probabilities(torch.zeros(2, *shape))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (RuntimeError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path}: the judge cannot read images of shape {shape}: {_last_line(error)}") from error
        if logits.shape != (2, len(judge.labels)):
            raise InputError(
                f"{path}: the judge has {len(judge.labels)} labels, but gives {list(logits.shape)} for 2 images"
            )
        return judge


def labels_beside(path: Path) -> Path:
    """Where the labels of a module are that has none inside."""
    return path.with_name(f"{path.name}.{LABELS}")


def _labels(path: Path, inside: str | bytes) -> tuple[str, ...]:
    beside = labels_beside(path)
    if not inside and not beside.is_file():
        raise InputError(f"{path}: a judge needs labels: {LABELS} as an extra file inside, or {beside.name} beside it")
    try:
        return TypeAdapter(Labels).validate_json(inside or read_bytes(beside, LIMIT))
    except ValidationError as error:
        where = f"{path}: {LABELS} inside" if inside else str(beside)
        raise InputError(f"{where}: expected a JSON list of labels: {error.errors()[0]['msg']}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _last_line(error: Exception) -> str:
    """The last line of an error: TorchScript puts the cause below a traceback."""
    return str(error).strip().rpartition("\n")[2]
