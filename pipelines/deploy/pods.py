"""Build the pods that KubeRay's operator makes of a RayCluster or a RayJob.

The operator adds to the templates of a manifest: a second container, init containers, a submitter,
a clean-up pod, start commands and variables. Quotas, the API server and infra/local meet these
pods, not the templates. Tests compare them with pods that operator 1.7.0 made.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.deploy.quantities import parse_quantity
from pipelines.deploy.render import Object
from pipelines.deploy.rules import get_pod, iter_clusters, iter_jobs

GCS_PORT, DASHBOARD_PORT, AGENT_PORT, METRICS_PORT = "6379", "8265", "52365", "8080"
SHELL = ["/bin/bash", "-c", "--"]
SUBMITTER_SHELL = ["/bin/bash", "-ce", "--"]
OPEN_FILES = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}"
SUFFIX = "xxxxx"  # stands for the characters that the operator draws for a job's cluster
SMALL = {"cpu": "200m", "memory": "256Mi"}
AUTOSCALER_SIZE = {"cpu": "500m", "memory": "512Mi"}
GPU_SUFFIX = "gpu"  # of resource names, as the operator looks for them


@dataclass(frozen=True)
class Cluster:
    """A RayCluster: its spec, and what the operator or the API server names it."""

    name: str
    spec: Mapping[str, Any]
    namespace: str = "default"
    uid: str = "UID"
    creator: str = "RayCluster"  # or RayJob
    operator: str = "1.7.0"

    @property
    def head_address(self) -> str:
        """Host name of the head's service."""
        return f"{self.name}-head-svc.{self.namespace}.svc.cluster.local"

    @property
    def autoscaled(self) -> bool:
        """Whether the head has an autoscaler next to it."""
        return bool(self.spec.get("enableInTreeAutoscaling"))

    @property
    def autoscaler_v2(self) -> bool:
        """Whether that autoscaler is version 2, the operator's default."""
        version = (self.spec.get("autoscalerOptions") or {}).get("version", "v2")
        return self.autoscaled and version == "v2"

    @property
    def stored_in_redis(self) -> bool:
        """Whether the head's state outlives it."""
        return bool(self.spec.get("gcsFaultToleranceOptions"))


def iter_operator_pods(thing: Object) -> Iterator[tuple[str, Object]]:
    """Yield (role, pod): one pod of each kind that the operator would make of an object.

    Roles are `head`, the names of worker groups, `submitter` and `clean-up`.
    """
    metadata = thing.get("metadata") or {}
    name, namespace = str(metadata.get("name", "")), str(metadata.get("namespace", "default"))
    jobs = dict(iter_jobs(thing))
    for _, spec in iter_clusters(thing):
        creator = "RayJob" if jobs else "RayCluster"
        cluster = Cluster(f"{name}-{SUFFIX}" if jobs else name, spec, namespace, creator=creator)
        yield from iter_cluster_pods(cluster)
        for job in jobs.values():
            if job.get("submissionMode", "K8sJobMode") == "K8sJobMode":
                yield "submitter", build_submitter_pod(name, job, cluster)
        if cluster.stored_in_redis:
            yield "clean-up", build_cleanup_pod(cluster)


def iter_cluster_pods(cluster: Cluster) -> Iterator[tuple[str, Object]]:
    """Yield (role, pod) of the head and of each worker group."""
    yield "head", build_head_pod(cluster)
    for group in cluster.spec.get("workerGroupSpecs") or []:
        yield str(group.get("groupName")), build_worker_pod(cluster, group)


