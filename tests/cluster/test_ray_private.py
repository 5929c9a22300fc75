"""Ray still has what cdt uses of its internals; what a new version lacks is named, with its use."""

from __future__ import annotations

from pathlib import Path

import pytest
from internals import missing, missing_in_source, private_imports

from cdt.cluster.ray_private import job_with_path

CLUSTER = Path(__file__).parents[2] / "cdt" / "cluster"
USED = {
    "ray._private.ray_constants": "reach ENABLE_RAY_CLUSTER",
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER": "let a Ray of our own listen on 127.0.0.1 alone",
    "ray.autoscaler._private.constants.AUTOSCALER_METRIC_PORT": "keep Ray from serving figures to everyone",
    "ray.dashboard.consts.DASHBOARD_METRIC_PORT": "keep Ray from serving figures to everyone",
    "ray._private.services.canonicalize_bootstrap_address": "find the Ray that runs on this machine (--address auto)",
    "ray._private.runtime_env.constants.RAY_JOB_CONFIG_JSON_ENV_VAR": "know the variables of a job",
    "ray._private.worker": "reach _worker_logs_enabled",
    "ray._private.worker._worker_logs_enabled": "keep Ray from printing paragraphs about each worker that died",
    "ray._raylet.AuthenticationTokenLoader": "send Ray's token with requests",
    "ray._raylet.AuthenticationTokenLoader.instance": "send Ray's token with requests",
    "ray._raylet.AuthenticationTokenLoader.get_token_for_http_header": "send Ray's token with requests",
    "ray._private.runtime_env.packaging.default_logger": "keep submissions quiet",
    "ray.dashboard.modules.dashboard_sdk.logger": "keep submissions quiet",
    "ray.dashboard.modules.job.sdk.logger": "keep submissions quiet",
    "ray.core.generated.gcs_service_pb2_grpc.NodeInfoGcsServiceStub": "ask a cluster's head for its id",
    "ray.train.torch.config._TorchBackend": "watch workers while their process group forms",
    "ray.train.torch.config._TorchBackend.on_start": "watch workers while their process group forms",
    "ray.train.v2._internal.execution.callback.WorkerGroupCallback": "watch workers from their first moment",
    "ray.train.v2._internal.execution.callback.WorkerGroupCallback.before_init_train_context": (
        "watch workers from their first moment"
    ),
    "ray.train.v2._internal.execution.worker_group.worker.ActorMetadata": "know node and process of each worker",
}


@pytest.mark.parametrize("path", USED)
def test_ray_has_it(path: str) -> None:
    if problem := missing("ray", path, USED[path]):
        pytest.fail(problem)


@pytest.mark.parametrize("name", ["node_id", "pid"])
def test_ray_train_tells_node_and_process_of_a_worker(name: str) -> None:
    file, purpose = "train/v2/_internal/execution/worker_group/worker.py", "know whom to end when a worker hangs"
    if problem := missing_in_source("ray", file, name, purpose):
        pytest.fail(problem)


def test_ray_takes_the_workers_import_path_from_the_job() -> None:
    job = job_with_path(["/first", "/second"])
    job._py_driver_sys_path.extend(["/not/mine"])
    assert list(job._get_proto_job_config().py_driver_sys_path) == ["/second", "/first"]
    purpose = "keep files of the working directory from taking the place of modules in workers"
    if problem := missing_in_source("ray", "_private/worker.py", "_py_driver_sys_path", purpose):
        pytest.fail(problem)


def test_every_private_import_is_in_the_table() -> None:
    found = {name for file in sorted(CLUSTER.glob("*.py")) for name in private_imports(file, "ray")}
    assert found - USED.keys() == set()


def test_what_is_gone_is_named_with_its_purpose() -> None:
    problem = missing("ray", "ray._private.worker.no_such_thing", "print less")
    assert problem is not None
    assert problem.startswith("ray 2.")
    assert problem.endswith("has no ray._private.worker.no_such_thing any more, which cdt uses to print less")
