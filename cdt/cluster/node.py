"""The facts about one node. Standard library only: it is sent to nodes that may have another cdt, or none."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("cdt-diffusion", "torch", "deepspeed", "ray", "webdataset", "diffusers", "numpy", "pydantic", "safetensors")
"""Packages whose versions must be the same on all nodes."""

RECORDED = (
    "NCCL_",
    "GLOO_",
    "FI_",
    "UCX_",
    "OMP_",
    "CUDA_",
    "ROCR_",
    "HIP_",
    "DS_",
    "TORCH_",
    "SLURM_JOB",
    "RAY_AUTH_MODE",
)
"""Prefixes of the environment variables that are recorded; all others may be secrets."""

SECRETS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "_KEY")
DIGEST_BYTES = 2**20
DRIVER = Path("/proc/driver/nvidia/gpus")


def facts(paths: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, source, environment and machine; for each path the result of ``seen``."""
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(RECORDED)}
    source = _source()
    return {
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "source": _digest_of(source),
        "git": _git(source),
        "environment": {
            name: value for name, value in environment.items() if not any(word in name for word in SECRETS)
        },
        "platform": platform.platform(),
        "cpus": os.cpu_count() or 1,
        "gpus": _gpus(),
        "cuda": _cuda(),
        "memory": _memory(),
        "disk": shutil.disk_usage("/tmp").free,
        "tools": {tool: _found(tool) for tool in ("ninja", os.environ.get("CXX", "c++"))},
        "op": _op_is_built(),
        "lock": _lock(),
        "time": time.time(),
        "paths": {path: seen(path) for path in paths},
    }


def seen(path: str) -> str:
    """What is at a path: "nothing", a directory, or a file with its size and the digest of its beginning."""
    place = Path(path)
    try:
        if place.is_dir():
            return "a directory"
        with place.open("rb") as file:
            digest = hashlib.sha256(file.read(DIGEST_BYTES)).hexdigest()[:12]
        return f"{place.stat().st_size:,} bytes (sha256 {digest}...)"
    except FileNotFoundError:
        return "nothing"
    except OSError as error:
        return f"an error: {error.strerror}"


class Listener:
    """An open port of this node, for other nodes to test."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("", 0))

    def port(self) -> int:
        return self._socket.getsockname()[1]


def reach(address: str, port: int) -> str | None:
    """Why no connection can be opened; None if it can."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return str(error)
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source() -> Path | None:
    """The folder of the cdt that this node would import."""
    found = importlib.util.find_spec("cdt")
    return Path(found.origin).parent if found and found.origin else None


def _digest_of(source: Path | None) -> str | None:
    """Digest of all modules: a version number does not show that a checkout was changed."""
    if source is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.py")):
        digest.update(path.relative_to(source).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _git(source: Path | None) -> str | None:
    """The commit of a checkout, and whether files differ from it; None outside of one."""
    if source is None or not (source.parent / ".git").exists():
        return None
    commit = _said("git", "-C", str(source.parent), "rev-parse", "--short=12", "HEAD")
    changed = _said("git", "-C", str(source.parent), "status", "--porcelain", "--", str(source))
    return f"{commit} with changes" if commit and changed else commit


def _gpus() -> list[str]:
    """Name, memory and driver of each; in containers without nvidia-smi the name; empty without NVIDIA's driver."""
    printed = _said("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if printed:
        return printed.splitlines()
    rows = [row for file in sorted(DRIVER.glob("*/information")) for row in file.read_text().splitlines()]
    return [row.partition(":")[2].strip() for row in rows if row.startswith("Model:")]


def _cuda() -> str | None:
    """The CUDA that torch was built for, read from its file, as an import takes seconds; None for a build for CPUs."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    stated = re.search(r"^cuda\b.*=\s*'([^']+)'", (Path(found.origin).parent / "version.py").read_text(), re.MULTILINE)
    return stated.group(1) if stated else None


def _memory() -> dict[str, int]:
    """Bytes in total, and available."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return {}
    return {name: int(rows[key].split()[0]) * 1024 for name, key in (("all", "MemTotal"), ("free", "MemAvailable"))}


def _found(tool: str) -> str | None:
    """The path of a tool; also looks beside the interpreter, where pip puts ninja."""
    return shutil.which(tool, path=os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")]))


def _op_is_built() -> bool:
    """DeepSpeed's shared-memory op for the CPU."""
    return any(_extensions().rglob("deepspeed_shm_comm*.so"))


def _lock() -> tuple[str, float] | None:
    """The file that says that the op is being built, and since how many seconds; None without one."""
    lock = _extensions() / "deepspeed_shm_comm" / "lock"
    try:
        return str(lock), time.time() - lock.stat().st_mtime
    except OSError:
        return None


def _extensions() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
