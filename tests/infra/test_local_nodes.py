"""infra/local starts what the operator's pods start, and adds only what it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from infra.local.cluster import NODES_PER_GROUP
from infra.local.nodes import LOCAL_ENV, Nodes
from infra.local.services import Services
from pipelines.deploy.jobs import build_job
from pipelines.deploy.pods import SUFFIX, build_submitter_pod
from tests.infra.conftest import RECORDED_PODS, rendered
from tests.infra.recorded import load_recorded, ray_commands

pytestmark = pytest.mark.skipif(
    not RECORDED_PODS.is_dir(), reason="the recorded pods are not next to the repository"
)
RECORDED_CLUSTER = f"dpmpp-train-eb897195-{SUFFIX}"


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    """Not started."""
    return Nodes(rendered("cpu"), Services(tmp_path), NODES_PER_GROUP)


def recorded_container(role: str) -> dict[str, Any]:
    return load_recorded(role)["spec"]["containers"][0]


@pytest.mark.parametrize("name", ["head", "driver-0", "data-0", "data-1", "train-0"])
def test_a_node_has_the_command_and_the_variables_of_its_pod(nodes: Nodes, name: str) -> None:
    node, recorded = nodes.nodes[name], recorded_container(name.partition("-")[0])
    args = [text.replace(RECORDED_CLUSTER, "dpmpp") for text in recorded["args"]]
    assert [node.container["command"], node.container["args"]] == [recorded["command"], args]
    assert node.container["startupProbe"]["httpGet"].items() <= (
        recorded["startupProbe"]["httpGet"].items()
    )
    env = nodes.environment(node.pod, node.container, name)
    sources = {next(iter(item)) for item in recorded.get("envFrom", [])}
    named = {item["name"] for item in recorded["env"]}
    assert named <= set(env)
    if not sources:
        assert named == set(env)
    for item in recorded["env"]:
        if "value" in item and item["name"] != "DPMPP_CONFIG":
            value = item["value"].replace(RECORDED_CLUSTER, "dpmpp")
            value = value.replace("kuberay_crd=RayJob", "kuberay_crd=RayCluster")
            assert env[item["name"]] == value.replace("UID", nodes.cluster.uid), item["name"]
    assert not set(LOCAL_ENV) & set(env)


def test_secrets_and_fields_are_put_in(nodes: Nodes) -> None:
    head = nodes.nodes["head"]
    env = nodes.environment(head.pod, head.container, "pod-1")
    assert re.fullmatch(r"redis://dpmpp-redis:6379", env["RAY_REDIS_ADDRESS"])
    assert env["RAY_external_storage_namespace"] == nodes.cluster.uid
    assert env["RAY_CLOUD_INSTANCE_ID"] == "pod-1"
    assert (env["RAY_CLUSTER_NAME"], env["RAY_NODE_TYPE_NAME"]) == ("dpmpp", "headgroup")
    assert env["REDIS_PASSWORD"] and env["RAY_AUTH_TOKEN"] == nodes.token["RAY_AUTH_TOKEN"]
    assert not any(variable.startswith("AWS_") for variable in env)
    train = nodes.nodes["train-0"]
    assert "MLFLOW_TRACKING_PASSWORD" not in nodes.environment(train.pod, train.container, "t")
    driver = nodes.nodes["driver-0"]
    assert "MLFLOW_TRACKING_PASSWORD" in nodes.environment(driver.pod, driver.container, "d")


def test_a_job_is_handed_over_as_the_operators_submitter_does(nodes: Nodes) -> None:
    job = build_job(rendered("cpu"), "train", ["metric.epochs=30"])
    name = job["metadata"]["name"]
    container = build_submitter_pod(name, job["spec"], nodes.cluster)["spec"]["containers"][0]
    recorded = [
        [word.replace(RECORDED_CLUSTER, "dpmpp") for word in command]
        for command in ray_commands(recorded_container("submitter")["args"])
    ]
    ours = [
        [word.replace(f"{name}-{SUFFIX}", "dpmpp") for word in command]
        for command in ray_commands(container["args"])
    ]
    assert ours == recorded and len(ours) == 3
