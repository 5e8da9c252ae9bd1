"""`dpmpp deploy` against Kubernetes' API: what it creates, and what it says is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpmpp_core.errors import ConfigError
from pipelines.deploy.jobs import build_job
from pipelines.deploy.kube import Kubernetes
from pipelines.deploy.render import Object, get_object
from tests.infra.conftest import rendered
from tests.support.kube_api import KubeApi

SPACE = "/api/v1/namespaces/dpmpp"
JOBS = "/apis/ray.io/v1/namespaces/dpmpp/rayjobs"
SECRETS = ("dpmpp-redis", "dpmpp-s3", "dpmpp-mlflow-login")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    """A cluster with KubeRay, on which the overlay `local` was applied."""
    server = KubeApi()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config")))
    # The client reads the variable once, when it is imported.
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config")
    )
    for thing in rendered("local"):
        if thing["kind"] == "ConfigMap":
            server.objects[f"{SPACE}/configmaps/{thing['metadata']['name']}"] = thing
    for name in SECRETS:
        server.objects[f"{SPACE}/secrets/{name}"] = {"metadata": {"name": name}, "data": {}}
    yield server
    server.close()


def submit(**changes: Any) -> dict[str, Any]:
    objects = rendered("local")
    job = build_job(objects, "train", ["metric.epochs=5"])
    return Kubernetes("dpmpp").submit(job, objects, changes.get("kuberay", "1.7.0"))


def operator(tag: str) -> Object:
    container = {"name": "o", "image": f"quay.io/kuberay/operator:{tag}"}
    spec = {
        "selector": {},
        "template": {"spec": {"containers": [container]}},
    }
    return {"metadata": {"name": "kuberay-operator"}, "spec": spec}


def test_a_job_is_created_once(api: KubeApi) -> None:
    first = submit()
    created = api.objects[f"{JOBS}/{first['job']}"]
    assert created["spec"]["entrypoint"].endswith("metric.epochs=5")
    assert created["spec"]["rayClusterSpec"] == get_object(rendered("local"), "RayCluster")["spec"]
    assert not first["found"]
    second = submit()
    assert second["found"] and second["job"] == first["job"]
    assert len([path for path in api.objects if path.startswith(JOBS)]) == 1


def test_status_logs_and_stop(api: KubeApi) -> None:
    name = submit()["job"]
    api.objects[f"{JOBS}/{name}"]["status"] = {
        "jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": "c",
    }  # fmt: skip
    cluster = Kubernetes("dpmpp")
    assert cluster.status(name)["status"] == "Running"
    assert [found["job"] for found in cluster.list()] == [name]
    with pytest.raises(ConfigError, match="its cluster is starting"):
        cluster.logs(name, False, print)
    pod = {"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}}
    api.objects[f"{SPACE}/pods/p"] = pod
    api.objects[f"{SPACE}/pods/p/log"] = "step 1\nstep 2\n"
    written: list[str] = []
    cluster.logs(name, False, written.append)
    assert "".join(written) == "step 1\nstep 2\n"
    cluster.stop(name)
    with pytest.raises(ConfigError, match=f"no RayJob '{name}' in dpmpp"):
        cluster.status(name)


def test_a_job_that_ended_is_not_run_again_by_accident(api: KubeApi) -> None:
    name = submit()["job"]
    api.objects[f"{JOBS}/{name}"]["status"] = {"jobDeploymentStatus": "Failed"}
    with pytest.raises(ConfigError, match=f"is Failed: `dpmpp deploy stop {name}` removes it"):
        submit()


def test_what_is_missing_is_named(api: KubeApi) -> None:
    api.has_kuberay = False
    with pytest.raises(ConfigError, match=r"has no ray.io/v1: install KubeRay first: helm"):
        submit()
    api.has_kuberay = True
    del api.objects[f"{SPACE}/secrets/dpmpp-redis"]
    with pytest.raises(ConfigError, match="no secret 'dpmpp-redis', which the pods need"):
        submit()


def test_what_the_server_refuses_is_said_in_its_words(api: KubeApi) -> None:
    api.refusal = 'strict decoding error: unknown field "spec.entrypont"'
    with pytest.raises(ConfigError, match=r'is refused: strict .* field "spec\.entrypont"$'):
        submit()
    assert not [path for path in api.objects if path.startswith(JOBS)]


def test_a_rule_of_ours_stops_a_job_that_the_server_would_take(api: KubeApi) -> None:
    objects = rendered("local")
    job = build_job(objects, "train", [])
    del job["spec"]["activeDeadlineSeconds"]
    with pytest.raises(ConfigError, match="a job that hangs would hold its nodes"):
        Kubernetes("dpmpp").submit(job, objects, "1.7.0")
    assert not [path for path in api.objects if path.startswith(JOBS)]


def test_another_operator_is_refused(api: KubeApi) -> None:
    api.objects["/apis/apps/v1/deployments/kuberay-operator"] = operator("v1.4.2")
    with pytest.raises(ConfigError, match=r"runs KubeRay 1\.4\.2, the manifests are for 1\.7\.0"):
        submit()
    api.objects["/apis/apps/v1/deployments/kuberay-operator"] = operator("v1.7.1")
    assert submit()["status"] == "New"


def test_a_configuration_that_was_not_applied_is_found(api: KubeApi) -> None:
    path = f"{SPACE}/configmaps/dpmpp-config"
    api.objects[path] = {**api.objects[path], "data": {"config.yaml": "extends: demo"}}
    with pytest.raises(ConfigError, match="is not that of the overlay: apply the overlay"):
        submit()


def test_a_quota_that_is_too_small_is_told_with_the_numbers(api: KubeApi) -> None:
    quota = {
        "metadata": {"name": "q"},
        "status": {"hard": {"requests.cpu": "10"}, "used": {"requests.cpu": "4500m"}},
    }
    api.objects[f"{SPACE}/resourcequotas/q"] = quota
    with pytest.raises(ConfigError, match=r"requests.cpu 10, 4.5 of it used, .* takes 6"):
        submit()
    quota["status"]["hard"]["requests.cpu"] = "11"  # type: ignore[index]
    assert submit()["status"] == "New"


def test_no_kubernetes_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none")
    )
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="set KUBECONFIG, or name a Ray cluster with --address"):
        Kubernetes("dpmpp")
