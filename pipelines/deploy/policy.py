"""Rules of this project for its manifests, stricter than Kubernetes and the operator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpmpp_core.errors import ConfigError
from pipelines.deploy.quantities import parse_quantity
from pipelines.deploy.render import Object
from pipelines.deploy.rules import Findings, get_pod, iter_clusters, iter_groups, iter_jobs

GPU_RESOURCE = "nvidia.com/gpu"
MIN_STARTING_DEADLINE_SECONDS = 60  # the controller looks every ten seconds


def iter_pods(thing: Object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the pod specs inside an object, with their paths."""
    for path, spec in iter_clusters(thing):
        for where, _, group in iter_groups(spec, path):
            yield f"{where}.template.spec", get_pod(group)
    for path, job in iter_jobs(thing):
        if job.get("submitterPodTemplate"):
            yield (
                f"{path}.submitterPodTemplate.spec",
                get_pod({"template": job["submitterPodTemplate"]}),
            )
    if thing.get("kind") in ("Deployment", "StatefulSet", "Job"):
        yield "spec.template.spec", get_pod(thing["spec"])
    if thing.get("kind") == "CronJob":
        yield "spec.jobTemplate.spec.template.spec", get_pod(thing["spec"]["jobTemplate"]["spec"])


def check_policy(thing: Object) -> Findings:
    """Yield (path, sentence) for each rule that one object breaks."""
    if thing.get("kind") == "Secret":
        yield "", "secrets are created on the cluster, never in manifests"
    if thing.get("kind") == "RayCronJob":
        yield (
            "",
            "it starts every missed run at once: take a CronJob that submits, as dpmpp-nightly",
        )
    if thing.get("kind") == "CronJob":
        yield from _check_cron_job(thing["spec"])
    if thing.get("kind") == "ResourceQuota":
        yield from check_quantities("spec.hard", thing["spec"].get("hard") or {})
    for path, pod in iter_pods(thing):
        yield from _check_pod(path, pod)
    for path, spec in iter_clusters(thing):
        for where, name, group in iter_groups(spec, path):
            yield from _check_ray_group(where, name, group, str(spec.get("rayVersion")))
        if (spec.get("authOptions") or {}).get("mode") != "token":
            yield f"{path}.authOptions.mode", "is not `token`: anybody who reaches it may run code"
        password = (spec.get("gcsFaultToleranceOptions") or {}).get("redisPassword") or {}
        if "value" in password:
            yield f"{path}.gcsFaultToleranceOptions.redisPassword", "take it from a secret"
    for path, job in iter_jobs(thing):
        yield from _check_job(path, job)


def check_quantities(path: str, values: Mapping[str, Any]) -> Findings:
    """Yield (path, sentence) for each value that Kubernetes would not take as a quantity."""
    for name, value in values.items():
        try:
            if parse_quantity(value) < 0:
                yield f"{path}.{name}", f"{value} is below 0"
        except ConfigError as error:
            yield f"{path}.{name}", str(error)


def _check_cron_job(spec: Mapping[str, Any]) -> Findings:
    if spec.get("concurrencyPolicy") != "Forbid":
        yield "spec.concurrencyPolicy", "is not Forbid: runs that last would pile up"
    if spec.get("startingDeadlineSeconds", 0) < MIN_STARTING_DEADLINE_SECONDS:
        yield (
            "spec.startingDeadlineSeconds",
            f"is missing or below {MIN_STARTING_DEADLINE_SECONDS}: after an outage it would start "
            "a run that was missed long ago, or none in time",
        )


def _check_pod(path: str, pod: Mapping[str, Any]) -> Findings:
    for kind in ("initContainers", "containers"):
        for number, container in enumerate(pod.get(kind) or []):
            where = f"{path}.{kind}[{number}]"
            context = container.get("securityContext") or {}
            if not context.get("readOnlyRootFilesystem"):
                yield f"{where}.securityContext", "readOnlyRootFilesystem: true is missing"
            image = str(container.get("image", ""))
            tag = image.rpartition("/")[2].partition(":")[2]
            if tag in ("", "latest") and "@sha256:" not in image:
                yield f"{where}.image", f"{image!r} has no fixed tag"
            for item in container.get("env") or []:
                if _is_secret(item):
                    yield f"{where}.env", f"{item['name']} holds a value; take it from a secret"


