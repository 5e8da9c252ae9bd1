"""Run every job of the overlay `local` through Ray's Jobs API, from images to a registered model.

Ends in a table: seconds, and the nodes that did the work.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3

from infra.local.cluster import ROOT, start_cluster
from infra.local.nodes import HEAD, Nodes
from infra.local.services import HOST, Services
from pipelines.deploy.jobs import build_job
from pipelines.deploy.render import render_overlay

DPMPP = str(Path(sys.executable).with_name("dpmpp"))
ADDRESS = f"http://{HEAD}:8265"
TABLE = ROOT / "tests" / "bench" / "results" / "cluster-demo.md"
JOBS = ("prepare", "train", "tune", "evaluate", "promote", "synthesize")
# Small enough for two cores; everything else is config.yaml's.
JOB_OPTIONS = {"tune": ["--trials", "2"], "promote": ["--gate", "demo"]}
# Ray's name of each kind of task or actor, and the pool that it must run on; None = any.
POOL_OF = {
    "MapWorker": "data",
    "RayTrainWorker": "train",
    "ImplicitFunc": "data",  # a trial's own process
    "JobSupervisor": "driver",
    "_describe_problem task": None,  # asks a node of each pool for data and storage
}


def run_demo() -> None:
    """Run every job and write the table."""
    began = time.monotonic()
    with start_cluster() as (nodes, services):
        os.environ.update(nodes.token)
        upload_images(services)
        rows = [
            [f"start of {len(nodes.nodes)} nodes and images", f"{time.monotonic() - began:.0f}", ""]
        ]
        for job in JOBS:
            done = run_job(nodes, job)
            rows.append([done["entrypoint"], f"{done['seconds']:.0f}", *locate_work(done, nodes)])
        models = list_registered(services)
    write_table(rows, models, time.monotonic() - began)


def upload_images(services: Services) -> None:
    """Generate the images and upload them to DPMPP_DATA of site.env."""
    folder = services.folder / "images"
    config = ROOT / "infra" / "k8s" / "overlays" / "local" / "config.yaml"
    command = [DPMPP, "data", "demo", str(folder), "--config", str(config)]
    subprocess.run(command, check=True, capture_output=True)
    client = s3_client(services)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), "dpmpp", f"data/{path.relative_to(folder).as_posix()}")


def s3_client(services: Services) -> Any:
    """Return a boto3 client of the local S3."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}:8333",
        aws_access_key_id=services.s3["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=services.s3["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


def submit_job(job: str, *overrides: str) -> dict[str, Any]:
    """`dpmpp deploy submit` without waiting."""
    return _run_deploy("submit", "--overlay", "local", job, *overrides)


def wait_for_job(name: str, longest: float = 900) -> dict[str, Any]:
    """Return the job's last status; raise RuntimeError, with its log, if it did not succeed."""
    deadline = time.monotonic() + longest
    while (status := _run_deploy("status", name)["jobs"][0])["status"] in ("PENDING", "RUNNING"):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{name} is still {status['status']} after {longest:g} s\n{read_log(name)}"
            )
        time.sleep(2)
    if status["status"] != "SUCCEEDED":
        raise RuntimeError(f"{name} {status['status']}: {status['message']}\n{read_log(name)}")
    return status | {"seconds": status["ended"] - status["started"]}


def run_job(nodes: Nodes, job: str) -> dict[str, Any]:
    """Run the submitter of a job to its end; its result is the last line that the job printed."""
    print(f"{job}: submitted", flush=True)
    rayjob = build_job(
        render_overlay(ROOT / "infra" / "k8s", "local"), job, JOB_OPTIONS.get(job, [])
    )
    status = wait_for_job(nodes.submit(rayjob))
    result = json.loads(read_log(status["job"]).strip().splitlines()[-1])
    print(f"{job}: {status['status']} in {status['seconds']:.0f} s", flush=True)
    return status | {"result": result}


def read_log(name: str) -> str:
    """Return what a job printed."""
    command = [DPMPP, "deploy", "logs", name, "--address", ADDRESS]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def _run_deploy(*arguments: str) -> dict[str, Any]:
    what, *rest = arguments
    command = [DPMPP, "deploy", what, "--address", ADDRESS, "--json", *rest]
    for _ in range(30):  # the head may be restarting
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.stdout.strip():
            return json.loads(done.stdout.strip().splitlines()[-1])
        time.sleep(2)
    raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def locate_work(done: dict[str, Any], nodes: Nodes) -> list[str]:
    """Return what ran by pool, as `3 MapWorker`; raise RuntimeError for a wrong pool."""
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_actors, list_nodes, list_tasks

    pools = {node.address: node.pool for node in nodes.nodes.values()}
    where = {node.node_id: pools[node.node_ip] for node in list_nodes(address=ADDRESS)}
    ray_id = JobSubmissionClient(ADDRESS).get_job_info(done["job"]).job_id
    limit, mine = 10_000, [("job_id", "=", ray_id)]
    work: Counter[tuple[str, str]] = Counter()
    # A program that does not use Ray, such as a promotion, has no id there.
    for actor in list_actors(address=ADDRESS, filters=mine, limit=limit) if ray_id else []:
        if actor.node_id in where:
            work[where[actor.node_id], strip_arguments(actor.class_name)] += 1
    for task in list_tasks(address=ADDRESS, filters=mine, limit=limit) if ray_id else []:
        if task.type == "NORMAL_TASK" and task.node_id in where:
            work[where[task.node_id], f"{strip_arguments(task.name)} task"] += 1
    work[where[done["node"]], "driver"] += 1
    for (pool, name), _ in work.items():
        right = POOL_OF.get(name, "data" if name.endswith(" task") else pool)
        if right not in (pool, None):
            raise RuntimeError(f"{done['job']}: {name} ran on a node of the pool {pool}")
    shown = [
        f"**{pool}** " + ", ".join(f"{n} {w}" for (p, w), n in sorted(work.items()) if p == pool)
        for pool in sorted({pool for pool, _ in work})
    ]
    return ["; ".join(shown)]


def strip_arguments(name: str) -> str:
    """Return a class or function without its arguments: `MapWorker(MapBatches(X))` -> MapWorker."""
    return name.partition("(")[0].rpartition(".")[2].strip()


def list_registered(services: Services) -> list[str]:
    """Return the models in MLflow's registry, with the aliases of their versions."""
    os.environ.update(services.mlflow_login)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"http://{HOST}:5000")
    return [f"{m.name}: {dict(m.aliases)}" for m in client.search_registered_models()]


def write_table(rows: list[list[str]], models: list[str], total: float) -> None:
    """Write the table of jobs, their seconds and nodes."""
    import mlflow
    import ray

    lines = [
        "# Every job of the manifests on a Ray of five nodes",
        "",
        "`make cluster-demo`: the overlay `local`, its nodes as processes with addresses of their "
        "own, Redis, PostgreSQL, S3 (SeaweedFS) and MLflow with logins as processes, token "
        "authentication on, each entrypoint as rendered.",
        "",
        f"{os.cpu_count()} cores, Python {platform.python_version()}, Ray {ray.__version__}, "
        f"MLflow {mlflow.__version__}; {total / 60:.1f} minutes in all.",
        "",
        "| job | seconds | what ran where |",
        "|---|---:|---|",
        *(f"| {row[0]} | {row[1]} | {row[2]} |" for row in rows),
        "",
        f"In MLflow's registry: {'; '.join(models) or 'nothing'}.",
        "",
    ]
    TABLE.write_text("\n".join(lines))
    print(f"written: {TABLE}")
