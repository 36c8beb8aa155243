"""docker/helm-values.yaml: how a queue becomes a node with a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "docker/helm-values.yaml").read_text())

# Runs as Airflow's scheduler does: the local settings are read from the folder that the chart mounts them into, and the
# pod is made by the Kubernetes executor's own code, from a pod template like the chart's.
SCRIPT = """
import json, sys
from types import SimpleNamespace
import airflow.settings as settings
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes.client import ApiClient

template = PodGenerator.deserialize_model_dict(json.loads(sys.argv[1]))
found = {}
for queue in ("default", "gpu"):
    task = SimpleNamespace(queue=queue, executor_config={"kept": 1})
    settings.task_instance_mutation_hook(task, dag_run=None)
    override = PodGenerator.from_obj({k: v for k, v in task.executor_config.items() if k != "kept"})
    pod = PodGenerator.reconcile_pods(template, override)
    found[queue] = {"pod": ApiClient().sanitize_for_serialization(pod), "config": sorted(task.executor_config)}
print(json.dumps(found))
"""
TEMPLATE = {
    "metadata": {"name": "placeholder-name", "labels": {"component": "worker"}},
    "spec": {
        "restartPolicy": "Never",
        "nodeSelector": {"pool": "cpu"},
        "containers": [
            {
                "name": "base",
                "image": "registry.example.com/nightsift:0.1.0",
                "env": [{"name": "AIRFLOW__CORE__EXECUTOR", "value": "LocalExecutor"}],
                "volumeMounts": [{"name": "state", "mountPath": "/var/lib/nightsift"}],
            }
        ],
        "volumes": [{"name": "state", "persistentVolumeClaim": {"claimName": "nightsift-state"}}],
    },
}


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pods that the Kubernetes executor would ask for, by queue."""
    home = tmp_path_factory.mktemp("airflow")
    (home / "config").mkdir()
    (home / "config" / "airflow_local_settings.py").write_text(VALUES["airflowLocalSettings"])
    env = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(TEMPLATE)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_task_of_another_queue_gets_the_charts_pod(pods: dict[str, Any]) -> None:
    """A task of the queue `default` runs in the pod template as it stands."""
    assert pods["default"]["pod"] == TEMPLATE
    assert pods["default"]["config"] == ["kept"]


def test_a_task_of_the_queue_gpu_gets_a_gpu_and_its_node(pods: dict[str, Any]) -> None:
    """Its pod asks for one GPU, on a node that has one, with the image with CUDA; all else is the template's."""
    spec = pods["gpu"]["pod"]["spec"]
    [container] = spec["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert container["image"] == f"{VALUES['defaultAirflowRepository']}:{VALUES['defaultAirflowTag']}-gpu"
    assert spec["nodeSelector"]["nvidia.com/gpu.present"] == "true"
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    [theirs] = TEMPLATE["spec"]["containers"]  # type: ignore[index]
    assert {key: container[key] for key in ("name", "env", "volumeMounts")} == {
        key: theirs[key] for key in ("name", "env", "volumeMounts")
    }
    assert spec["volumes"] == TEMPLATE["spec"]["volumes"]  # type: ignore[index]
    assert pods["gpu"]["config"] == ["kept", "pod_override"]


def test_the_settings_survive_helms_templates() -> None:
    """The chart runs the local settings through its template engine: nothing in them may look like a template."""
    assert "{{" not in VALUES["airflowLocalSettings"]


def test_the_image_runs_the_version_that_the_chart_is_told() -> None:
    """The chart decides by airflowVersion what it starts, so it is the version that the lock installs."""
    assert f"\napache-airflow=={VALUES['airflowVersion']} " in (ROOT / "requirements.lock").read_text()


def test_pods_cannot_gain_rights() -> None:
    """They run as the image's user, without capabilities."""
    user = (ROOT / "docker/Dockerfile").read_text().split("USER ")[-1].split()[0]
    contexts = VALUES["securityContexts"]
    assert f"{contexts['pod']['runAsUser']}:{contexts['pod']['runAsGroup']}" == user
    assert contexts["pod"]["runAsNonRoot"] is True
    assert contexts["containers"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_yamls_may_read_what_they_may_in_compose() -> None:
    """One default for both: a dataset that is read in one is read in the other."""
    (given,) = (entry["value"] for entry in VALUES["env"] if entry["name"] == "NIGHTSIFT_SOURCES")
    assert f"${{NIGHTSIFT_SOURCES:-{given}}}" in (ROOT / "docker-compose.yml").read_text()


def test_no_secret_stands_in_the_values() -> None:
    """Secrets are named, never written out."""
    for name in ("fernetKey", "apiSecretKey", "jwtSecret"):
        assert name not in VALUES
        assert VALUES[f"{name}SecretName" if name != "jwtSecret" else "jwtSecretName"]
    assert "metadataConnection" not in VALUES["data"]
