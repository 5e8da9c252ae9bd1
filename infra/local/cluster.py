"""The whole local cluster: services and nodes of the overlay `local`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.nodes import Nodes, create_bridge
from infra.local.services import Services
from pipelines.deploy.render import render_overlay

ROOT = Path(__file__).parents[2]
NODES_PER_GROUP = {"driver": 1, "data": 2, "train": 1}


@contextmanager
def start_cluster() -> Iterator[tuple[Nodes, Services]]:
    """Run services and nodes of the overlay `local` until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="dpmpp-cluster-", dir="/var/tmp"))
    folder.chmod(0o755)  # PostgreSQL is another user
    services = Services(folder)
    nodes = Nodes(render_overlay(ROOT / "infra" / "k8s", "local"), services, NODES_PER_GROUP)
    try:
        create_bridge()
        for name in ("redis", "postgres", "s3", "mlflow"):
            services.start(name)
        nodes.start_all()
        yield nodes, services
    finally:
        nodes.close()
        services.close()
        if not os.environ.get("DPMPP_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)
