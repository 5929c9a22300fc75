"""DeepSpeed's just-in-time build of its communication for CPUs, which one process does while others wait."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cdt.errors import RunError

OP = "deepspeed_shm_comm"
BUILD_S = 600.0
"""Seconds after which a build counts as killed; it takes about 100 on two cores."""
POLL_S = 0.2


def await_build() -> None:
    """Waits while another process builds the op. DeepSpeed would wait for ever for one that was killed.

    Raises RunError when the build has taken too long.
    """
    if not (extensions := os.environ.get("TORCH_EXTENSIONS_DIR")):
        return
    lock, since = Path(extensions) / OP / "lock", time.time()
    while True:
        try:
            since = min(since, lock.stat().st_mtime)
        except OSError:
            return
        if (taken := time.time() - since) > BUILD_S:
            raise RunError(
                f"DeepSpeed's communication for CPUs has been building for {taken / 60:.0f} minutes, as {lock} says: "
                f"that build was killed. If none is running, also on other machines, remove the file: rm {lock}"
            )
        time.sleep(POLL_S)
