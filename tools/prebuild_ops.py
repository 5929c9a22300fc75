"""Compiles DeepSpeed's shared-memory op for the CPU into the environment: ``.venv/bin/python tools/prebuild_ops.py``.

DeepSpeed compiles it when a first process group is made (about 100 s on 2 cores), once per ``TORCH_EXTENSIONS_DIR``.
Doing so here, into ``<environment>/torch_extensions``, keeps that wait and its output out of the first run. The op is
only built again where DeepSpeed's sources, the compiler's options or torch have changed.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def build(extensions: Path) -> None:
    """Compiles and loads the op under ``extensions``; exits with one line where a tool that it needs is missing."""
    if sys.platform != "linux":  # DeepSpeed falls back to gloo there
        return
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        sys.exit(f"no C++ compiler ({compiler}): install one, for example with `apt-get install g++`")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        sys.exit(f"no Python.h in {headers}: install Python's headers, for example with `apt-get install python3-dev`")
    extensions.mkdir(parents=True, exist_ok=True)
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])  # ninja

    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # An interrupted build leaves its lock, on which every later one would wait for ever.
    (extensions / ShareMemCommBuilder.NAME / "lock").unlink(missing_ok=True)
    ShareMemCommBuilder().load()


if __name__ == "__main__":
    build(Path(sys.prefix) / "torch_extensions")