def build_head_pod(cluster: Cluster) -> Object:
    """Return the head's pod, with its autoscaler."""
    group = cluster.spec["headGroupSpec"]
    pod = _start_pod(cluster, group, "head", "headgroup")
    spec, ray = pod["spec"], pod["spec"]["containers"][0]
    params = {"dashboard-host": "0.0.0.0", **(group.get("rayStartParams") or {})}
    if cluster.autoscaled:
        params["no-monitor"] = "true"
        spec["serviceAccountName"] = cluster.name
        spec["containers"].append(_build_autoscaler(cluster, ray))
    if cluster.autoscaler_v2:
        ray["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "true"})
        spec["restartPolicy"] = "Never"
    if cluster.stored_in_redis:
        annotations = pod["metadata"]["annotations"]
        annotations["ray.io/external-storage-namespace"] = _storage_namespace(cluster)
        ray["env"] += _redis_env(cluster)
        for name in ("password", "username"):
            if f"redis{name.title()}" in cluster.spec["gcsFaultToleranceOptions"]:
                params[f"redis-{name}"] = f"$REDIS_{name.upper()}"
    pod["metadata"]["annotations"]["ray.io/ft-enabled"] = str(cluster.stored_in_redis).lower()
    _add_shared_memory(spec)
    if cluster.autoscaled:
        spec["volumes"].append({"name": "ray-logs", "emptyDir": {}})
        for container in spec["containers"]:
            container["volumeMounts"].append({"name": "ray-logs", "mountPath": "/tmp/ray"})
    command = f"ray start --head {_format_params(_complete_params(params, group, ray))}"
    _set_command(cluster, ray, command, "127.0.0.1")
    return pod


def build_worker_pod(cluster: Cluster, group: Mapping[str, Any]) -> Object:
    """Return a pod of a worker group; an init container waits for the head."""
    pod = _start_pod(cluster, group, "worker", str(group.get("groupName")))
    pod["metadata"]["labels"]["ray.io/worker-group-replica-index"] = "0"
    spec, ray = pod["spec"], pod["spec"]["containers"][0]
    if cluster.autoscaler_v2:
        spec["restartPolicy"] = "Never"
    timeout = "RAY_gcs_rpc_server_reconnect_timeout_s"
    if cluster.stored_in_redis and timeout not in {item.get("name") for item in ray["env"]}:
        ray["env"].append({"name": timeout, "value": "600"})
    head = [
        {"name": "FQ_RAY_IP", "value": cluster.head_address},
        {"name": "RAY_IP", "value": cluster.head_address.partition(".")[0]},
    ]
    address = f"{cluster.head_address}:{GCS_PORT}"
    wait = {
        "name": "wait-gcs-ready",
        "command": SHELL,
        "args": [f"until ray health-check --address {address}; do sleep 5; done"],
        "env": [*ray["env"], *_token_env(cluster), *head],
        "resources": {"limits": SMALL, "requests": SMALL},
        "volumeMounts": [*ray["volumeMounts"]],
        **{key: ray[key] for key in ("image", "imagePullPolicy", "securityContext") if key in ray},
    }
    spec["initContainers"] = [*(spec.get("initContainers") or []), wait]
    _add_shared_memory(spec)
    params = {"address": address, **(group.get("rayStartParams") or {})}
    command = f"ray start {_format_params(_complete_params(params, group, ray))}"
    _set_command(cluster, ray, command, cluster.head_address, head)
    return pod


def build_submitter_pod(name: str, job: Mapping[str, Any], cluster: Cluster) -> Object:
    """Return the pod that hands a RayJob's command to Ray and follows its log."""
    template = copy.deepcopy(job.get("submitterPodTemplate") or {})
    spec = template.get("spec") or {}
    head_image = get_pod(cluster.spec["headGroupSpec"])["containers"][0].get("image")
    small = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}
    default = {"name": "ray-job-submitter", "image": head_image, "resources": small}
    spec["containers"] = spec.get("containers") or [default]
    spec.setdefault("restartPolicy", "Never")
    submission = f"{name}-{SUFFIX}"
    dashboard = f"{cluster.head_address}:{DASHBOARD_PORT}"
    container = spec["containers"][0]
    container.setdefault("command", SUBMITTER_SHELL)
    container.setdefault("args", [format_submitter_script(job, f"http://{dashboard}", submission)])
    container["env"] = [
        *(container.get("env") or []),
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        {"name": "RAY_DASHBOARD_ADDRESS", "value": dashboard},
        {"name": "RAY_JOB_SUBMISSION_ID", "value": submission},
        *_token_env(cluster),
    ]
    labels = {
        "app.kubernetes.io/created-by": "kuberay-operator",
        "batch.kubernetes.io/job-name": name,
        "job-name": name,
        "ray.io/originated-from-cr-name": name,
        "ray.io/originated-from-crd": "RayJob",
        **((template.get("metadata") or {}).get("labels") or {}),
    }
    metadata = {"generateName": f"{name}-", "namespace": cluster.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def format_submitter_script(job: Mapping[str, Any], address: str, submission: str) -> str:
    """Return the shell script with which the operator's pod submits the `spec` of a RayJob."""
    health = (
        "import sys, urllib.request as u; "
        f"sys.exit(b'success' not in u.urlopen('{address}/api/gcs_healthz', timeout=10).read())"
    )
    given = f"--address {address} --no-wait --submission-id {submission}"
    if job.get("entrypointResources"):
        given += f" --entrypoint-resources {json.dumps(job['entrypointResources'])}"
    return (
        f'until python -c "{health}" >/dev/null 2>&1 ; do sleep 2 ; done ; '
        f"if ! ray job status --address {address} {submission} >/dev/null 2>&1 ; then "
        f"ray job submit {given} -- {str(job.get('entrypoint', '')).strip()} ; fi ; "
        f"ray job logs --address {address} --follow {submission}"
    )


def build_cleanup_pod(cluster: Cluster) -> Object:
    """Return the pod that removes a deleted cluster's state from Redis, without its script."""
    pod = build_head_pod(cluster)
    labels = pod["metadata"]["labels"]
    name = f"{cluster.name}-redis-cleanup"
    labels["ray.io/node-type"] = "redis-cleanup"
    labels |= {"batch.kubernetes.io/job-name": name, "job-name": name}
    pod["metadata"]["generateName"] = f"{name}-"
    ray = pod["spec"]["containers"][0]
    for probe in ("livenessProbe", "readinessProbe"):
        ray.pop(probe, None)
    ray["resources"] = {"limits": SMALL, "requests": SMALL}
    ray["command"] = SHELL
    del ray["args"]
    ray["env"] += [
        {"name": "RAY_redis_db_connect_retries", "value": "120"},
        {"name": "RAY_redis_db_connect_wait_milliseconds", "value": "500"},
    ]
    pod["spec"]["containers"] = [ray]
    pod["spec"]["restartPolicy"] = "Never"
    return pod


def _start_pod(cluster: Cluster, group: Mapping[str, Any], kind: str, name: str) -> Object:
    """Return the pod of a group's template, with the operator's labels."""
    template = copy.deepcopy(dict(group.get("template") or {}))
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    ray = spec["containers"][0]
    for key in ("env", "volumeMounts"):
        ray[key] = ray.get(key) or []
    spec["volumes"] = spec.get("volumes") or []
    ports = ray["ports"] = ray.get("ports") or []
    if "metrics" not in {port.get("name") for port in ports}:
        ports.append({"name": "metrics", "containerPort": int(METRICS_PORT)})
    given = (metadata.get("labels") or {}) | (group.get("labels") or {})
    labels = {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        "ray.io/identifier": f"{cluster.name}-{kind}",
        "ray.io/is-ray-node": "yes",
        **given,
        "ray.io/cluster": cluster.name,
        "ray.io/group": name,
        "ray.io/node-type": kind,
    }
    middle = "head" if kind == "head" else f"{name}-worker"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{cluster.name}-{middle}-",
            "namespace": cluster.namespace,
            "labels": labels,
            "annotations": dict(metadata.get("annotations") or {}),
        },
        "spec": spec,
    }


