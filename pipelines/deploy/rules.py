"""Rules of operator and server that no schema holds, to be checked before anything is applied.

Each rule takes an object or a part of it and yields (path, sentence).
"""

from __future__ import annotations

import json
import re
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from dpmpp_core.errors import ConfigError
from pipelines.deploy.entrypoint import split_entrypoint
from pipelines.deploy.render import Object

Findings = Iterator[tuple[str, str]]

MAX_NAME_CHARS = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "CronJob": 52}
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
SIZE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
MIN_TOKEN_VERSION = (2, 52)
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
# Lowest, highest, names of the fields of a CronJob's schedule.
SCHEDULE_FIELDS: tuple[tuple[int, int, Sequence[str]], ...] = (
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, MONTHS),
    (0, 6, WEEKDAYS),
)
POSITIVE_FIELDS = ("activeDeadlineSeconds", "preRunningDeadlineSeconds")


def iter_clusters(thing: Object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the RayCluster specs inside an object, with their paths."""
    spec = thing.get("spec") or {}
    if thing.get("kind") == "RayCluster":
        yield "spec", spec
    for path, job in iter_jobs(thing):
        if job.get("rayClusterSpec"):
            yield f"{path}.rayClusterSpec", job["rayClusterSpec"]


def iter_jobs(thing: Object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the RayJob specs inside an object, with their paths."""
    spec = thing.get("spec") or {}
    if thing.get("kind") == "RayJob":
        yield "spec", spec


def iter_groups(spec: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (path, name, group) of the head and every worker group."""
    yield f"{path}.headGroupSpec", "head", spec.get("headGroupSpec") or {}
    for number, group in enumerate(spec.get("workerGroupSpecs") or []):
        yield f"{path}.workerGroupSpecs[{number}]", str(group.get("groupName")), group


def get_pod(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pod spec of a group, or of anything else with a pod template."""
    return (group.get("template") or {}).get("spec") or {}


def check_operator_rules(thing: Object) -> Findings:
    """Yield (path, sentence) for each rule of the operator that an object breaks."""
    yield from _check_name(thing)
    for path, spec in iter_clusters(thing):
        yield from _check_cluster(
            spec, path, (thing.get("metadata") or {}).get("annotations") or {}
        )
        for where, name, group in iter_groups(spec, path):
            yield from _check_group(where, name, group, bool(spec.get("enableInTreeAutoscaling")))
    for path, job in iter_jobs(thing):
        yield from _check_job(job, path)
        yield from _check_submission(job, path)
    if thing.get("kind") == "CronJob":
        yield from _check_schedule(thing["spec"])


def _check_name(thing: Object) -> Findings:
    longest = MAX_NAME_CHARS.get(str(thing.get("kind")))
    name = str((thing.get("metadata") or {}).get("name", ""))
    if longest is None:
        return
    if len(name) > longest:
        yield "metadata.name", f"{len(name)} characters; the operator takes {longest} at most"
    if not _NAME.fullmatch(name):
        yield (
            "metadata.name",
            f"{name!r}: small letters, digits and '-', beginning with a letter",
        )


def _check_cluster(spec: Mapping[str, Any], path: str, annotations: Mapping[str, str]) -> Findings:
    head = spec.get("headGroupSpec") or {}
    containers = get_pod(head).get("containers") or [{}]
    env = {item.get("name") for item in containers[0].get("env") or []}
    params = head.get("rayStartParams") or {}
    if options := spec.get("gcsFaultToleranceOptions"):
        for name in ("redisPassword", "redisUsername"):
            if not isinstance(options.get(name, {}), dict):
                yield f"{path}.gcsFaultToleranceOptions.{name}", "needs `valueFrom` with a secret"
        for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"):
            if name in env:
                yield f"{path}.headGroupSpec", f"{name} belongs into gcsFaultToleranceOptions"
        for name in ("redis-password", "redis-username"):
            if name in params:
                yield (
                    f"{path}.headGroupSpec.rayStartParams.{name}",
                    "belongs into gcsFaultToleranceOptions",
                )
        for name in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
            if name in annotations:
                yield f"metadata.annotations.{name}", "belongs into gcsFaultToleranceOptions"
    elif "RAY_REDIS_ADDRESS" in env:
        yield f"{path}.headGroupSpec", "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
    if (spec.get("authOptions") or {}).get("mode") == "token":
        version = str(spec.get("rayVersion", ""))
        if _parse_version(version) < MIN_TOKEN_VERSION:
            yield f"{path}.rayVersion", f"{version!r}: tokens need Ray 2.52 or newer, named here"
    names = [name for _, name, _ in iter_groups(spec, path)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{path}.workerGroupSpecs", f"two groups are named {name!r}"


def _parse_version(version: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, match.groups())) if match else (0, 0)


def _check_group(path: str, name: str, group: Mapping[str, Any], autoscaled: bool) -> Findings:
    pod = get_pod(group)
    if not pod.get("containers"):
        yield f"{path}.template.spec.containers", f"the group {name} has no container"
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if not 0 <= least <= most:
        yield f"{path}.minReplicas", f"{least} is not between 0 and maxReplicas {most}"
    if "replicas" in group and not 0 <= group["replicas"] <= most:
        yield f"{path}.replicas", f"{group['replicas']} is not between 0 and maxReplicas {most}"
    if autoscaled and name != "head" and "maxReplicas" not in group:
        yield f"{path}.maxReplicas", "an autoscaled group without it has no limit"
    params = group.get("rayStartParams") or {}
    if group.get("resources") and any(params.get(key) for key in SIZE_PARAMS):
        yield f"{path}.resources", "resources stand in rayStartParams too; keep one of them"
    if "labels" in params:
        yield f"{path}.rayStartParams.labels", "labels belong into the group's `labels`"
    for key, value in (group.get("labels") or {}).items():
        if not LABEL_VALUE.fullmatch(str(value)) or not LABEL_VALUE.fullmatch(
            key.rpartition("/")[2]
        ):
            yield f"{path}.labels", f"{key}={value} is no label as Kubernetes takes them"
    if autoscaled and pod.get("restartPolicy", "Never") != "Never":
        yield f"{path}.template.spec.restartPolicy", "the autoscaler (v2) needs Never, or none"
    if autoscaled and group.get("suspend"):
        yield f"{path}.suspend", "an autoscaled group cannot be suspended"


def _check_job(job: Mapping[str, Any], path: str) -> Findings:
    selector, own = job.get("clusterSelector"), job.get("rayClusterSpec")
    if bool(selector) == bool(own):
        yield path, "exactly one of rayClusterSpec and clusterSelector is needed"
    mode = job.get("submissionMode", "K8sJobMode")
    if mode not in SUBMISSION_MODES:
        yield f"{path}.submissionMode", f"{mode!r} is none of {', '.join(SUBMISSION_MODES)}"
    retries = job.get("backoffLimit", 0)
    if retries < 0:
        yield f"{path}.backoffLimit", f"{retries} is below 0"
    if selector:
        for key, bad in (
            ("backoffLimit", retries > 0),
            ("submissionMode", mode == "SidecarMode"),
            ("suspend", bool(job.get("suspend"))),
        ):
            if bad:
                yield f"{path}.{key}", "does not go together with clusterSelector"
    if mode == "InteractiveMode" and retries > 0:
        yield f"{path}.backoffLimit", "does not go together with InteractiveMode"
    ttl, shuts = job.get("ttlSecondsAfterFinished", 0), job.get("shutdownAfterJobFinishes", False)
    if ttl < 0 or (ttl and not shuts):
        yield f"{path}.ttlSecondsAfterFinished", "needs shutdownAfterJobFinishes: true, and no sign"
    if job.get("suspend") and not shuts:
        yield f"{path}.suspend", "needs shutdownAfterJobFinishes: true"
    if job.get("deletionStrategy") and (shuts or ttl):
        yield (
            f"{path}.deletionStrategy",
            "does not go together with shutdownAfterJobFinishes and ttlSecondsAfterFinished",
        )
    for key in POSITIVE_FIELDS:
        if key in job and job[key] <= 0:
            yield f"{path}.{key}", f"{job[key]} is not above 0"


def _check_submission(job: Mapping[str, Any], path: str) -> Findings:
    """Check what the submitter passes to Ray."""
    entrypoint = str(job.get("entrypoint", "")).strip()
    if not entrypoint and job.get("submissionMode") != "InteractiveMode":
        yield f"{path}.entrypoint", "is missing"
    try:
        split_entrypoint(entrypoint)
    except ConfigError as error:
        yield f"{path}.entrypoint", str(error)
    try:
        resources = json.loads(job.get("entrypointResources") or "{}")
        right = isinstance(resources, dict) and all(
            isinstance(v, (int, float)) for v in resources.values()
        )
    except ValueError:
        right = False
    if not right:
        yield f"{path}.entrypointResources", "is no JSON object of numbers, as '{\"driver\": 1}'"
    try:
        environment = yaml.safe_load(job.get("runtimeEnvYAML") or "{}")
    except yaml.YAMLError:
        environment = None
    if not isinstance(environment, dict):
        yield f"{path}.runtimeEnvYAML", "is no YAML mapping"


def _check_schedule(spec: Mapping[str, Any]) -> Findings:
    """Check what the API server checks of a schedule, and its schema does not."""
    schedule = str(spec.get("schedule", ""))
    fields = schedule.split()
    if len(fields) != len(SCHEDULE_FIELDS):
        yield "spec.schedule", f"{schedule!r} has not five fields: minute hour day month weekday"
        return
    for field, (low, high, names) in zip(fields, SCHEDULE_FIELDS, strict=True):
        for part in field.split(","):
            if not _is_schedule_part(part.upper(), low, high, names):
                yield "spec.schedule", f"{field!r} in {schedule!r} is not between {low} and {high}"
    zone = spec.get("timeZone")
    if zone is not None and zone not in zoneinfo.available_timezones():
        yield "spec.timeZone", f"{zone!r} is no time zone, as Etc/UTC"


def _is_schedule_part(part: str, low: int, high: int, names: Sequence[str]) -> bool:
    """Return whether a part of a field is `*`, a number or a range, with `/step` or not."""
    span, slash, step = part.partition("/")
    if slash and (not step.isdigit() or int(step) < 1):
        return False
    if span in ("*", "?"):
        return True
    ends = [str(low + names.index(end)) if end in names else end for end in span.split("-", 1)]
    if not all(end.isdigit() for end in ends):
        return False
    return low <= int(ends[0]) <= int(ends[-1]) <= high
