"""Check pods as the API server and the kubelet would when they are created.

KubeRay's CRDs hold pod templates loosely: requests above limits, a container without image or an
unknown volume pass them, and the pods are refused much later.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.deploy.pod_security import check_pod_security
from pipelines.deploy.pods import iter_operator_pods
from pipelines.deploy.policy import check_quantities, iter_pods
from pipelines.deploy.quantities import parse_quantity
from pipelines.deploy.render import Object, format_name
from pipelines.deploy.rules import LABEL_VALUE, Findings, iter_clusters, iter_groups
from pipelines.deploy.schemas import Problem, check_schema

_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=[a-z0-9-]{1,15}$)(?!.*--)[a-z0-9]*[a-z][a-z0-9-]*(?<!-)")
CHOICES = {
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "whenUnsatisfiable": ("DoNotSchedule", "ScheduleAnyway"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "medium": ("", "Memory", "HugePages"),
    "protocol": ("TCP", "UDP", "SCTP"),
}


def iter_created_pods(thing: Object) -> Iterator[tuple[str, Object]]:
    """Yield (role, pod) of all pods that are created for an object."""
    kind, spec = thing.get("kind"), thing.get("spec") or {}
    if kind in ("Deployment", "StatefulSet", "Job"):
        yield str(kind), _as_pod(spec.get("template") or {}, spec.get("volumeClaimTemplates") or [])
    elif kind == "CronJob":
        yield "CronJob", _as_pod((spec["jobTemplate"].get("spec") or {}).get("template") or {}, [])
    else:
        yield from iter_operator_pods(thing)


def _as_pod(template: Mapping[str, Any], claims: list[Object]) -> Object:
    """Return a pod of a template; claims of a StatefulSet are volumes in it."""
    spec = dict(template.get("spec") or {})
    mounted = [
        {"name": c["metadata"]["name"], "persistentVolumeClaim": {"claimName": "x"}} for c in claims
    ]
    if mounted:
        spec["volumes"] = [*(spec.get("volumes") or []), *mounted]
    metadata = {"generateName": "x-", **(template.get("metadata") or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def check_pods(thing: Object) -> list[Problem]:
    """Return what the server or the kubelet would refuse in the pods of an object.

    Its templates are right, see `check_templates`.
    """
    problems = []
    for role, pod in iter_created_pods(thing):
        found = [(problem.path, problem.message) for problem in check_schema(pod, None)]
        found = found or [*_check_pod(pod), *check_pod_security(pod["spec"])]
        problems += [
            Problem(format_name(thing), f"pod {role}: {path}", text) for path, text in found
        ]
    return problems


def check_templates(thing: Object) -> list[Problem]:
    """Return what is wrong in an object's pod templates, so that no pods could be built of them."""
    name, found = format_name(thing), list[Problem]()
    for path, spec in iter_pods(thing):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        wrong = check_schema(pod, None)
        found += [
            Problem(name, path + problem.path.removeprefix("spec"), problem.message)
            for problem in wrong
        ]
        for number, container in enumerate([] if wrong else spec["containers"]):
            for kind, values in (container.get("resources") or {}).items():
                where = f"{path}.containers[{number}].resources.{kind}"
                found += [Problem(name, *rule) for rule in check_quantities(where, values)]
    for path, cluster in iter_clusters(thing):
        for where, _, group in iter_groups(cluster, path):
            values = group.get("resources") or {}
            found += [
                Problem(name, *rule) for rule in check_quantities(f"{where}.resources", values)
            ]
    return found


def _check_pod(pod: Object) -> Findings:
    spec = pod["spec"]
    yield from _check_choices("spec", spec)
    for key, value in (pod["metadata"].get("labels") or {}).items():
        # The operator shortens its own.
        if not key.startswith("ray.io/") and not LABEL_VALUE.fullmatch(str(value)):
            yield f"metadata.labels.{key}", f"{value!r} is no label as Kubernetes takes them"
    volumes = [volume.get("name") for volume in spec.get("volumes") or []]
    yield from _find_twice("spec.volumes", volumes)
    names: list[Any] = []
    for kind in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(kind) or []):
            names.append(container.get("name"))
            yield from _check_container(f"spec.{kind}[{number}]", container, volumes)
    yield from _find_twice("spec.containers", names)


def _check_choices(path: str, value: Any) -> Findings:
    if isinstance(value, dict):
        for key, inner in value.items():
            known = CHOICES.get(key)
            if known and isinstance(inner, str) and inner not in known:
                yield f"{path}.{key}", f"{inner!r} is none of {', '.join(known)}"
            elif key not in ("env", "args", "command"):
                yield from _check_choices(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _check_choices(f"{path}[{number}]", inner)


def _find_twice(path: str, names: list[Any]) -> Findings:
    for name, count in Counter(names).items():
        if count > 1:
            yield path, f"{name!r} stands there {count} times"


def _check_container(path: str, container: Mapping[str, Any], volumes: list[Any]) -> Findings:
    if not _NAME.fullmatch(str(container.get("name", ""))):
        yield f"{path}.name", f"{container.get('name')!r}: small letters, digits and '-'"
    image = str(container.get("image") or "")
    if not _IMAGE.fullmatch(image):
        text = "write name:tag or name:tag@sha256:64 digits (TAG=0.2.0@sha256:... in versions.env)"
        yield f"{path}.image", f"{image!r} is no image: {text}" if image else "is missing"
    yield from _check_sizes(f"{path}.resources", container.get("resources") or {})
    mounts = container.get("volumeMounts") or []
    for mount in mounts:
        if mount.get("name") not in volumes:
            yield f"{path}.volumeMounts", f"there is no volume {mount.get('name')!r}"
    yield from _find_twice(f"{path}.volumeMounts", [mount.get("mountPath") for mount in mounts])
    for number, port in enumerate(container.get("ports") or []):
        if "name" in port and not _PORT_NAME.fullmatch(str(port["name"])):
            text = "15 small letters, digits and '-' at most"
            yield f"{path}.ports[{number}].name", f"{port['name']!r}: {text}"
        if not 0 < port.get("containerPort", 0) < 65536:
            yield f"{path}.ports[{number}].containerPort", "is no port"


def _check_sizes(path: str, resources: Mapping[str, Any]) -> Findings:
    sizes = {
        kind: {name: parse_quantity(value) for name, value in (resources.get(kind) or {}).items()}
        for kind in ("requests", "limits")
    }
    for name, request in sizes["requests"].items():
        limit = sizes["limits"].get(name)
        if limit is not None and request > limit:
            yield (
                f"{path}.requests.{name}",
                f"{resources['requests'][name]} is above the limit {resources['limits'][name]}",
            )
        if "/" in name and request != limit:
            yield f"{path}.requests.{name}", "differs from the limit: such a resource is not shared"
