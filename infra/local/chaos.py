"""Losses on the local cluster, each under way in a job, which must end right all the same.

Each fault has its training: the same job with another seed, so that nothing is reused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from infra.local import demo
from infra.local.nodes import Nodes
from infra.local.services import Services

TABLE = demo.ROOT / "tests" / "bench" / "results" / "cluster-chaos.md"
AWAY = 60  # seconds
# Long enough that a fault falls into the work: six epochs of stage 2.
LONGER = ("metric.epochs=6", "cluster.checkpoint_seconds=5")
Fault = Callable[[Nodes, Services], str]


def lose_data_node(nodes: Nodes, services: Services) -> str:
    nodes.lose("data-0")
    nodes.start("data-0")
    return "its batches are made on another node"


def lose_train_node(nodes: Nodes, services: Services) -> str:
    nodes.lose("train-0")
    nodes.start("train-0")
    return "training goes on from its checkpoint on the node that joined"


def train_node_leaves(nodes: Nodes, services: Services) -> str:
    """SIGTERM, as when the pod is deleted: Ray drains the node before it ends."""
    begun = time.monotonic()
    nodes.terminate("train-0")
    took = time.monotonic() - begun
    nodes.start("train-0")
    return f"after {took:.0f} s of notice; training goes on from the checkpoint made at it"


def restart_head(nodes: Nodes, services: Services) -> str:
    nodes.lose("head")
    nodes.start("head")
    return "state from Redis; driver and workers waited"


def mlflow_away(nodes: Nodes, services: Services) -> str:
    services.stop("mlflow", hard=True)
    time.sleep(AWAY)
    services.start("mlflow")
    return f"{AWAY} s away"


def s3_away(nodes: Nodes, services: Services) -> str:
    services.stop("s3", hard=True)
    time.sleep(AWAY)
    services.start("s3")
    return f"{AWAY} s away"


# Fault, job, what its log must say before the fault.
FAULTS: tuple[tuple[Fault, str, str], ...] = (
    (lose_train_node, "train", "metric: started"),
    (restart_head, "train", "metric: started"),
    (lose_data_node, "prepare", "saliency: started"),
    (train_node_leaves, "train", "metric: started"),
    (mlflow_away, "train", "metric: started"),
    (s3_away, "train", "metric: started"),
)


def run_chaos() -> None:
    from infra.local.__main__ import cluster

    chosen = os.environ.get("DPMPP_FAULTS", "").split(",")
    rows = []
    with cluster() as (nodes, services):
        os.environ.update(nodes.token)
        demo.upload_images(services)
        for seed, (fault, job, moment) in enumerate(FAULTS, start=1):
            if chosen == [""] or fault.__name__ in chosen:
                rows.append(run_fault(fault, job, moment, seed, nodes, services))
                write_table(rows)


def run_fault(
    fault: Fault, job: str, moment: str, seed: int, nodes: Nodes, services: Services
) -> list[str]:
    name = fault.__name__.replace("_", " ")
    longer = LONGER if job == "train" else ("data.demo.seed=0",)
    started = demo.submit_job(job, f"seed={seed}", *longer)["job"]
    deadline = time.monotonic() + 400
    while moment not in demo.read_log(started):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name}: no {moment!r}\n{demo.read_log(started)}")
        time.sleep(1)
    time.sleep(15 if job == "train" else 2)
    how = fault(nodes, services)
    done = demo.wait_for_job(started)
    print(f"{name}: {done['status']} in {done['seconds']:.0f} s: {how}", flush=True)
    return [name, job, f"{done['seconds']:.0f}", how]


def write_table(rows: list[list[str]], table: Path = TABLE) -> None:
    """The table, with what it has of faults that were not met this time (DPMPP_FAULTS)."""
    met = {row[0] for row in rows}
    old = table.read_text().splitlines() if table.exists() else []
    kept = [line.strip("| ").split(" | ") for line in old if line.count("|") == 5]
    rows = [row for row in kept[2:] if row[0] not in met] + rows
    lines = [
        "# Losses on the local cluster",
        "",
        "`make cluster-chaos`: one fault under way in each job, submitted through the Jobs API; "
        "each ended as SUCCEEDED, without anybody's help. Seconds: of the job, fault included.",
        "",
        "| fault | job | seconds | how it went on |",
        "|---|---|---:|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    table.write_text("\n".join(lines))
