"""Pods of the rendered RayCluster as Ray nodes of this machine.

Each has an address of its own on a bridge (network namespace), a /tmp and names of its own (mount
namespace), and the start parameters, labels, resources and environment of its group.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.services import HOST, Services, accepts_connections, end_session, wait_for
from pipelines.deploy.policy import get_config_text
from pipelines.deploy.quantities import parse_quantity
from pipelines.deploy.render import Object, get_object

BRIDGE = "dpmpp0"
HEAD = "10.77.0.2"
NAMES = ("dpmpp-redis", "dpmpp-postgres", "dpmpp-s3", "mlflow")
BIN = Path(sys.executable).parent
OBJECT_STORE_BYTES = 400 * 2**20  # per node
# Inside of the namespaces: private /tmp and /etc/hosts, then what the pod would start.
ENTER_NODE = 'mount --bind "$0/tmp" /tmp && mount --bind "$0/hosts" /etc/hosts && exec "$@"'


@dataclass
class Node:
    """A node: its start command, and its process while it runs."""

    name: str
    address: str
    pool: str
    command: list[str]
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)


class Nodes:
    """The nodes of an overlay's cluster.

    Args:
        objects: the rendered overlay.
        services: where its stores are.
        counts: nodes of each worker group.
    """

    def __init__(self, objects: list[Object], services: Services, counts: dict[str, int]) -> None:
        self._services, self._objects = services, objects
        self._spec = get_object(objects, "RayCluster")["spec"]
        self._site = get_object(objects, "ConfigMap", "dpmpp-site")["data"]
        self._folder = services.folder / "nodes"
        self.nodes: dict[str, Node] = {}
        head = self._spec["headGroupSpec"]
        self._add("head", HEAD, head, ["--head", "--dashboard-host=0.0.0.0"])
        number = 3
        for group in self._spec["workerGroupSpecs"]:
            for index in range(counts[group["groupName"]]):
                name = f"{group['groupName']}-{index}"
                self._add(name, f"10.77.0.{number}", group, [f"--address={HEAD}:6379"])
                number += 1

    def _add(self, name: str, address: str, group: dict[str, Any], how: list[str]) -> None:
        container = group["template"]["spec"]["containers"][0]
        labels = group.get("labels") or {}
        resources = dict(group.get("resources") or {})
        params = dict(group.get("rayStartParams") or {})
        size = parse_quantity(container["resources"]["limits"]["cpu"])
        cpus = resources.pop("CPU", params.pop("num-cpus", f"{size:g}"))
        params.pop("dashboard-host", None)
        command = [
            str(BIN / "ray"), "start", "--block", *how, f"--node-ip-address={address}",
            f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
            "--labels", ",".join(f"{k}={v}" for k, v in labels.items()),
            *(f"--{key}={value}" for key, value in params.items()),
        ]  # fmt: skip
        if resources:
            numbers = {key: float(value) for key, value in resources.items()}
            command += ["--resources", json.dumps(numbers)]
        self.nodes[name] = Node(name, address, labels["pool"], command, self._env(container))

    def _env(self, container: dict[str, Any]) -> dict[str, str]:
        """Return the pod's environment, its secrets, and the variables that the operator adds."""
        env = {e["name"]: e["value"] for e in container.get("env") or [] if "value" in e}
        env.pop("HOME", None)
        known = {"dpmpp-s3": self._services.s3, "dpmpp-mlflow-login": self._services.mlflow_login}
        for source in container.get("envFrom") or []:
            env |= self._site if "configMapRef" in source else known[source["secretRef"]["name"]]
        if "DPMPP_CONFIG" in env:
            env["DPMPP_CONFIG"] = str(self._services.folder / "config.yaml")
        return env | self.token | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}

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
        """Start a node with an empty disk and wait until it responds.

        A node that ends meanwhile is restarted, as a pod would be: on a busy machine Ray's parts
        time out waiting for one another.
        """
        self._launch(name)
        node = self.nodes[name]
        port = 8265 if name == "head" else 52365

        def up() -> bool:
            for other, started in self.nodes.items():
                if started.process is not None and started.process.poll() is not None:
                    self._launch(other)
            return accepts_connections(node.address, port)

        wait_for(up, f"{name} on {node.address}:{port}", 300)

    def _launch(self, name: str) -> None:
        node = self.nodes[name]
        create_network(name, node.address)
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        lines = ["127.0.0.1 localhost", *(f"{HOST} {service}" for service in NAMES)]
        lines += [f"{node.address} {name}"]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        env, extra = os.environ | node.env, list[str]()
        if name == "head":  # as the operator turns gcsFaultToleranceOptions into these
            redis = self._spec["gcsFaultToleranceOptions"]["redisAddress"]
            env |= {
                "RAY_REDIS_ADDRESS": redis.removeprefix("redis://"),
                "REDIS_PASSWORD": self._services.passwords["redis"],
                "RAY_external_storage_namespace": "dpmpp",
            }
            extra = [f"--redis-password={self._services.passwords['redis']}"]
        inside = ["ip", "netns", "exec", f"dpmpp-{name}", "unshare", "--mount",
                  "--pid", "--fork", "--kill-child", "--mount-proc",
                  "bash", "-c", ENTER_NODE, str(folder), *node.command, *extra]  # fmt: skip
        log = (self._services.folder / f"{name}.log").open("ab")
        node.process = subprocess.Popen(
            inside, env=env, stdout=log, stderr=log, start_new_session=True
        )

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
        for node in self.nodes.values():
            subprocess.run(["ip", "link", "del", bridge_end(node.address)], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


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
