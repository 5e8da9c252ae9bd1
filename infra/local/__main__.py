"""`cluster.sh up|demo|chaos|autoscaling`."""

from __future__ import annotations

import os
import signal
import sys

from infra.local.autoscaling import run_autoscaling
from infra.local.chaos import run_chaos
from infra.local.cluster import start_cluster
from infra.local.demo import run_demo
from infra.local.nodes import HEAD


def run_until_interrupted() -> None:
    """Start the cluster, print how to reach it, and wait for Ctrl-C."""
    with start_cluster() as (nodes, _):
        token = " ".join(f"{key}={value}" for key, value in nodes.token.items())
        print(f"{token} dpmpp deploy status --address http://{HEAD}:8265", flush=True)
        print("Ctrl-C ends it", flush=True)
        signal.pause()


COMMANDS = {
    "up": run_until_interrupted,
    "demo": run_demo,
    "chaos": run_chaos,
    "autoscaling": run_autoscaling,
}


def main(command: str) -> None:
    """Run one of COMMANDS."""
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if command not in COMMANDS:
        raise SystemExit(f"{command!r}: up, demo, chaos or autoscaling")
    COMMANDS[command]()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "up")
