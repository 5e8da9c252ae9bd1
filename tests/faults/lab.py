"""A Ray of several nodes on this machine, and a training on it to which things are done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
from pyarrow import fs
from ray.cluster_utils import Cluster

from pipelines.runtime.storage import Storage

DPMPP = str(Path(sys.executable).with_name("dpmpp"))
LONGEST = 1500.0  # seconds that a training here may take
NODES = {"data": 3, "train": 2}  # CPUs of each; the head node only coordinates


class Lab:
    """Head, data node and train node, each with raylet and processes of its own.

    Args:
        cpus: of the nodes of each pool.
    """

    def __init__(self, cpus: Mapping[str, int] = NODES) -> None:
        self._cpus = cpus
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": 0}
        )
        self._nodes = {pool: self._start(pool) for pool in cpus}
        self._further: list[Any] = []

    @property
    def address(self) -> str:
        return self._cluster.address

    def _start(self, pool: str) -> Any:
        return self._cluster.add_node(num_cpus=self._cpus[pool], labels={"pool": pool})

    def node_id(self, pool: str) -> str:
        return self._nodes[pool].node_id

    def lose(self, pool: str) -> None:
        """Kill a node with all its processes."""
        self._cluster.remove_node(self._nodes[pool], allow_graceful=False)

    def join(self, pool: str) -> None:
        self._nodes[pool] = self._start(pool)

    def grow(self, pool: str) -> None:
        """Let a further node join."""
        self._further.append(self._start(pool))

    def shrink(self) -> None:
        """Kill a node that `grow` let join, with all its processes."""
        self._cluster.remove_node(self._further.pop(), allow_graceful=False)

    def count(self, title: str) -> int:
        """Ray worker processes of the nodes with that title."""
        nodes = [*self._nodes.values(), *self._further]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        workers = [p for pid in raylets for p in psutil.Process(pid).children(recursive=True)]
        return sum(title in " ".join(_title(process)) for process in workers)

    def replace(self, pool: str, after: float) -> None:
        """Let another node join, and kill the first one some seconds later."""
        old, self._nodes[pool] = self._nodes[pool], self._start(pool)
        time.sleep(after)
        self._cluster.remove_node(old, allow_graceful=False)

    def kill(self, pool: str, title: str) -> None:
        """SIGKILL a Ray worker process of a node by its title."""
        self.worker(pool, title).kill()

    def worker(self, pool: str, title: str) -> psutil.Process:
        """A Ray worker process of a node by its title, as soon as there is one."""
        raylet = self._nodes[pool].all_processes["raylet"][0].process.pid
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            for process in psutil.Process(raylet).children(recursive=True):
                if process.is_running() and title in " ".join(_title(process)):
                    return process
            time.sleep(0.2)
        raise AssertionError(f"no process {title} on the {pool} node within {LONGEST} s")

    def close(self) -> None:
        self._cluster.shutdown()


def _title(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Training:
    """`dpmpp train` on a lab.

    Args:
        log: file for what the program prints.
    """

    def __init__(
        self, lab: Lab, data: str, storage: str, log: Path, overrides: list[str], **env: str
    ) -> None:
        self.storage = Storage(storage)
        self._command = [
            DPMPP, "train", "--data", data, "--storage", storage, "--address", lab.address,
            "--tracking-uri", f"sqlite:///{log.parent}/mlflow.db", "--json", *overrides,
        ]  # fmt: skip
        self._env = os.environ | env
        self._log, self._out = log, log.with_suffix(".json")
        self.process: subprocess.Popen[bytes]
        self.began = time.monotonic()

    def start(self) -> Training:
        with self._log.open("ab") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                self._command, stdout=out, stderr=log, env=self._env, cwd=self._log.parent
            )
        return self

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def checkpoints(self) -> list[Path]:
        """Markers of the checkpoints of stage 2, by step; nothing while the storage is away."""
        everything = fs.FileSelector(self.storage.path("training"), True, recursive=True)
        try:
            found = self.storage.filesystem.get_file_info(everything)
        except OSError:
            return []
        paths = [Path(info.path) for info in found]
        return sorted(path for path in paths if path.match("metric-*/checkpoints/step-*.json"))

    def step(self) -> int:
        found = self.checkpoints()
        return int(found[-1].stem[5:]) if found else 0

    def wait_for(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LONGEST
        while not done():
            if self.process.poll() is not None:
                raise AssertionError(f"ended before {what}:\n{self.log()[-3000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what} within {LONGEST} s:\n{self.log()[-3000:]}")
            time.sleep(0.05)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.step() >= step, f"a checkpoint of step {step}")

    def kill_driver(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def result(self) -> dict[str, Any]:
        """The program's result; it must have ended well."""
        assert self.process.wait(timeout=LONGEST) == 0, self.log()[-3000:]
        lines = self._out.read_text().splitlines()
        return json.loads(lines[-1])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def copy_before_stage_2(source: Path, target: Path) -> None:
    """The stages that a training starts from."""
    names = shutil.ignore_patterns("metric-*", ".*")
    shutil.copytree(source / "stages", target / "stages", ignore=names)