def _is_secret(item: Mapping[str, Any]) -> bool:
    name = str(item.get("name", "")).upper()
    return bool(item.get("value")) and name.endswith(("PASSWORD", "SECRET_ACCESS_KEY", "TOKEN"))


def _check_ray_group(path: str, name: str, group: Mapping[str, Any], version: str) -> Findings:
    pod = get_pod(group)
    container = (pod.get("containers") or [{}])[0]
    where = f"{path}.template.spec.containers[0]"
    sizes = container.get("resources") or {}
    limits, requests = sizes.get("limits") or {}, sizes.get("requests") or {}
    if not limits or limits != requests:
        yield f"{where}.resources", "requests and limits differ: Ray takes the limits for its size"
    if name == "head" and (group.get("rayStartParams") or {}).get("num-cpus") != "0":
        yield f"{path}.rayStartParams", 'num-cpus: "0" is missing, so the head would take work'
    if GPU_RESOURCE in limits and not any(
        t.get("key") == GPU_RESOURCE for t in pod.get("tolerations") or []
    ):
        yield (
            f"{path}.template.spec.tolerations",
            f"asks for {GPU_RESOURCE} and does not tolerate its taint",
        )
    tag = str(container.get("image", "")).rpartition(":")[2]
    if "ray" in tag and version not in tag:
        yield f"{where}.image", f"{tag} is not of rayVersion {version}"
    for probe in ("readinessProbe", "livenessProbe"):
        if probe not in container:
            yield f"{where}.{probe}", "is missing"
    env = {item.get("name"): item.get("value") for item in container.get("env") or []}
    drain = float(env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") or 30)  # Ray's default
    if (pod.get("terminationGracePeriodSeconds") or 0) < drain + 30:
        text = f"below {drain + 30:g}: Ray drains the node for {drain:g} seconds before it ends"
        yield f"{path}.template.spec.terminationGracePeriodSeconds", text


def _check_job(path: str, job: Mapping[str, Any]) -> Findings:
    if "activeDeadlineSeconds" not in job:
        yield f"{path}.activeDeadlineSeconds", "is missing: a job that hangs would hold its nodes"
    if not job.get("shutdownAfterJobFinishes"):
        yield f"{path}.shutdownAfterJobFinishes", "is not true: a failed job would hold its nodes"
    wanted = json.loads(job.get("entrypointResources") or "{}")
    offered: set[str] = set()
    for _, _, group in iter_groups(job.get("rayClusterSpec") or {}, path):
        offered |= set(group.get("resources") or {})
    for name in sorted(set(wanted) - offered):
        yield f"{path}.entrypointResources", f"no group has the resource {name!r}: it would wait"


def get_config_text(objects: Sequence[Object]) -> str | None:
    """Return the text of config.yaml in the ConfigMap dpmpp-config."""
    for thing in objects:
        if thing.get("kind") == "ConfigMap" and thing["metadata"]["name"] == "dpmpp-config":
            return (thing.get("data") or {}).get("config.yaml")
    return None


def find_missing_references(objects: Sequence[Object]) -> Iterator[tuple[Object, str, str]]:
    """Yield (object, path, sentence) for each ConfigMap that is named and missing."""
    maps = {o["metadata"]["name"] for o in objects if o.get("kind") == "ConfigMap"}
    for thing in objects:
        for path, pod in iter_pods(thing):
            named = {v["configMap"]["name"] for v in pod.get("volumes") or [] if "configMap" in v}
            for container in pod.get("containers") or []:
                for source in container.get("envFrom") or []:
                    if "configMapRef" in source:
                        named.add(source["configMapRef"]["name"])
            for name in sorted(named - maps):
                yield thing, path, f"there is no ConfigMap {name!r} in the overlay"
