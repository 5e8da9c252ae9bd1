"""One local Ray a session, and one small pipeline run that several tests look at."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpmpp_core.config import ClusterConfig
from tests.support.configs import SMALL

# Processes that no test needs cost seconds: the dashboard, workers before they are asked for.
LEAN = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray with logical CPUs for two train workers and their data workers, 8 in all."""
    import ray

    from pipelines.runtime.resources import ENVIRONMENT, connect

    os.environ.update(LEAN | ENVIRONMENT)
    ray.init(
        address="local", num_cpus=8, include_dashboard=False, log_to_driver=False,
        logging_level=logging.WARNING,
    )  # fmt: skip
    connect(None, ClusterConfig(train_workers=2, data_workers=4))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def result(cluster: None, small_demo: Path, runs: Path) -> dict[str, Any]:
    """A whole pipeline on the small demo set."""
    from pipelines.workflows.options import Options
    from pipelines.workflows.pipeline import run_pipeline

    return run_pipeline(Options(data=str(small_demo), overrides=SMALL, storage=str(runs)))
