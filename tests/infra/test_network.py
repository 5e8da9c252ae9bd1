"""Who may reach whom: exactly what the work needs."""

from __future__ import annotations

import copy

import pytest

from pipelines.deploy.check import find_problems
from pipelines.deploy.network import is_allowed, list_endpoints
from pipelines.deploy.render import Object, get_object
from tests.infra.conftest import OVERLAYS, rendered

PORTS = (22, 53, 443, 5000, 5432, 6379, 6443, 8265, 8333, 8888, 9333, 10001)
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


def of_job(objects: list[Object], job: str) -> list[Object]:
    """Everything but the standing cluster and the other jobs."""
    own = [o for o in objects if o["metadata"]["name"] == job]
    return own + [o for o in objects if o["kind"] not in ("RayCluster", "RayJob")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_reach_what_they_need_and_nothing_else(overlay: str) -> None:
    assert reachable(rendered(overlay)) == expected(overlay)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_promoter_reaches_its_own_cluster_mlflow_and_s3_and_no_other_job(overlay: str) -> None:
    objects = rendered(overlay)
    promotion = of_job(objects, "dpmpp-promote")
    assert reachable(promotion) == expected(overlay)  # as any job, among its own pods
    found = {row[1:] for row in reachable(promotion) if row[0] == "driver" and row[1] not in RAY}
    store = ("dpmpp-s3", 8333) if overlay in OWN_STORES else ("outside", 443)
    assert found == {("mlflow", 5000), store}
    policies = [thing["spec"] for thing in objects if thing["kind"] == "NetworkPolicy"]
    own = list_endpoints(promotion)
    others = list_endpoints(of_job(objects, "dpmpp-train"))
    for a, b in ((own[x], others[y]) for x in RAY for y in RAY):
        assert not [p for p in PORTS if is_allowed(policies, a, b, p)]
        assert not [p for p in PORTS if is_allowed(policies, b, a, p)]


@pytest.mark.parametrize("overlay", ["gpu", "gpu-multi-node"])
def test_the_promoters_way_out_is_a_policy_of_its_own(overlay: str) -> None:
    objects = copy.deepcopy(rendered(overlay))
    block = get_object(objects, "NetworkPolicy", "managed-promoter")["spec"]["egress"][0]
    block["to"] = []
    block["ports"] = [{"port": 1, "protocol": "TCP"}]
    assert ("driver", "outside", 443) not in reachable(of_job(objects, "dpmpp-promote"))
    assert ("driver", "outside", 443) in reachable(of_job(objects, "dpmpp-train"))


def test_only_the_clusters_name_server_is_asked_for_names() -> None:
    for overlay in OVERLAYS:
        policies = [o["spec"] for o in rendered(overlay) if o["kind"] == "NetworkPolicy"]
        rules = [rule for policy in policies for rule in policy.get("egress") or []]
        asking = [r for r in rules if any(port["port"] == 53 for port in r.get("ports") or [])]
        assert len(asking) == 1 and not [r for r in rules if not r.get("to")]
        (peer,) = asking[0]["to"]
        names = {"kubernetes.io/metadata.name": "kube-system"}
        assert peer["namespaceSelector"]["matchLabels"] == names
        assert peer["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
        assert [port["protocol"] for port in asking[0]["ports"]] == ["UDP", "TCP"]


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
