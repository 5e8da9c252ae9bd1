"""A whole demo run that keeps nothing here: images, results, checkpoints and MLflow are on S3.

    python -m tests.bench.s3_demo

Starts a real S3 server (SeaweedFS) and a real MLflow server with its artifacts there, draws the
demo set, uploads it, and runs `dpmpp run` on it. Then the registered model is loaded as a client
without keys would load it. Writes `results/s3-demo.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpmpp_core.config import load_config
from dpmpp_core.demo import generate
from tests.bench.timing import write
from tests.support.s3_server import S3Server, free_port

BIN = Path(sys.executable).parent
LOAD = """
import glob, sys, mlflow, pandas
model = mlflow.pyfunc.load_model("models:/dpmpp-demo@candidate")
pictures = [open(path, "rb").read() for path in glob.glob(sys.argv[1] + "/query/*.jpg")[:3]]
print(*model.predict(pandas.DataFrame({"image": pictures})).columns)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        s3 = S3Server(folder)
        s3.start()
        try:
            with mlflow_server(s3, folder) as uri:
                lines = run(s3, uri, folder)
        finally:
            s3.stop()
    write("s3-demo", "python -m tests.bench.s3_demo", lines)


@contextmanager
def mlflow_server(s3: S3Server, folder: Path) -> Iterator[str]:
    """The URI of a server that keeps its artifacts on S3."""
    port = free_port()
    command = [
        str(BIN / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", "s3://results/mlflow", "--host", "127.0.0.1",
        "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    keys = s3.environment | {"MLFLOW_S3_ENDPOINT_URL": s3.environment["AWS_ENDPOINT_URL"]}
    environment = os.environ | keys | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield uri
    finally:
        server.terminate()
        server.wait(timeout=20)


def run(s3: S3Server, uri: str, folder: Path) -> list[str]:
    generate(folder / "demo", load_config("demo").data.demo)
    s3.upload(folder / "demo", "*", "images", "demo")
    command = [
        str(BIN / "dpmpp"), "run", "--config", "demo", "--data", "s3://images/demo",
        "--storage", "s3://results/dpmpp", "--tracking-uri", uri, "--json",
        "cluster.checkpoint_seconds=10",
    ]  # fmt: skip
    started, checkpoints = time.monotonic(), set()
    with (folder / "log").open("w") as log, (folder / "out").open("w") as out:
        driver = subprocess.Popen(
            command, env=os.environ | s3.environment, cwd=folder, stdout=out, stderr=log
        )
        while driver.poll() is None:
            time.sleep(2)
            checkpoints |= {key for key in keys(s3) if "/checkpoints/" in key}
    seconds = time.monotonic() - started
    if driver.returncode:
        raise SystemExit((folder / "log").read_text()[-3000:])
    said = (folder / "out").read_text().splitlines()
    try:
        result = json.loads(said[-1])
    except (IndexError, ValueError):
        raise SystemExit(f"the last line of stdout is no result: {said[-3:]}") from None
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder / "demo")],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri}, cwd=folder,
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    left = sorted(path.name for path in folder.iterdir())
    occluded = result["metrics"]["occluded"]["masked"]
    return [
        f"`{' '.join(['dpmpp', *command[1:]])}`: {seconds:.0f} s, mAP {100 * occluded['mAP']:.1f} "
        f"and rank-1 {100 * occluded['rank1']:.1f} on occluded queries. While it trained "
        f"{len(checkpoints)} objects of checkpoints were seen; none is left. "
        f"`{result['model_uri']}`, loaded through the server by a process without keys, gives "
        f"{loaded.stdout.split()}. In the working folder: {', '.join(left)} (the servers' own "
        "files, the source of the upload and the logs).",
        "",
        "| on S3 | objects | MB |",
        "|---|---:|---:|",
        *table(s3),
    ]


def keys(s3: S3Server) -> dict[str, int]:
    """Keys and bytes of all objects of the bucket `results`."""
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket="results")
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}


def table(s3: S3Server) -> list[str]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for key, size in keys(s3).items():
        prefix = "/".join(key.split("/")[: 3 if key.startswith("dpmpp/stages") else 2])
        counts[prefix] += 1
        sizes[prefix] += size
    return [f"| {p} | {n} | {sizes[p] / 1e6:.1f} |" for p, n in sorted(counts.items())]


if __name__ == "__main__":
    main()
