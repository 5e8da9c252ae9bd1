"""How fast `prepare` looks at images, and what a manifest of a million of them costs.

    python -m tests.bench.prepare_speed [--images 20000] [--rows 200000 1000000]

Images: copies of the demo set's, told apart by bytes behind the picture, looked at by one and by
two workers. Rows: made up, 20 images a person, a thousandth of them twice; each step in a process
of its own, whose largest resident size is told.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpmpp_core.config import ClusterConfig, DataConfig, DemoConfig, load_config
from dpmpp_core.data.files import FileListing, FileStat, listing_fingerprint
from dpmpp_core.data.layouts import scan
from dpmpp_core.data.manifest import INSPECTED_SCHEMA, Manifest, load_split
from dpmpp_core.demo import generate
from pipelines.runtime.tracking import environment
from tests.bench.timing import RESULTS

STEPS = ("make", "scan", "build", "load", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000, help="0 = only the manifest")
    parser.add_argument("--rows", type=int, nargs="*", default=[200_000, 1_000_000])
    parser.add_argument("--step", nargs=3, help="STEP ROWS FOLDER: one step, for this program")
    arguments = parser.parse_args()
    if arguments.step:
        step, rows, folder = arguments.step
        print(json.dumps(manifest_step(step, int(rows), Path(folder))))
        return
    lines = [*images_table(arguments.images)] if arguments.images else []
    for rows in arguments.rows:
        lines += manifest_table(rows)
    rows_given = " ".join(map(str, arguments.rows))
    command = f"python -m tests.bench.prepare_speed --images {arguments.images} --rows {rows_given}"
    write(command, lines)


def images_table(count: int) -> list[str]:
    """Images a second of one and of two workers: looked at, looked at again, and person masks."""
    from pipelines.inference.embed import stream_embeddings
    from pipelines.inference.workers import FindPersons
    from pipelines.runtime.resources import connect
    from pipelines.runtime.storage import Storage
    from pipelines.stages.prepare import find_data, inspect_all

    config = load_config("demo", ["saliency.provider=spectral"])
    plan, _ = connect(None, ClusterConfig(train_workers=1, data_workers=2))
    lines = ["| work | workers | images | seconds | images/s | further images/s | x one |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        sources = [
            find_data(DataConfig(), make_images(Path(folder) / f"data-{part}", size))
            for part, size in (("some", count // 4), ("all", count))
        ]
        inspect_all(sources[0], Storage(f"{folder}/warm"), 2)  # starts Ray's processes
        alone: dict[str, float] = {}

        def timed(work: str, workers: int, run: Callable[[Any], Any]) -> None:
            """Of some and of all images: what each further one takes is free of the start."""
            (few, early), (many, late) = (seconds_of(run, source) for source in sources)
            further = (many - few) / (late - early)
            alone.setdefault(work, further)
            lines.append(
                f"| {work} | {workers} | {many} | {late:.2f} | {many / late:.0f} | {further:.0f} | "
                f"{further / alone[work]:.2f} |"
            )
            print(lines[-1], flush=True)

        for workers in (1, 2):
            storage = Storage(f"{folder}/runs-{workers}")
            for work in ("prepare", "prepare, all known"):
                timed(work, workers, lambda s, w=workers, at=storage: inspect_all(s, at, w))
        for workers in (1, 2):
            share = replace(plan, embed_workers=workers)

            def find(source: Any, share: Any = share) -> None:
                paths = [entry.path for entry in source.scan.entries]
                arguments = (source.root, config, None)
                list(stream_embeddings(paths, FindPersons, arguments, share, 64, ""))

            timed("saliency", workers, find)
    return [
        *lines, "", "Further images: those between a quarter of the set and all of it.", ""
    ]  # fmt: skip


def seconds_of(run: Callable[[Any], Any], source: Any) -> tuple[int, float]:
    """Images, and what they took."""
    start = time.perf_counter()
    run(source)
    return len(source.scan.entries), time.perf_counter() - start


def make_images(root: Path, count: int) -> str:
    """A demo set with about `count` images."""
    generate(root, DemoConfig(train_identities=8, test_identities=4, cameras=3, train_images=6))
    some = [file.read_bytes() for file in sorted((root / "bounding_box_train").glob("*.jpg"))]
    for number in range(count):
        name = f"{9000 + number // 20:06}_c{number % 3 + 1}s1_{number:07}_00.jpg"
        data = some[number % len(some)] + number.to_bytes(4, "big")
        (root / "bounding_box_train" / name).write_bytes(data)
    return str(root)


def manifest_table(rows: int) -> list[str]:
    lines = [f"{rows:,} rows", "", "| step | seconds | peak RSS, MB |", "|---|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            command = [sys.executable, "-m", "tests.bench.prepare_speed", "--step"]
            done = subprocess.run(
                [*command, step, str(rows), folder], check=True, capture_output=True, text=True
            )
            for name, seconds, peak in json.loads(done.stdout.splitlines()[-1]):
                lines.append(f"| {name} | {seconds:.2f} | {peak:.0f} |")
        size = sum(file.stat().st_size for file in Path(folder, "manifest").glob("*"))
    return [*lines, "", f"On disk: {size / 2**20:.0f} MiB.", ""]


def manifest_step(step: str, rows: int, folder: Path) -> list[tuple[str, float, float]]:
    """Name, seconds of processor time, and largest resident size so far, MB, of what was done."""
    made: list[tuple[str, float, float]] = []

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        made.append((name, time.process_time() - start, peak))
        return result

    input_file, saved = folder / "inspected.parquet", folder / "manifest"
    if step == "make":
        pq.write_table(inspected(rows), input_file)
    elif step == "scan":
        files = [FileStat(path, 5000 + i, i) for i, (path, *_) in enumerate(labelled(rows))]
        listing = FileListing("root", sorted(files), [])
        timed("hash of the listing", lambda: listing_fingerprint(listing))
        timed("scan", lambda: scan("root", listing=listing))
    elif step == "build":
        table = timed("input read", lambda: pq.read_table(input_file, schema=INSPECTED_SCHEMA))
        manifest = timed("build", lambda: Manifest.build("root", "market1501", table, []))
        timed("save", lambda: manifest.save(saved))
    elif step == "load":
        timed("nothing (imports)", lambda: None)
        manifest = timed("load", lambda: Manifest.load(saved))
        timed("warnings", lambda: manifest.warnings)
    elif step == "train":
        timed("load_split train", lambda: load_split(saved, "train"))
    return made


def labelled(rows: int) -> list[tuple[str, int, int, str]]:
    """Paths, persons, cameras and splits: half to train, a tenth queries, the rest gallery."""
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    found = []
    for i in range(rows):
        split = "train" if i < rows // 2 else "query" if i % 5 == 0 else "gallery"
        pid, camid = i // 20 + 1, i % 6 + 1
        found.append((f"{folders[split]}/{pid:06}_c{camid}s1_{i:07}_00.jpg", pid, camid, split))
    return found


def inspected(rows: int) -> pa.Table:
    """Made-up rows of INSPECTED_SCHEMA in an order of their own; every thousandth a duplicate."""
    paths, pids, camids, splits = zip(*labelled(rows), strict=True)
    content = [hashlib.sha256(str(i - (i % 1000 == 1)).encode()).hexdigest() for i in range(rows)]
    empty, number = [""] * rows, np.arange(rows)
    columns = [paths, pids, camids, splits, np.zeros(rows, bool), np.full(rows, 64)]
    columns += [np.full(rows, 128), number, content, empty, empty]
    fields = zip(columns, INSPECTED_SCHEMA, strict=True)
    table = pa.table([pa.array(column, field.type) for column, field in fields], INSPECTED_SCHEMA)
    return table.take(np.random.default_rng(0).permutation(rows))


def write(command: str, lines: list[str]) -> None:
    packages = environment()["packages"]
    versions = f"ray {packages['ray']}, pyarrow {pa.__version__}, numpy {packages['numpy']}"
    head = [
        "# prepare_speed",
        "",
        f"`{command}`; {date.today().isoformat()}. Python {platform.python_version()}, {versions}; "
        f"{os.cpu_count()}-core {platform.machine()} CPU. Images: wall time, with writing the "
        "inspection record. Rows: processor time of all threads; peak: of the process until then, "
        "imports (torch, OpenCV, pyarrow) and input included.",
        "",
    ]
    text = "\n".join([*head, *lines]).rstrip() + "\n"
    (RESULTS / "prepare_speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
