"""`dpmpp deploy` against Kubernetes' API: what it creates, and what it says is missing."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpmpp_core.errors import ConfigError
from pipelines.deploy.capacity import list_needed_pods
from pipelines.deploy.check import load_overlay_config
from pipelines.deploy.jobs import build_job
from pipelines.deploy.kube import Kubernetes
from pipelines.deploy.quantities import format_quantity, parse_quantity
from pipelines.deploy.render import Object, get_object
from tests.infra.conftest import rendered
from tests.support.cli import invoke_dpmpp
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


def test_a_pod_that_the_server_would_refuse_stops_a_job(api: KubeApi) -> None:
    api.refused_pods["train"] = "pods x is forbidden: violates PodSecurity restricted:v1.36: y"
    with pytest.raises(ConfigError, match="pod train: pods x is forbidden: violates PodSecurity"):
        submit()
    assert not [path for path in api.objects if path.startswith(JOBS)]
    found = Kubernetes("dpmpp").find_refused_pods(rendered("local"))
    assert [str(problem) for problem in found] == [
        f"RayCluster/dpmpp pod train: {api.refused_pods['train']}"
    ]
    done = invoke_dpmpp("deploy", "validate", "--overlay", "local", "--server")
    assert done.returncode == 1 and "pod train: pods x is forbidden" in done.stdout
    # Who may not create pods submits all the same.
    api.refused_pods = {"headgroup": 'User "u" cannot create resource "pods" in API group ""'}
    assert submit()["status"] == "New"


@pytest.mark.parametrize(
    "where, what, kind",
    [
        ("volumes", {"name": "s", "secret": {"secretName": "ca"}}, "secret 'ca'"),
        ("volumes", {"name": "s", "configMap": {"name": "ca"}}, "config_map 'ca'"),
        ("imagePullSecrets", {"name": "registry"}, "secret 'registry'"),
    ],
)
def test_all_that_pods_refer_to_is_looked_up(
    api: KubeApi, where: str, what: dict[str, Any], kind: str
) -> None:
    objects = copy.deepcopy(rendered("local"))
    job = build_job(objects, "train", [])
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], job["spec"]):
        template = group.get("template") or group["submitterPodTemplate"]
        template["spec"].setdefault(where, []).append(what)
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        group["template"]["spec"].setdefault(where, []).append(what)
    with pytest.raises(ConfigError, match=f"dpmpp has no {kind}, which the pods need"):
        Kubernetes("dpmpp").submit(job, objects, "1.7.0")


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


def quota(hard: dict[str, str], used: dict[str, str], **spec: Any) -> Object:
    return {"metadata": {"name": "q"}, "spec": spec, "status": {"hard": hard, "used": used}}


# Of the overlay local: head 1 and its autoscaler 0.5, driver 1, data 2, train 2, submitter 0.25,
# clean-up 0.2.
def test_a_quota_that_is_too_small_is_told_with_the_numbers(api: KubeApi) -> None:
    path = f"{SPACE}/resourcequotas/q"
    api.objects[path] = quota({"requests.cpu": "11"}, {"requests.cpu": "4500m"})
    with pytest.raises(ConfigError, match=r"cpu 11, 4.5 of it used, .* take 6.95 .*\(head 1.5, "):
        submit()
    api.objects[path] = quota({"requests.cpu": "11450m"}, {"requests.cpu": "4500m"})
    assert submit()["status"] == "New"


@pytest.mark.parametrize(
    "hard, used, said",
    [
        ({"pods": "6"}, {"pods": "1"}, "pods 6, 1 of it used, .* take 6 at least"),
        ({"count/pods": "5"}, {}, "take 6 at least"),
        ({"limits.cpu": "7700m"}, {}, "fits"),  # the submitter's limit is 1
        ({"limits.cpu": "7699m"}, {}, "take 7.7 at least"),
        ({"memory": "19Gi"}, {}, "take 19.25Gi at least"),
        ({"count/rayclusters.ray.io": "2"}, {"count/rayclusters.ray.io": "2"}, "take 1 at least"),
        ({"requests.cpu": "0.01Pi"}, {}, "fits"),
        ({"requests.memory": "1E"}, {"requests.memory": "1000000u"}, "fits"),
        ({"requests.nvidia.com/gpu": "0"}, {}, "fits"),
        ({"requests.ephemeral-storage": "1Ki"}, {}, "fits"),
    ],
)
def test_a_quota_counts_as_the_server_does(
    api: KubeApi, hard: dict[str, str], used: dict[str, str], said: str
) -> None:
    api.objects[f"{SPACE}/resourcequotas/q"] = quota(hard, used)
    if said.endswith("fits"):
        assert submit()["status"] == "New"
    else:
        with pytest.raises(ConfigError, match=said):
            submit()


def test_a_quota_counts_the_pods_of_its_scopes(api: KubeApi) -> None:
    path, none = f"{SPACE}/resourcequotas/q", {"pods": "0"}
    for scope in ("BestEffort", "Terminating"):
        api.objects[path] = quota(none, {}, scopes=[scope])
        assert submit()["job"]
    api.objects[path] = quota(none, {}, scopes=["NotTerminating"])
    api.objects = {k: v for k, v in api.objects.items() if not k.startswith(JOBS)}
    with pytest.raises(ConfigError, match="take 6 at least"):
        submit()
    only = {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}
    api.objects[path] = quota(none, {}, scopeSelector={"matchExpressions": [only]})
    assert submit()["status"] == "New"


def test_a_training_of_many_workers_needs_as_many_pods() -> None:
    objects = rendered("gpu-multi-node")
    cluster = load_overlay_config(objects).cluster
    for job, count in (("train", 4), ("prepare", 1)):
        pods = [role for role, _ in list_needed_pods(build_job(objects, job, []), cluster)]
        assert pods.count("train") == count
        assert pods.count("driver") == pods.count("submitter") == pods.count("clean-up") == 1


def test_quantities_of_kubernetes_are_read() -> None:
    for text, number in {
        "500m": 0.5, "2": 2, "1.5Gi": 1.5 * 2**30, "2Pi": 2 * 2**50, "1E": 1e18, "1Ei": 2**60,
        "100u": 1e-4, "5n": 5e-9, "1e3": 1000, "12E2": 1200, "0.1": 0.1, "100k": 1e5, 3: 3,
    }.items():  # fmt: skip
        assert parse_quantity(text) == pytest.approx(number, rel=1e-12)
    for text in ("2GB", "1K", "", "Gi", "1 Gi", "0x1", None):
        with pytest.raises(ConfigError, match="is no quantity"):
            parse_quantity(text)
    assert format_quantity("requests.memory", parse_quantity("1536Mi")) == "1.5Gi"
    assert format_quantity("requests.cpu", parse_quantity("3350m")) == "3.35"


def test_no_kubernetes_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none")
    )
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="set KUBECONFIG, or name a Ray cluster with --address"):
        Kubernetes("dpmpp")


def test_a_night_submits_what_is_applied_and_once(api: KubeApi) -> None:
    """The command of the CronJob's container, with the variables of its pod."""
    for job in (o for o in rendered("local") if o["kind"] == "RayJob"):
        api.objects[f"{JOBS}/{job['metadata']['name']}"] = job
    template = get_object(rendered("local"), "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    container = template["spec"]["containers"][0]

    def run(night: str) -> dict[str, Any]:
        values = {"NAMESPACE": "dpmpp", "JOB_NAME": f"dpmpp-nightly-{night}", "JOB_UID": night * 8}
        assert values.keys() == {item["name"] for item in container["env"]} - {"HOME"}
        program, *words = [*container["command"], *container["args"]]
        for name, value in values.items():
            words = [word.replace(f"$({name})", value) for word in words]
        done = invoke_dpmpp(*words, "--json")
        assert program == "dpmpp" and done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    api.new_status = {"jobDeploymentStatus": "Complete"}
    first = run("1")
    created = api.objects[f"{JOBS}/{first['job']}"]
    synthesize = get_object(rendered("local"), "RayJob", "dpmpp-synthesize")["spec"]
    assert created["spec"] == {k: v for k, v in synthesize.items() if k != "suspend"}
    assert created["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "dpmpp-nightly-1", "uid": "1" * 8}
    ]
    again = run("1")  # a pod that comes again, after the end
    assert again["job"] == first["job"] and again["found"]
    assert run("2")["job"] != first["job"]


def test_a_night_without_templates_says_so(api: KubeApi) -> None:
    done = invoke_dpmpp("deploy", "submit", "synthesize", "--applied")
    assert done.returncode == 2
    assert re.search(r"rayjobs/dpmpp-synthesize not found", done.stderr)


def test_the_rights_of_the_night_are_those_that_it_uses(api: KubeApi) -> None:
    rules = get_object(rendered("local"), "Role", "dpmpp-nightly")["rules"]
    allowed = {
        (resource, verb) for r in rules for resource in r["resources"] for verb in r["verbs"]
    }
    assert allowed == {
        ("rayjobs", "get"), ("rayjobs", "create"), ("configmaps", "get"),
        ("resourcequotas", "list"),
    }  # fmt: skip


def test_another_namespace_than_the_overlays_is_refused(api: KubeApi) -> None:
    done = invoke_dpmpp("deploy", "submit", "train", "--namespace", "team-a")
    assert done.returncode == 2
    assert "--namespace team-a: the overlay is for dpmpp" in done.stderr
    assert invoke_dpmpp("deploy", "submit", "train", "--owner", "x").returncode == 2


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("metric.epoch=3", "did you mean 'metric.epochs'"),
        ("metric.epochs=many", "metric.epochs"),
        ("tracking.model_name=a/b", "tracking.model_name"),
    ],
)
def test_a_wrong_word_starts_no_cluster(api: KubeApi, word: str, says: str) -> None:
    done = invoke_dpmpp("deploy", "submit", "train", word)
    assert done.returncode == 2 and done.stdout == ""
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not [path for path in api.objects if path.startswith(JOBS)]


def test_options_of_a_job_and_another_configuration_are_left_to_it(api: KubeApi) -> None:
    for words in (["--", "--trials", "4"], ["--", "--config", "market1501", "unknown.key=1"]):
        done = invoke_dpmpp("deploy", "submit", "tune", *words)
        assert done.returncode == 0, done.stderr
