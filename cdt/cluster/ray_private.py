"""What cdt uses of Ray's core although Ray does not promise to keep it; ray_train_private.py has that of Ray Train.

Nothing else in cdt touches Ray's internals. tests/cluster/test_ray_private.py says what each of them is used for.
"""

from __future__ import annotations

from ray._private import worker as ray_worker
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue] (compiled)

CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The gRPC method of a cluster's head that answers with the cluster's id."""
TALKATIVE = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that report each step of a submission."""


def running_address() -> str | None:
    """HOST:PORT of the Ray that runs on this machine, as ``auto`` means it; None or ConnectionError without one."""
    return canonicalize_bootstrap_address("auto")


def silence_workers() -> None:
    """Ray would print paragraphs about each worker that died, with log_to_driver=False too."""
    ray_worker._worker_logs_enabled = False


def token_header() -> dict[str, str]:
    """HTTP headers that carry Ray's token; empty without a token."""
    return dict(AuthenticationTokenLoader.instance().get_token_for_http_header(ignore_auth_mode=True))
