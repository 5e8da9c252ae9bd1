"""One Ray of several nodes, the training that nothing happens to, and the table of faults."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

from pipelines.runtime.tracking import environment
from tests.faults.lab import Lab, Training
from tests.support.configs import SMALL

OVERRIDES = [
    *SMALL, "metric.epochs=25", "saliency.epochs=2", "cluster.data_workers=1",
    "cluster.train_nodes=[pool=train]", "cluster.data_nodes=[pool=data]",
    "cluster.checkpoint_seconds=0.5", "cluster.max_failures=30",
]  # fmt: skip
HEAD = ("| fault | what happened | at step | s lost | weights equal |", "|---|---|---:|---:|---|")


@dataclass(frozen=True)
class Unbroken:
    """The training that nothing happens to: its results, weights and seconds of the program."""

    storage: Path
    sha256: str
    seconds: float


@dataclass
class Table:
    """Rows of the report on faults."""

    rows: list[str]

    def add(self, fault: str, happened: str, step: int, lost: float, equal: bool) -> None:
        answer, seconds = "yes" if equal else "no", "" if math.isnan(lost) else f"{lost:.1f}"
        self.rows.append(f"| {fault} | {happened} | {step} | {seconds} | {answer} |")


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Iterator[Table]:
    made = Table([])
    yield made
    path = pytestconfig.getoption("--fault-table")
    if path and made.rows:
        Path(path).write_text("\n".join(["# Faults", "", _machine(), "", *HEAD, *made.rows, ""]))


def _machine() -> str:
    found = environment()
    return (
        f"`make test-slow`; {date.today().isoformat()}. Python {platform.python_version()}, ray "
        f"{found['packages']['ray']}, torch {found['packages']['torch']}; {found['cpus']}-core "
        f"{platform.machine()} CPU; nodes of one machine. Seconds lost: beyond the unbroken "
        "training's, restarts of Ray's workers and of the program included. With two workers sums "
        "are taken in another order, so that weights are equal within float error only."
    )


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


@pytest.fixture(scope="session")
def unbroken(
    lab: Lab,
    small_demo: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Unbroken:
    """All stages once; for the table stage 2 again, alone, for its seconds."""
    folder = tmp_path_factory.mktemp("unbroken")
    storage = folder / "runs"
    training = Training(lab, str(small_demo), str(storage), folder / "log", OVERRIDES)
    sha256 = training.start().result()["weights_sha256"]
    seconds = float("nan")
    if pytestconfig.getoption("--fault-table"):
        (metric,) = (storage / "stages").glob("metric-*")
        metric.rename(folder / "metric")
        began = time.monotonic()
        assert training.start().result()["weights_sha256"] == sha256
        seconds = time.monotonic() - began
    return Unbroken(storage, sha256, seconds)
