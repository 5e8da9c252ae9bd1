"""Pods of the rendered RayCluster, as KubeRay's operator makes them, as Ray nodes of this machine.

Each has an address of its own on a bridge (network namespace), a /tmp and names of its own (mount
namespace), and the command, environment and probe of its pod. The autoscaler's container is left
out, as it talks to Kubernetes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.services import HOST, Services, accepts_connections, end_session, wait_for
from pipelines.deploy.pods import Cluster, build_submitter_pod, iter_cluster_pods
from pipelines.deploy.policy import get_config_text
from pipelines.deploy.render import Object, get_object, get_overlay_namespace

BRIDGE = "dpmpp0"
HEAD = "10.77.0.2"
SUBMITTER = "10.77.0.100"
NAMES = ("dpmpp-redis", "dpmpp-postgres", "dpmpp-s3", "mlflow")
BIN = Path(sys.executable).parent
# What a container's limits and image do in a cluster; the operator sets none of these.
LOCAL_ENV = {
    "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
    "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(400 * 2**20),  # per node
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Inside of the namespaces: private /tmp, where the image starts, /etc/hosts, and no name server, as
# gRPC would wait for one that is out of reach; then what the pod would start. The code must lie
# outside of /tmp.
ENTER_NODE = (
    'mount --bind "$0/tmp" /tmp && mount --bind "$0/hosts" /etc/hosts && '
    'mount --bind /dev/null /etc/resolv.conf && cd /tmp && exec "$@"'
)


@dataclass
class Node:
    """A node: its pod, and its process while it runs."""

    name: str
    address: str
    pool: str
    pod: Object
    launches: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def container(self) -> dict[str, Any]:
        """The container of Ray."""
        return self.pod["spec"]["containers"][0]


class Nodes:
    """The nodes of an overlay's cluster.

    Args:
        objects: the rendered overlay.
        services: where its stores are.
        counts: nodes of each worker group.
    """

    def __init__(self, objects: list[Object], services: Services, counts: dict[str, int]) -> None:
        self._services, self._objects = services, objects
        self._site = get_object(objects, "ConfigMap", "dpmpp-site")["data"]
        self._folder = services.folder / "nodes"
        spec = get_object(objects, "RayCluster")["spec"]
        namespace = get_overlay_namespace(objects, None)
        self.cluster = Cluster("dpmpp", spec, namespace, uid=str(uuid.uuid4()))
        self.nodes: dict[str, Node] = {}
        for role, pod in iter_cluster_pods(self.cluster):
            for index in range(1 if role == "head" else counts[role]):
                name = "head" if role == "head" else f"{role}-{index}"
                address = f"10.77.0.{2 + len(self.nodes)}"  # the head comes first: HEAD
                self.nodes[name] = Node(name, address, pod["metadata"]["labels"]["pool"], pod)

    def environment(self, pod: Object, container: dict[str, Any], name: str) -> dict[str, str]:
        """Return the variables of a container, with secrets and fields of its pod put in."""
        known = {"dpmpp-s3": self._services.s3, "dpmpp-mlflow-login": self._services.mlflow_login}
        passwords = self._services.passwords
        known["dpmpp-redis"] = {"password": passwords["redis"]}
        known[self.cluster.name] = {"auth_token": passwords["ray"]}
        env: dict[str, str] = {}
        for source in container.get("envFrom") or []:
            env |= self._site if "configMapRef" in source else known[source["secretRef"]["name"]]
        for item in container.get("env") or []:
            source = item.get("valueFrom") or {}
            if "secretKeyRef" in source:
                env[item["name"]] = known[source["secretKeyRef"]["name"]][
                    source["secretKeyRef"]["key"]
                ]
            elif "fieldRef" in source:
                env[item["name"]] = _read_field(source["fieldRef"]["fieldPath"], pod, name)
            else:
                env[item["name"]] = item["value"]
        if "DPMPP_CONFIG" in env:
            env["DPMPP_CONFIG"] = str(self._services.folder / "config.yaml")
        return env

    @property
    def token(self) -> dict[str, str]:
        """The variables that authOptions sets in every pod."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._services.passwords["ray"]}

    def start_all(self) -> None:
        """Start every node and wait until each responds."""
        (self._services.folder / "config.yaml").write_text(get_config_text(self._objects) or "")
        for name in self.nodes:  # the head comes first
            self.start(name)

    def start(self, name: str) -> None:
        """Start a node with an empty disk and wait until its startup probe succeeds.

        A node that ends meanwhile is started again, as the operator creates another pod: on a busy
        machine Ray's parts time out waiting for one another.
        """
        self._launch(name)
        node = self.nodes[name]
        probe = node.container["startupProbe"]["httpGet"]

        def up() -> bool:
            for other, started in self.nodes.items():
                if started.process is not None and started.process.poll() is not None:
                    self._launch(other)
            ready = _answers(f"http://{node.address}:{probe['port']}{probe['path']}")
            return ready and (name != "head" or accepts_connections(HEAD, 8265))

        wait_for(up, f"{name} on {node.address}:{probe['port']}", 300)

    def _launch(self, name: str) -> None:
        node = self.nodes[name]
        node.launches += 1
        waits = [c["args"][0] for c in node.pod["spec"].get("initContainers") or []]
        command = [*node.container["command"], *node.container["args"]]
        if waits:  # containers of a pod that come before it
            script = " && ".join(
                [*(f"{{ {wait}; }}" for wait in waits), f"exec {shlex.join(command)}"]
            )
            command = ["/bin/bash", "-c", script]
        env = self.environment(node.pod, node.container, f"dpmpp-{name}-{node.launches}")
        node.process = self._enter(name, node.address, command, env)

    def _enter(
        self, name: str, address: str, command: list[str], env: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a command as a pod of its own: its address, /tmp, names and processes."""
        create_network(name, address)
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        head = self.cluster.head_address
        lines = ["127.0.0.1 localhost", *(f"{HOST} {service}" for service in NAMES)]
        lines += [f"{address} {name}", f"{HEAD} {head} {head.partition('.')[0]}"]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        inside = ["ip", "netns", "exec", f"dpmpp-{name}", "unshare", "--mount",
                  "--pid", "--fork", "--kill-child", "--mount-proc",
                  "bash", "-c", ENTER_NODE, str(folder), *command]  # fmt: skip
        log = (self._services.folder / f"{name}.log").open("ab")
        return subprocess.Popen(
            inside, env=os.environ | env | LOCAL_ENV, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def submit(self, job: Object) -> str:
        """Run the submitter's pod of a RayJob to its end; return the submission's name."""
        pod = build_submitter_pod(job["metadata"]["name"], job["spec"], self.cluster)
        container = pod["spec"]["containers"][0]
        env = self.environment(pod, container, "submitter")
        command = [*container["command"], *container["args"]]
        self._enter("submitter", SUBMITTER, command, env).wait()
        return env["RAY_JOB_SUBMISSION_ID"]

    def terminate(self, name: str) -> None:
        """Send SIGTERM to the node's first process, as the kubelet does, and wait for its end."""
        process = self.nodes[name].process
        assert process is not None
        children = ["pgrep", "--parent", str(process.pid)]
        listed = subprocess.run(children, capture_output=True, text=True, check=True)
        os.kill(int(listed.stdout.split()[0]), signal.SIGTERM)
        process.wait(timeout=120)
        self.kill(name)

    def kill(self, name: str) -> None:
        """Kill a node with all its processes."""
        node = self.nodes[name]
        if node.process is not None:
            end_session(node.process, signal.SIGKILL)
            node.process = None

    def close(self) -> None:
        """Kill all nodes and remove the network."""
        for name in reversed(self.nodes):
            self.kill(name)
            subprocess.run(
                ["ip", "netns", "del", f"dpmpp-{name}"], capture_output=True, check=False
            )
        subprocess.run(["ip", "netns", "del", "dpmpp-submitter"], capture_output=True, check=False)
        for address in (SUBMITTER, *(node.address for node in self.nodes.values())):
            subprocess.run(["ip", "link", "del", bridge_end(address)], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


def _read_field(path: str, pod: Object, name: str) -> str:
    """Return a field of a pod, as the downward API does."""
    if path == "metadata.name":
        return name
    if path == "metadata.namespace":
        return str(pod["metadata"]["namespace"])
    return str(pod["metadata"]["labels"][path.partition("'")[2].rstrip("']")])


def _answers(url: str) -> bool:
    """Return whether a probe succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return 200 <= response.status < 400
    except OSError:
        return False


def create_bridge() -> None:
    """Create the network of services and nodes."""
    if subprocess.run(["ip", "link", "show", BRIDGE], capture_output=True).returncode:
        _run_ip("link", "add", BRIDGE, "type", "bridge")
        _run_ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
        _run_ip("link", "set", BRIDGE, "up")


def create_network(name: str, address: str) -> None:
    """Create a network namespace with an address on the bridge."""
    space, end = f"dpmpp-{name}", bridge_end(address)
    if Path(f"/run/netns/{space}").exists():
        return
    subprocess.run(["ip", "link", "del", end], capture_output=True)  # of an earlier one
    _run_ip("netns", "add", space)
    _run_ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
    _run_ip("link", "set", end, "master", BRIDGE, "up")
    _run_ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
    _run_ip("-n", space, "link", "set", "eth0", "up")
    _run_ip("-n", space, "link", "set", "lo", "up")
    _run_ip("-n", space, "route", "add", "default", "via", HOST)


def bridge_end(address: str) -> str:
    """Return the name of a node's interface on the bridge."""
    return f"dp{address.rpartition('.')[2]}"


def _run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
