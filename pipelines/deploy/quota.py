"""Compare what the pods of a job take with the quotas of its namespace, as the server counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.deploy.pods import iter_operator_pods
from pipelines.deploy.quantities import format_quantity, parse_quantity
from pipelines.deploy.render import Object

Pods = Sequence[tuple[str, Object]]
# Quotas name these also without `requests.`.
CORE_RESOURCES = ("cpu", "memory", "ephemeral-storage")
# What the operator creates for a job next to its pods.
JOB_OBJECTS = {
    "count/rayjobs.ray.io": 1,
    "count/rayclusters.ray.io": 1,
    "count/jobs.batch": 2,
    "count/services": 1,
    "services": 1,
    "count/secrets": 1,
    "secrets": 1,
    "count/serviceaccounts": 1,
    "count/roles.rbac.authorization.k8s.io": 1,
    "count/rolebindings.rbac.authorization.k8s.io": 1,
}


def sum_pod_usage(pod: Mapping[str, Any]) -> dict[str, float]:
    """Return what a quota counts for a pod: `pods`, `requests.cpu`, `limits.memory`, ...

    Containers run together, init containers one after the other; a limit without a request is
    the request too.
    """
    usage: dict[str, float] = {"pods": 1, "count/pods": 1}
    largest_init: dict[str, float] = {}
    for container in pod["spec"].get("containers") or []:
        for key, value in _container_usage(container).items():
            usage[key] = usage.get(key, 0) + value
    for container in pod["spec"].get("initContainers") or []:
        for key, value in _container_usage(container).items():
            largest_init[key] = max(value, largest_init.get(key, 0))
    total = usage | {key: max(usage.get(key, 0), value) for key, value in largest_init.items()}
    return total | {name: total.get(f"requests.{name}", 0) for name in CORE_RESOURCES}


def _container_usage(container: Mapping[str, Any]) -> dict[str, float]:
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    requests = limits | (resources.get("requests") or {})
    return {f"requests.{name}": parse_quantity(value) for name, value in requests.items()} | {
        f"limits.{name}": parse_quantity(value) for name, value in limits.items()
    }


def find_shortages(
    quota: Object, pods: Pods, objects: Mapping[str, float], used: Mapping[str, float] | None = None
) -> Iterator[str]:
    """Yield a sentence for each limit of a quota that pods and objects do not fit under.

    Args:
        quota: a ResourceQuota; its status says what is used, if there is one.
        pods: (role, pod) of all that run at the same time.
        objects: by key of the quota, how many objects come with them.
        used: what is used, where the quota has no status.
    """
    status = quota.get("status") or {}
    hard = status.get("hard") or quota["spec"].get("hard") or {}
    taken = {key: parse_quantity(value) for key, value in (status.get("used") or {}).items()}
    taken = taken or dict(used or {})
    scoped = bool(quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"))
    counted = [(role, pod) for role, pod in pods if _in_scopes(quota["spec"], pod["spec"])]
    usage = [(role, sum_pod_usage(pod)) for role, pod in counted]
    name = quota["metadata"]["name"]
    for key, limit in hard.items():
        for role, container in _find_undeclared(key, counted):
            yield f"quota {name}: it limits {key}, so {container!r} of {role} must state it"
        parts: dict[str, float] = {}
        for role, sizes in usage:
            parts[role] = parts.get(role, 0) + sizes.get(key, 0)
        needed = sum(parts.values()) + (0 if scoped else objects.get(key, 0))
        free = parse_quantity(limit) - taken.get(key, 0)
        if needed > free * (1 + 1e-9):
            shares = ", ".join(
                f"{role} {format_quantity(key, share)}" for role, share in parts.items() if share
            )
            yield (
                f"quota {name}: {key} {limit}, {format_quantity(key, taken.get(key, 0))} of it "
                f"used, but the pods of this job take {format_quantity(key, needed)} at least"
                f"{f' ({shares})' if shares else ''}: raise it, stop another job or lower the "
                "pods' size"
            )


def find_overlay_shortages(
    objects: Sequence[Object], needed: Mapping[str, Pods]
) -> Iterator[tuple[Object, str]]:
    """Yield (quota, sentence) where what always runs leaves no place for a job.

    Args:
        objects: those of the overlay.
        needed: by name of a job, its pods.
    """
    standing = [pod for thing in objects for pod in _list_standing_pods(thing)]
    used: dict[str, float] = {}
    for pod in standing:
        for key, value in sum_pod_usage(pod).items():
            used[key] = used.get(key, 0) + value
    for kind in ("RayCluster", "RayJob"):
        key = f"count/{kind.lower()}s.ray.io"
        used[key] = sum(thing.get("kind") == kind for thing in objects)
    for quota in objects:
        if quota.get("kind") == "ResourceQuota":
            found = {
                sentence: quota
                for pods in needed.values()
                for sentence in find_shortages(quota, pods, JOB_OBJECTS, used)
            }
            yield from ((thing, sentence) for sentence, thing in found.items())


def _list_standing_pods(thing: Object) -> list[Object]:
    """Return the pods that an applied object keeps: servers, and heads of clusters."""
    kind, spec = thing.get("kind"), thing.get("spec") or {}
    if kind in ("Deployment", "StatefulSet"):
        return [spec["template"]] * spec.get("replicas", 1)
    if kind == "CronJob":
        return [spec["jobTemplate"]["spec"]["template"]]
    if kind == "RayCluster":
        least = {g["groupName"]: g.get("minReplicas", 0) for g in spec["workerGroupSpecs"]}
        return [
            pod for role, pod in iter_operator_pods(thing) for _ in range(least.get(role, 1))
            if role != "clean-up"
        ]  # fmt: skip
    return []


def _find_undeclared(key: str, pods: Pods) -> Iterator[tuple[str, str]]:
    """Yield (role, container) where the server refuses a pod for what it leaves open."""
    kind, _, name = key.rpartition(".") if "/" not in key else ("", "", "")
    if (name or key) not in ("cpu", "memory") or kind not in ("", "requests", "limits"):
        return
    wanted = f"{kind or 'requests'}.{name or key}"
    for role, pod in pods:
        for where in ("initContainers", "containers"):
            for container in pod["spec"].get(where) or []:
                if wanted not in _container_usage(container):
                    yield role, str(container.get("name"))


def _in_scopes(spec: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    """Return whether a quota counts a pod."""
    selected = (spec.get("scopeSelector") or {}).get("matchExpressions") or []
    plain = [{"scopeName": scope, "operator": "Exists"} for scope in spec.get("scopes") or []]
    ends = "activeDeadlineSeconds" in pod
    sized = any(_container_usage(container) for container in pod.get("containers") or [])
    matches = {"Terminating": ends, "NotTerminating": not ends}
    matches |= {"BestEffort": not sized, "NotBestEffort": sized}
    for scope in [*plain, *selected]:
        if scope["scopeName"] == "PriorityClass":
            name, values = pod.get("priorityClassName"), scope.get("values") or []
            fits = {
                "In": name in values, "NotIn": name not in values,
                "Exists": name is not None, "DoesNotExist": name is None,
            }[scope["operator"]]  # fmt: skip
            if not fits:
                return False
        elif not matches.get(scope["scopeName"], False):
            return False
    return True
