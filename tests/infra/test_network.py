"""Who may reach whom: exactly what the work needs."""

from __future__ import annotations

import copy

import pytest

from pipelines.deploy.check import find_problems
from pipelines.deploy.network import is_allowed, list_endpoints
from pipelines.deploy.render import Object, get_object
from tests.infra.conftest import OVERLAYS, rendered

PORTS = (22, 443, 5000, 5432, 6379, 6443, 8265, 8333, 8888, 9333, 10001)
OWN_STORES = ("local", "cpu")
RAY = ("head", "driver", "data", "train", "clean-up")


def reachable(objects: list[Object]) -> set[tuple[str, str, int]]:
    policies = [thing["spec"] for thing in objects if thing["kind"] == "NetworkPolicy"]
    pods = list_endpoints(objects)
    targets = {**pods, "outside": None}
    return {
        (source, target, port)
        for source, pod in pods.items()
        for target, other in targets.items()
        for port in PORTS
        if is_allowed(policies, pod, other, port)
    }


def expected(overlay: str) -> set[tuple[str, str, int]]:
    found = {(a, b, port) for a in RAY for b in RAY for port in PORTS}
    found |= {("submitter", "head", 8265), ("driver", "mlflow", 5000)}
    # The autoscaler is in the head's pod, whose labels the clean-up pod has too.
    found |= {
        (role, "outside", port)
        for role in ("head", "clean-up", "dpmpp-nightly")
        for port in (443, 6443)
    }
    storage, redis = ("driver", "data", "train", "mlflow"), ("head", "clean-up")
    if overlay in OWN_STORES:
        found |= {(role, "dpmpp-s3", 8333) for role in storage}
        found |= {(role, "dpmpp-redis", 6379) for role in redis}
        found |= {("mlflow", "dpmpp-postgres", 5432)}
    else:
        found |= {(role, "outside", 443) for role in storage}
        found |= {(role, "outside", 6379) for role in redis}
        found |= {("mlflow", "outside", 5432)}
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_reach_what_they_need_and_nothing_else(overlay: str) -> None:
    assert reachable(rendered(overlay)) == expected(overlay)


def test_both_installs_of_the_operator_and_no_other_namespace_reach_the_dashboard() -> None:
    rules = get_object(rendered("gpu"), "NetworkPolicy", "head")["spec"]["ingress"][0]["from"]
    others = [rule for rule in rules if "namespaceSelector" in rule]
    names = {"kubernetes.io/metadata.name": "kuberay-system"}
    assert [rule["namespaceSelector"]["matchLabels"] for rule in others] == [names, names]
    assert [rule["podSelector"]["matchLabels"] for rule in others] == [
        {"app.kubernetes.io/name": "kuberay-operator"},
        {"app.kubernetes.io/component": "kuberay-operator"},
    ]
    for overlay in OVERLAYS:
        for thing in rendered(overlay):
            if thing["kind"] == "NetworkPolicy":
                assert "'namespaceSelector': {}" not in str(thing), thing["metadata"]["name"]


@pytest.mark.parametrize(
    "group, value, said",
    [
        (0, {"dpmpp/pool": "train"}, r"pod driver: its dpmpp/pool is train, not system"),
        (2, {"dpmpp/pool": "data"}, r"pod train: its dpmpp/pool is data, not train"),
        (1, {}, r"pod data: its dpmpp/pool is missing, not data"),
    ],
)
def test_a_pod_in_another_pool_is_found(group: int, value: dict[str, str], said: str) -> None:
    objects = copy.deepcopy(rendered("cpu"))
    spec = get_object(objects, "RayCluster")["spec"]["workerGroupSpecs"][group]
    spec["template"]["spec"]["nodeSelector"] = value
    assert any(said in str(problem) for problem in find_problems(objects, None))


@pytest.mark.parametrize("name", ["dpmpp-redis", "dpmpp-postgres", "dpmpp-s3"])
def test_a_store_without_a_pool_is_found(name: str) -> None:
    objects = copy.deepcopy(rendered("cpu"))
    del get_object(objects, "StatefulSet", name)["spec"]["template"]["spec"]["nodeSelector"]
    found = [str(problem) for problem in find_problems(objects, None)]
    assert [f"overlay StatefulSet/{name} pod StatefulSet" in line for line in found] == [True]


def test_a_submitter_on_spot_machines_is_found() -> None:
    objects = copy.deepcopy(rendered("cpu"))
    spec = get_object(objects, "RayJob", "dpmpp-train")["spec"]["submitterPodTemplate"]["spec"]
    spec["tolerations"] = [{"key": "dpmpp/spot", "operator": "Exists"}]
    found = [str(problem) for problem in find_problems(objects, None)]
    assert any("pod submitter: tolerates dpmpp/spot" in line for line in found), found
