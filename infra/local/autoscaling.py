"""Run Ray's autoscaler (v2) on the groups of the overlay `local`: nodes come and go with the work.

Ray's fake nodes are processes here. They run in namespaces of their own, as Ray begins by ending
every Ray process that it sees. Run by `cluster.sh autoscaling`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from infra.local.cluster import ROOT
from infra.local.demo import DPMPP
from pipelines.deploy.quantities import parse_quantity
from pipelines.deploy.render import get_object, render_overlay

CONFIG = ROOT / "infra" / "k8s" / "overlays" / "local" / "config.yaml"
TABLE = ROOT / "tests" / "bench" / "results" / "autoscaling.md"
INSIDE = "DPMPP_AUTOSCALING"
IDLE_MINUTES = 0.25


def run_autoscaling() -> None:
    """Run a training on the autoscaler, in namespaces of its own, and write the table."""
    import ray  # which reads its authentication from the environment, that others set before

    if INSIDE not in os.environ:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            (Path(folder) / "over").mkdir()
            (Path(folder) / "over" / "example.yaml").write_text(
                yaml.safe_dump(_provider_defaults())
            )
            provider = Path(ray.__file__).parent / "autoscaler/_private/fake_multi_node"
            inner = (
                f'mount -t overlay overlay -o lowerdir="$0/over:{provider}" {provider} && '
                'mount --bind "$0" /tmp && ip link set lo up && exec "$@"'
            )
            command = [
                "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
                "bash", "-c", inner, folder, sys.executable, "-m", "infra.local", "autoscaling",
            ]  # fmt: skip
            subprocess.run(command, env=os.environ | {INSIDE: "1"}, check=True)
        return
    _run_on_autoscaler()


def _run_on_autoscaler() -> None:
    from ray.cluster_utils import AutoscalingCluster

    types: dict[str, Any] = {}
    spec = get_object(render_overlay(ROOT / "infra" / "k8s", "local"), "RayCluster")["spec"]
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        types[group["groupName"]] = {
            "resources": {
                "CPU": int(parse_quantity(limits["cpu"])),
                "object_store_memory": 300 * 2**20,
            },
            "labels": group["labels"],
            "node_config": {},
            "min_workers": group["minReplicas"],
            "max_workers": group["maxReplicas"],
        }
    del types["driver"]  # the program runs on the head's machine here
    cluster = AutoscalingCluster({"CPU": 0}, types, autoscaler_v2=True)
    cluster.start()
    try:
        seen = _watch_training(Path("/tmp"))
    finally:
        cluster.shutdown()
    _write_table(seen)


def _provider_defaults() -> dict[str, Any]:
    """Return what Ray reads from a file of its fake provider, which its wheel leaves out."""
    lists = (
        "initialization_commands", "setup_commands", "head_setup_commands",
        "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
        "cluster_synced_files",
    )  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {"type": "fake_multinode"},
        "auth": {"ssh_user": "root"},
        "head_node_type": "ray.head.default",
        "available_node_types": {},
        "file_mounts": {},
        **{name: [] for name in lists},
    }


def _watch_training(folder: Path) -> list[tuple[float, str, Counter[str]]]:
    """Train; return (seconds, stage, nodes by pool) at every change of stage or nodes."""
    import ray

    command = [
        DPMPP, "train", "--address", "auto", "--storage", str(folder / "runs"), "--config",
        str(CONFIG), "metric.epochs=8",
    ]  # fmt: skip
    began, doing, seen = time.monotonic(), ["start"], list[tuple[float, str, Counter[str]]]()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            if ": started (" in line:
                doing[0] = line.partition(":")[0]

    threading.Thread(target=read, daemon=True).start()
    ray.init(address="auto", log_to_driver=False)
    idle_since: float | None = None
    while True:
        if process.poll() is not None and idle_since is None:
            doing[0], idle_since = "ended", time.monotonic()
        pools = Counter(
            str((node.get("Labels") or {}).get("pool"))
            for node in ray.nodes()
            if node["Alive"] and "pool" in (node.get("Labels") or {})
        )
        if not seen or seen[-1][1:] != (doing[0], pools):
            seen.append((time.monotonic() - began, doing[0], pools))
            print(f"{seen[-1][0]:.0f} s {doing[0]}: {dict(pools)}", flush=True)
        gone = idle_since is not None and not pools
        if gone or (idle_since is not None and time.monotonic() - idle_since > 120):
            break
        time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(f"the training ended with {process.returncode}")
    return seen


def _write_table(seen: list[tuple[float, str, Counter[str]]]) -> None:
    lines = [
        "# Nodes that come and go with the work",
        "",
        "`cluster.sh autoscaling`: Ray's autoscaler (v2, fake nodes) with the worker groups of the "
        f"overlay `local` and an idle time of {60 * IDLE_MINUTES:g} s, one training from images.",
        "",
        "| seconds | stage | data nodes | train nodes |",
        "|---:|---|---:|---:|",
        *(f"| {at:.0f} | {what} | {p['data']} | {p['train']} |" for at, what, p in seen),
        "",
    ]
    TABLE.write_text("\n".join(lines))
    print(json.dumps({"written": str(TABLE)}))
