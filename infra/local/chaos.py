"""Faults on the local cluster, each during a job, which must succeed all the same.

Each fault has its own training: the same job with another seed, so that nothing is reused.
Person masks need no seed, so their job has another share of the image.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from infra.local.cluster import ROOT, start_cluster
from infra.local.demo import read_log, submit_job, upload_images, wait_for_job
from infra.local.nodes import Nodes
from infra.local.services import Services

TABLE = ROOT / "tests" / "bench" / "results" / "cluster-chaos.md"
AWAY_SECONDS = 60
# Six epochs of stage 2, so that a fault falls into the training.
LONGER = ("metric.epochs=6", "cluster.checkpoint_seconds=5")
Fault = Callable[[Nodes, Services], str]


def lose_data_node(nodes: Nodes, services: Services) -> str:
    """Kill and restart a data node."""
    nodes.kill("data-0")
    nodes.start("data-0")
    return "its batches are built on another node"


def lose_train_node(nodes: Nodes, services: Services) -> str:
    """Kill and restart the train node."""
    nodes.kill("train-0")
    nodes.start("train-0")
    return "training continues from its checkpoint on the node that joined"


def train_node_leaves(nodes: Nodes, services: Services) -> str:
    """Send SIGTERM, as when the pod is deleted: Ray drains the node before it ends."""
    start = time.monotonic()
    nodes.terminate("train-0")
    took = time.monotonic() - start
    nodes.start("train-0")
    return f"after {took:.0f} s of notice; training continues from the checkpoint written then"


def restart_head(nodes: Nodes, services: Services) -> str:
    """Kill and restart the head."""
    nodes.kill("head")
    nodes.start("head")
    return "state from Redis; driver and workers waited"


def mlflow_away(nodes: Nodes, services: Services) -> str:
    """Stop MLflow for AWAY_SECONDS."""
    services.stop("mlflow", hard=True)
    time.sleep(AWAY_SECONDS)
    services.start("mlflow")
    return f"{AWAY_SECONDS} s away"


def s3_away(nodes: Nodes, services: Services) -> str:
    """Stop S3 for AWAY_SECONDS."""
    services.stop("s3", hard=True)
    time.sleep(AWAY_SECONDS)
    services.start("s3")
    return f"{AWAY_SECONDS} s away"


# Fault, job, text of its log after which the fault follows.
FAULTS: tuple[tuple[Fault, str, str], ...] = (
    (lose_train_node, "train", "metric: started"),
    (restart_head, "train", "metric: started"),
    (lose_data_node, "prepare", "saliency: started"),
    (train_node_leaves, "train", "metric: started"),
    (mlflow_away, "train", "metric: started"),
    (s3_away, "train", "metric: started"),
)


def run_chaos() -> None:
    """Run a job per fault, or those of DPMPP_FAULTS, and write the table."""
    chosen = os.environ.get("DPMPP_FAULTS", "").split(",")
    rows = []
    with start_cluster() as (nodes, services):
        os.environ.update(nodes.token)
        upload_images(services)
        for seed, (fault, job, moment) in enumerate(FAULTS, start=1):
            if chosen == [""] or fault.__name__ in chosen:
                rows.append(run_fault(fault, job, moment, seed, nodes, services))
                write_table(rows)


def run_fault(
    fault: Fault, job: str, moment: str, seed: int, nodes: Nodes, services: Services
) -> list[str]:
    """Run a job with a fault in it; return the row of the table."""
    name = fault.__name__.replace("_", " ")
    changes = LONGER if job == "train" else (f"saliency.target_ratio=0.3{seed}",)
    started = submit_job(job, f"seed={seed}", *changes)["job"]
    deadline = time.monotonic() + 400
    while moment not in read_log(started):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name}: no {moment!r}\n{read_log(started)}")
        time.sleep(1)
    time.sleep(15 if job == "train" else 2)
    how = fault(nodes, services)
    done = wait_for_job(started)
    print(f"{name}: {done['status']} in {done['seconds']:.0f} s: {how}", flush=True)
    return [name, job, f"{done['seconds']:.0f}", how, date.today().isoformat()]


def write_table(rows: list[list[str]], table: Path = TABLE) -> None:
    """Write the table; rows of faults that were not run this time are kept."""
    met = {row[0] for row in rows}
    old = table.read_text().splitlines() if table.exists() else []
    kept = [line.strip("| ").split(" | ") for line in old if line.count("|") == 6]
    rows = [row for row in kept[2:] if row[0] not in met] + rows
    lines = [
        "# Losses on the local cluster",
        "",
        "`make cluster-chaos`: one fault during each job, submitted through the Jobs API; "
        "each ended as SUCCEEDED, without help. Seconds: of the job, fault included.",
        "",
        "| fault | job | seconds | how it continued | day |",
        "|---|---|---:|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    table.write_text("\n".join(lines))
