"""Loads a judge from the path given in a configuration."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from cdt.errors import InputError, at
from cdt.files import sha256
from cdt.judges.classifier import SUFFIX, Classifier, weights_in
from cdt.judges.judge import Judge
from cdt.judges.script import ScriptJudge, labels_beside

SCRIPTS = (".pt", ".ts")
KNOWN = "FILE.safetensors or a directory of a classifier of cdt, or TorchScript (.pt, .ts)"


def load_judge(path: Path, shape: tuple[int, int, int]) -> Judge:
    """The judge at ``path`` for images [C, H, W], on the CPU: a classifier of cdt (file or directory) or TorchScript.

    Nothing is unpickled. Raises InputError if there is no judge at the path, or one for another shape.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; a judge is {KNOWN}")
    if path.suffix in SCRIPTS and not path.is_dir():
        return ScriptJudge.load(path, shape)
    if path.suffix != SUFFIX and not path.is_dir():
        raise InputError(f"{path}: a judge is {KNOWN}")
    judge = Classifier.load(path)
    if judge.network.shape != shape:
        raise InputError(f"{path}: the judge reads images of shape {judge.network.shape}, not {shape}")
    with at(str(path)):
        judge.probabilities(torch.zeros(2, *shape))  # its values are finite, and those of its output need not be
    return judge


def judge_digest(path: Path) -> str:
    """Of the files that ``load_judge`` reads at ``path``. Raises InputError if one cannot be read."""
    if path.is_dir():
        files = [path / "config.json", weights_in(path)]
    else:
        beside = labels_beside(path)
        files = [path, beside] if path.suffix in SCRIPTS and beside.is_file() else [path]
    try:
        digests = [sha256(file) for file in files]
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror}") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
