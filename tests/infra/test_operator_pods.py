"""The pods that we reckon with are those that KubeRay's operator made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipelines.deploy.render import Object
from tests.infra.conftest import RECORDED_PODS, rendered
from tests.infra.recorded import ROLES, find_differences, load_recorded

pytestmark = pytest.mark.skipif(
    not RECORDED_PODS.is_dir(), reason="the recorded pods are not next to the repository"
)


@pytest.mark.parametrize("role", ROLES)
def test_a_pod_is_built_as_the_operator_builds_it(role: str) -> None:
    assert find_differences(role, load_recorded(role)) == []


def _ray(pod: Object) -> dict[str, Any]:
    return pod["spec"]["containers"][0]


def _env(container: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in container["env"] if item["name"] == name)


def _replace_argument(pod: Object, old: str, new: str) -> None:
    args = _ray(pod)["args"]
    assert old in args[0]
    args[0] = args[0].replace(old, new)


def _lower(pod: Object) -> None:
    pod["spec"]["initContainers"][0]["resources"]["requests"]["cpu"] = "100m"


# Role, field, the change, and the path that must be named.
CHANGES: tuple[tuple[str, str, Callable[[Object], Any], str], ...] = (
    ("head", "memory that Ray is given",
     lambda p: _replace_argument(p, "--memory=8589934592", "--memory=1"), r"containers\[0\].args"),
    ("head", "no monitor of its own",
     lambda p: _replace_argument(p, " --no-monitor ", ""), r"containers\[0\].args"),
    ("head", "address of Redis without scheme",
     lambda p: _env(_ray(p), "RAY_REDIS_ADDRESS").update(value="dpmpp-redis:6379"),
     "redis://dpmpp-redis:6379'"),
    ("head", "namespace of the state in Redis",
     lambda p: _env(_ray(p), "RAY_external_storage_namespace").update(value="dpmpp"),
     "we say 'UID', the operator 'dpmpp'"),
    ("head", "size of the autoscaler",
     lambda p: p["spec"]["containers"][1]["resources"]["limits"].update(memory="512Mi"),
     r"containers\[1\].resources.limits.memory"),
    ("head", "restart policy", lambda p: p["spec"].update(restartPolicy="Always"), "restartPolicy"),
    ("driver", "resource of drivers",
     lambda p: _replace_argument(p, '{"driver":4}', '{"driver":1}'), r"containers\[0\].args"),
    ("data", "wait for the head", _lower, r"initContainers\[0\].resources.requests.cpu"),
    ("data", "port of metrics",
     lambda p: _replace_argument(p, "--metrics-export-port=8080", "--metrics-export-port=8090"),
     r"containers\[0\].args"),
    ("train", "address of the head",
     lambda p: _env(_ray(p), "RAY_ADDRESS").update(value="auto"), r"containers\[0\].env"),
    ("train", "size of /dev/shm",
     lambda p: p["spec"]["volumes"][-1]["emptyDir"].update(sizeLimit="1Gi"), "emptyDir.sizeLimit"),
    ("submitter", "a submitter that waits",
     lambda p: _replace_argument(p, " --no-wait", ""), r"containers\[0\].args"),
    ("clean-up", "size of the clean-up",
     lambda p: _ray(p)["resources"]["limits"].update(memory="1Gi"), "resources.limits.memory"),
    ("clean-up", "patience with Redis",
     lambda p: _env(_ray(p), "RAY_redis_db_connect_retries").update(value="1"),
     r"containers\[0\].env"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("role", "field", "change", "named"), CHANGES, ids=[f"{row[0]}-{row[1]}" for row in CHANGES]
)
def test_a_change_of_a_field_is_noticed(
    role: str, field: str, change: Callable[[Object], Any], named: str
) -> None:
    recorded = load_recorded(role)
    change(recorded)
    found = find_differences(role, recorded)
    assert found and all(re.search(named, line) for line in found), (field, found)


def test_policies_select_by_labels_that_the_operator_sets() -> None:
    given = {pair for role in ROLES for pair in load_recorded(role)["metadata"]["labels"].items()}
    asked: set[tuple[str, str]] = set()
    for thing in rendered("cpu"):
        if thing["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            asked |= set(_selected(thing["spec"]))
    asked = {(key, value) for key, value in asked if key.startswith("ray.io/")}
    assert ("ray.io/node-type", "redis-cleanup") in asked and ("ray.io/group", "driver") in asked
    assert asked - given == {("ray.io/cluster", "dpmpp")} - given


def _selected(value: Any) -> Iterator[tuple[str, str]]:
    """Labels that selectors somewhere inside ask for."""
    if isinstance(value, dict):
        yield from (value.get("matchLabels") or {}).items()
        for test in value.get("matchExpressions") or []:
            yield from ((test["key"], one) for one in test.get("values", []))
        for inner in value.values():
            yield from _selected(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _selected(inner)
