"""Loads a judge from the path given in a configuration."""

from __future__ import annotations

from pathlib import Path

from cdt.errors import InputError
from cdt.judges.classifier import SUFFIX, Classifier
from cdt.judges.judge import Judge
from cdt.judges.script import ScriptJudge

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
    return judge
