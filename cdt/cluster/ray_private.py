"""What cdt uses of Ray's core although Ray does not promise to keep it; ray_train_private.py has that of Ray Train.

Nothing else in cdt touches Ray's internals. tests/cluster/test_ray_private.py says what each of them is used for.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator

from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue] (compiled)
from ray.job_config import JobConfig

CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The gRPC method of a cluster's head that answers with the cluster's id."""
TALKATIVE = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that report each step of a submission."""
METRICS_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
"""Variables with the ports on which Ray serves figures of its own processes, to everyone."""


class _Fixed(list[str]):
    def extend(self, found: Iterable[str]) -> None:
        """What Ray would add: the current directory, and that of the script."""


def job_with_path(path: list[str]) -> JobConfig:
    """A job whose workers have these directories first on their import path, and no others before the library."""
    job = JobConfig()
    job._py_driver_sys_path = _Fixed(reversed(path))  # each is put in front of those before it
    return job


def job_variables() -> dict[str, str]:
    """The environment variables that the submitted job around this process sets on all nodes; none outside of a job."""
    job = JobConfig.from_json(json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")))
    return (job.runtime_env or {}).get("env_vars") or {}


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Ray, started meanwhile with the address 127.0.0.1, listens on no other, and not at all with its metrics.

    On Linux it would replace that address by one that others reach, as if the machine were to join a cluster.
    """
    clusters, ports = ray_constants.ENABLE_RAY_CLUSTER, {name: os.environ.get(name) for name in METRICS_PORTS}
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ |= dict.fromkeys(METRICS_PORTS, "-1")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in ports.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def running_address() -> str | None:
    """HOST:PORT of the Ray that runs on this machine, as ``auto`` means it; None or ConnectionError without one."""
    return canonicalize_bootstrap_address("auto")


def silence_workers() -> None:
    """Ray would print paragraphs about each worker that died, with log_to_driver=False too."""
    ray_worker._worker_logs_enabled = False


def token_header() -> dict[str, str]:
    """HTTP headers that carry Ray's token; empty without a token."""
    return dict(AuthenticationTokenLoader.instance().get_token_for_http_header(ignore_auth_mode=True))
