"""Several programs on one new SQLite file of MLflow, at the same moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.support.cli import TIMEOUT_S

PROGRAMS = 4
PROGRAM = """
import sys, time
from pathlib import Path
from dpmpp_core.config import load_config
from pipelines.runtime.tracking import Tracking
folder, number = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{number}").touch()
while len(list(folder.glob("ready-*"))) < int(sys.argv[3]):
    time.sleep(0.01)
tracking = Tracking(f"sqlite:///{folder}/mlflow.db", folder.as_uri())
run = tracking.begin(load_config("demo"), f"demo-{number}", {"id": "0", "root": "d", "counts": {}})
tracking.start_stage("metric")
for step in range(20):
    tracking.log_metrics(step, {"loss": 1.0 / (1 + step)})
tracking.end("FINISHED")
tracking._open.create_registered_model(f"model-{number}")
print(run)
"""


@pytest.mark.long
def test_programs_that_begin_together_on_a_new_file_all_record(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(number), str(PROGRAMS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROGRAMS)
    ]
    ended = [(*process.communicate(timeout=TIMEOUT_S), process.returncode) for process in started]
    assert [code for _, _, code in ended] == [0] * PROGRAMS, [err[-600:] for _, err, _ in ended]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "dpmpp")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2 * PROGRAMS  # a run and its stage each
    stages = [run for run in runs if run.data.tags.get("dpmpp.stage")]
    assert all(len(client.get_metric_history(s.info.run_id, "loss")) == 20 for s in stages)
    assert len(client.search_registered_models()) == PROGRAMS
