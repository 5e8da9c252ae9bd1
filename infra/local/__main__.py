"""`cluster.sh up|demo|chaos|autoscaling`."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.nodes import HEAD, Nodes, create_bridge
from infra.local.services import Services
from pipelines.deploy.render import render_overlay

ROOT = Path(__file__).parents[2]
COUNTS = {"driver": 1, "data": 2, "train": 1}


@contextmanager
def cluster(counts: dict[str, int] = COUNTS) -> Iterator[tuple[Nodes, Services]]:
    """Services and nodes of the overlay `local`, until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="dpmpp-cluster-", dir="/var/tmp"))
    folder.chmod(0o755)  # PostgreSQL is another user
    services = Services(folder)
    nodes = Nodes(render_overlay(ROOT / "infra" / "k8s", "local"), services, counts)
    try:
        create_bridge()
        for name in ("redis", "postgres", "s3", "mlflow"):
            services.start(name)
        nodes.up()
        yield nodes, services
    finally:
        nodes.close()
        services.close()
        keep = os.environ.get("DPMPP_KEEP")
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def main(what: str) -> None:
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if what == "up":
        with cluster() as (nodes, _):
            token = " ".join(f"{key}={value}" for key, value in nodes.token.items())
            print(f"{token} dpmpp deploy status --address http://{HEAD}:8265", flush=True)
            print("Ctrl-C ends it", flush=True)
            signal.pause()
    elif what == "demo":
        from infra.local.demo import run_demo

        run_demo()
    elif what == "chaos":
        from infra.local.chaos import run_chaos

        run_chaos()
    elif what == "autoscaling":
        from infra.local.autoscaling import run_autoscaling

        run_autoscaling()
    else:
        raise SystemExit(f"{what!r}: up, demo, chaos or autoscaling")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "up")
