"""Pods that KubeRay's operator made of the overlay `cpu`, and the same pods as we build them."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.deploy.pods import SUFFIX, iter_operator_pods
from pipelines.deploy.render import Object, get_object
from tests.infra.conftest import RECORDED_PODS, rendered

ROLES = ("head", "driver", "data", "train", "submitter", "clean-up")
# What the API server, the scheduler and the kubelet add.
SERVER_METADATA = (
    "creationTimestamp", "finalizers", "generation", "name", "ownerReferences", "resourceVersion",
    "uid",
)  # fmt: skip
SERVER_LABELS = (
    "topology.kubernetes.io/zone",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
)
SERVER_SPEC = ("nodeName", "preemptionPolicy", "priority", "schedulerName", "serviceAccount")
OPERATOR_ANNOTATIONS = ("ray.io/kuberay-version", "ray.io/upgrade-strategy-recreate-hash")
DEFAULTS: dict[str, Any] = {
    "defaultMode": 420, "dnsPolicy": "ClusterFirst", "imagePullPolicy": "IfNotPresent",
    "protocol": "TCP", "scheme": "HTTP", "serviceAccountName": "default", "successThreshold": 1,
    "terminationGracePeriodSeconds": 30, "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File", "timeoutSeconds": 1,
}  # fmt: skip


def load_recorded(role: str) -> Object:
    """A recorded pod, without what depends on the run."""
    path: Path = RECORDED_PODS / f"{role.replace('-', '')}.yaml"
    text = re.sub(r"\b(q2m2j|s7tkl)\b", SUFFIX, path.read_text())
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22,}", "UID", text)
    return bring_up_to_date(role, yaml.safe_load(text))


def bring_up_to_date(role: str, pod: Object) -> Object:
    """What our manifests say otherwise since the recording; each must find its place."""
    tag = get_object(rendered("cpu"), "ConfigMap", "dpmpp-versions")["data"]["TAG"]
    for kind in ("containers", "initContainers"):
        for container in pod["spec"].get(kind, []):
            name, _, recorded = container["image"].rpartition(":")
            assert recorded == "0.1.0"
            container["image"] = f"{name}:{tag}"
            if role in ("driver", "data", "train"):
                at = [item["name"] for item in container["env"]].index("DPMPP_CONFIG")
                drain = {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "90"}
                container["env"].insert(at, drain)
    labels = pod["metadata"]["labels"]
    if role in ("driver", "data", "train"):
        del pod["spec"]["containers"][0]["lifecycle"]  # Ray drains by itself
        labels["dpmpp/storage"] = "yes"
    elif role == "submitter":
        pod["spec"]["nodeSelector"] = {"dpmpp/pool": "system"}
    else:
        labels["dpmpp/kubernetes-api"] = "yes"
    if role == "head":
        autoscaler = pod["spec"]["containers"][1]
        autoscaler["env"].insert(4, {"name": "HOME", "value": "/tmp"})
    return pod


def build(role: str) -> Object:
    """Our pod of a role, of the objects that were applied for the recording."""
    objects = copy.deepcopy(rendered("cpu"))
    if role == "head":
        return dict(iter_operator_pods(get_object(objects, "RayCluster")))[role]
    job = get_object(objects, "RayJob", "dpmpp-train")
    job["metadata"]["name"] = "dpmpp-train-eb897195"
    job["spec"]["entrypoint"] += " metric.epochs=30"
    return dict(iter_operator_pods(job))[role]


def normalized(pod: Object) -> Object:
    """A pod without what a server adds and defaults."""
    pod = copy.deepcopy(pod)
    pod.pop("status", None)
    metadata, spec = pod["metadata"], pod["spec"]
    for holder, keys in (
        (metadata, SERVER_METADATA), (metadata["labels"], SERVER_LABELS), (spec, SERVER_SPEC),
        (metadata.get("annotations", {}), OPERATOR_ANNOTATIONS),
    ):  # fmt: skip
        for key in keys:
            holder.pop(key, None)
    spec["tolerations"] = [
        item for item in spec.get("tolerations", []) if "tolerationSeconds" not in item
    ]
    spec["volumes"] = [v for v in spec.get("volumes", []) if "projected" not in v]
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        container["volumeMounts"] = [
            mount
            for mount in container["volumeMounts"]
            if "serviceaccount" not in mount["mountPath"]
        ]
        if container["name"] in ("wait-gcs-ready", "submitter") or (
            metadata["labels"].get("ray.io/node-type") == "redis-cleanup"
        ):
            container["args"] = ray_commands(container.get("args") or [""])
    return _without_defaults(pod)


def ray_commands(args: list[str]) -> list[list[str]]:
    """The commands of Ray in a script, as words, one of each kind."""
    found: list[list[str]] = []
    for part in re.split(r";|\bthen\b|\bdo\b", args[0].replace("\n", " ")):
        at = part.find("ray ")
        if at >= 0 and part[:at].strip() in ("", "if", "if !", "until"):
            words = shlex.split(part[at:].partition(">")[0])
            if words not in found:
                found.append(words)
    return found


def _without_defaults(value: Any) -> Any:
    if isinstance(value, dict):
        plain = {k: _without_defaults(v) for k, v in value.items() if DEFAULTS.get(k) != v}
        return {k: v for k, v in plain.items() if v not in ({}, [], None) or k == "emptyDir"}
    return [_without_defaults(item) for item in value] if isinstance(value, list) else value


def find_differences(role: str, recorded: Object) -> list[str]:
    """Paths at which our pod of a role differs from the operator's."""
    ours, theirs = (dict(_flatten(normalized(pod), "")) for pod in (build(role), recorded))
    return [
        f"{path}: we say {ours.get(path)!r}, the operator {theirs.get(path)!r}"
        for path in sorted({*ours, *theirs})
        if ours.get(path) != theirs.get(path)
    ]


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _flatten(inner, f"{path}[{number}]")
    else:
        yield path, value