def _build_autoscaler(cluster: Cluster, ray: Mapping[str, Any]) -> dict[str, Any]:
    options = cluster.spec.get("autoscalerOptions") or {}
    command = (
        "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) "
        "--cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
    )
    container = {
        "name": "autoscaler",
        "image": options.get("image") or ray.get("image"),
        "imagePullPolicy": options.get("imagePullPolicy", "IfNotPresent"),
        "command": options.get("command") or SHELL,
        "args": options.get("args") or [command],
        "env": [
            _field("RAY_CLUSTER_NAME", "metadata.labels['ray.io/cluster']"),
            _field("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
            _field("RAY_HEAD_POD_NAME", "metadata.name"),
            {"name": "KUBERAY_CRD_VER", "value": "v1"},
            *copy.deepcopy(options.get("env") or []),
            {"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": command},
            *_token_env(cluster),
        ],
        "resources": options.get("resources")
        or {"limits": AUTOSCALER_SIZE, "requests": AUTOSCALER_SIZE},
        "volumeMounts": copy.deepcopy(options.get("volumeMounts") or []),
    }
    return container | {
        key: options[key] for key in ("envFrom", "securityContext") if key in options
    }


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _token_env(cluster: Cluster) -> list[dict[str, Any]]:
    if (cluster.spec.get("authOptions") or {}).get("mode") != "token":
        return []
    secret = {"name": cluster.name, "key": "auth_token"}
    return [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}},
    ]


def _storage_namespace(cluster: Cluster) -> str:
    options = cluster.spec["gcsFaultToleranceOptions"]
    return str(options.get("externalStorageNamespace") or cluster.uid)


