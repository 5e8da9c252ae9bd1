"""What a configuration needs of a cluster: at its largest, and at once for a job to end."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dpmpp_core.config import ClusterConfig
from pipelines.deploy.pods import iter_operator_pods
from pipelines.deploy.policy import GPU_RESOURCE
from pipelines.deploy.quantities import parse_quantity
from pipelines.deploy.render import Object
from pipelines.deploy.rules import Findings, get_pod

TRAINING_COMMANDS = ("train", "run", "tune")


def list_needed_pods(job: Object, config: ClusterConfig) -> list[tuple[str, Object]]:
    """Return (role, pod) of all pods that a RayJob needs at the same time to end.

    One of each group, more of `train` where the configuration has more workers than a pod takes;
    the submitter; the clean-up of a cluster before it, as a retry starts next to that.
    """
    spec = job["spec"].get("rayClusterSpec") or {}
    command = shlex.split(job["spec"]["entrypoint"])[1:2]
    needed = []
    for role, pod in iter_operator_pods(job):
        groups = [g for g in spec["workerGroupSpecs"] if g["groupName"] == role]
        count = max([1, *(g.get("minReplicas", 0) * g.get("numOfHosts", 1) for g in groups)])
        if command and command[0] in TRAINING_COMMANDS:
            for group in _select_groups({"workerGroupSpecs": groups}, config.train_nodes):
                workers = max(1, _workers_per_pod(config, group))
                count = max(count, math.ceil(config.train_workers / workers))
        needed += [(role, pod)] * count
    return needed


def check_capacity(config: ClusterConfig, spec: Mapping[str, Any]) -> Findings:
    """Check that a cluster, at its largest, has the resources that config.yaml requests."""
    by_pool = {
        "train_nodes": _select_groups(spec, config.train_nodes),
        "data_nodes": _select_groups(spec, config.data_nodes),
    }
    for key, groups_of_pool in by_pool.items():
        if not groups_of_pool:
            labels = " and ".join(getattr(config, key)) or "any labels"
            yield f"cluster.{key}", f"no worker group has {labels}"
    if not all(by_pool.values()):
        return
    places = sum(
        _workers_per_pod(config, group) * group.get("maxReplicas", 0)
        for group in by_pool["train_nodes"]
    )
    if places < config.train_workers:
        device, cpus = "1 GPU and " if config.gpu else "", config.train_cpus or 1
        yield (
            "cluster.train_workers",
            f"{config.train_workers} with {device}{cpus} CPUs each, but the groups grow to places "
            f"for {places}: raise maxReplicas or the pods' size",
        )
    reading = sum(
        int(_group_size(group).get("cpu", 0)) * group.get("maxReplicas", 0)
        for group in by_pool["data_nodes"]
    )
    requested = {"data_workers": config.data_workers or 0}
    if not config.gpu:
        requested["embed_workers"] = config.embed_workers or 0
    for key, count in requested.items():
        if count + 1 > reading:
            yield (
                f"cluster.{key}",
                f"{count} and one for Ray Data's own tasks, but the groups grow to {reading} CPUs",
            )


def _workers_per_pod(config: ClusterConfig, group: Mapping[str, Any]) -> int:
    size = _group_size(group)
    workers = int(size.get("cpu", 0) // (config.train_cpus or 1))
    return min(workers, int(size.get(GPU_RESOURCE, 0))) if config.gpu else workers


def _select_groups(spec: Mapping[str, Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    wanted = dict(label.split("=", 1) for label in labels).items()
    return [
        g for g in spec.get("workerGroupSpecs") or [] if wanted <= (g.get("labels") or {}).items()
    ]


def _group_size(group: Mapping[str, Any]) -> dict[str, float]:
    limits = (get_pod(group)["containers"][0].get("resources") or {}).get("limits") or {}
    sizes = {name: parse_quantity(value) for name, value in limits.items()}
    declared = group.get("resources") or {}
    return sizes | ({"cpu": parse_quantity(declared["CPU"])} if "CPU" in declared else {})