def _redis_env(cluster: Cluster) -> list[dict[str, Any]]:
    options = cluster.spec["gcsFaultToleranceOptions"]
    return [
        {"name": "RAY_external_storage_namespace", "value": _storage_namespace(cluster)},
        {"name": "RAY_REDIS_ADDRESS", "value": options.get("redisAddress")},
        *(
            {"name": f"REDIS_{name.upper()}", **options[f"redis{name.title()}"]}
            for name in ("username", "password")
            if f"redis{name.title()}" in options
        ),
    ]


def _add_shared_memory(spec: dict[str, Any]) -> None:
    """Mount memory at /dev/shm, as large as the container's, for Ray's object store."""
    ray = spec["containers"][0]
    if "/dev/shm" in {mount.get("mountPath") for mount in ray["volumeMounts"]}:
        return
    sizes = ray.get("resources") or {}
    size = (sizes.get("limits") or {}).get("memory") or (sizes.get("requests") or {}).get("memory")
    memory = {"medium": "Memory"} | ({"sizeLimit": size} if size else {})
    spec["volumes"].append({"name": "shared-mem", "emptyDir": memory})
    ray["volumeMounts"].append({"name": "shared-mem", "mountPath": "/dev/shm"})


def _complete_params(
    params: dict[str, str], group: Mapping[str, Any], ray: Mapping[str, Any]
) -> dict[str, str]:
    """Return all parameters of `ray start`: those given, ports, and the pod's size."""
    limits = (ray.get("resources") or {}).get("limits") or {}
    declared = dict(group.get("resources") or {})
    sizes = {"num-cpus": declared.pop("CPU", limits.get("cpu"))}
    sizes["memory"] = declared.pop("memory", limits.get("memory"))
    gpus = [value for name, value in limits.items() if name.endswith(GPU_SUFFIX)]
    sizes["num-gpus"] = declared.pop("GPU", gpus[0] if gpus else None)
    complete = {
        "block": "true",
        "dashboard-agent-listen-port": AGENT_PORT,
        "metrics-export-port": METRICS_PORT,
        **{key: str(-int(-parse_quantity(size) // 1)) for key, size in sizes.items() if size},
        **params,
    }
    if declared:
        numbers = {name: parse_quantity(value) for name, value in sorted(declared.items())}
        whole = {name: int(n) if n == int(n) else n for name, n in numbers.items()}
        complete["resources"] = f"'{json.dumps(whole, separators=(',', ':'))}'"
    if group.get("labels"):
        complete["labels"] = ",".join(f"{k}={v}" for k, v in sorted(group["labels"].items()))
    return complete


def _format_params(params: Mapping[str, str]) -> str:
    words = []
    for key, value in sorted(params.items()):
        if value == "true" and key not in ("log-color", "include-dashboard"):
            words.append(f" --{key} ")
        elif value != "false" or key in ("log-color", "include-dashboard"):
            words.append(f" --{key}={value} ")
    return "".join(words)


def _set_command(
    cluster: Cluster,
    ray: dict[str, Any],
    command: str,
    host: str,
    head: list[dict[str, str]] | None = None,
) -> None:
    """Set what the Ray container starts, and the variables that the operator adds."""
    before = " ".join([*(ray.get("command") or []), *(ray.get("args") or [])])
    ray["command"] = SHELL
    ray["args"] = [f"{before} && " * bool(before) + f"{OPEN_FILES}; {command}"]
    added = [
        *_token_env(cluster),
        *(head or []),
        _field("RAY_CLUSTER_NAME", "metadata.labels['ray.io/cluster']"),
        _field("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
        _field("RAY_CLOUD_INSTANCE_ID", "metadata.name"),
        _field("RAY_NODE_TYPE_NAME", "metadata.labels['ray.io/group']"),
        {"name": "KUBERAY_GEN_RAY_START_CMD", "value": command},
        {"name": "RAY_PORT", "value": GCS_PORT},
        {"name": "RAY_ADDRESS", "value": f"{host}:{GCS_PORT}"},
        {"name": "RAY_USAGE_STATS_KUBERAY_IN_USE", "value": "1"},
    ]
    if head is None:
        tags = f"kuberay_version=v{cluster.operator};kuberay_crd={cluster.creator}"
        added.append({"name": "RAY_USAGE_STATS_EXTRA_TAGS", "value": tags})
    added.append({"name": "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "value": "1"})
    names = {item.get("name") for item in ray["env"]}
    ray["env"] = [*ray["env"], *(item for item in added if item["name"] not in names)]
