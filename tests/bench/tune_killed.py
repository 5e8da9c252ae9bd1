"""A search killed in its middle and continued, beside that of an earlier version.

    python -m tests.bench.tune_killed --before TREE [--trials 12] [--rounds 1]

`dpmpp tune --config demo` of both trees in turn, on the same generated images and the same space:
SIGKILL to all its processes once half of the trials are finished, then the same command. The
earlier version keeps its trials in `trials.json`, this one in Tune's own state. Methods of later
versions are switched off, so that both train the same kind of model. Writes
`results/tune-killed.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dpmpp_core.config import load_config
from dpmpp_core.demo import generate
from tests.bench.timing import write

HERE = Path(__file__).parents[2]
LATER = [
    "model.attention_mask_depth=null", "metric.predicted_masks=0", "metric.true_masks=0",
]  # fmt: skip
HEAD = (
    "| version | until the kill, s | after it, s | both, s | trials | different | repeated "
    "| epochs measured | s an epoch |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


class Search(NamedTuple):
    """What one killed search took and gave."""

    before: float  # seconds until the kill
    after: float  # seconds of the second start
    trials: list[dict[str, Any]]
    repeated: int  # finished trainings that were made again

    @property
    def epochs(self) -> int:
        return sum(max((int(rung) for rung in trial["rungs"]), default=0) for trial in self.trials)

    def row(self, name: str) -> str:
        seconds = self.before + self.after
        different = len({json.dumps(trial["changes"], sort_keys=True) for trial in self.trials})
        return (
            f"| {name} | {self.before:.0f} | {self.after:.0f} | {seconds:.0f} | "
            f"{len(self.trials)} | {different} | {self.repeated} | {self.epochs} | "
            f"{seconds / self.epochs:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of that version")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    trees = {
        "before": (arguments.before.resolve(), [], _finished_before),
        "this": (HERE, LATER, _finished),
    }
    found: dict[str, list[Search]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        generate(data, load_config("demo").data.demo)
        for number in range(arguments.rounds):
            for name, (tree, options, finished) in trees.items():
                place = Path(folder) / f"{name}-{number}"
                found[name].append(search(place, tree, data, options, arguments.trials, finished))
                print(found[name][-1].row(name), flush=True)
    rows = [one.row(name) for name, searches in found.items() for one in searches]
    write(
        "tune-killed",
        f"python -m tests.bench.tune_killed --before TREE --trials {arguments.trials} "
        f"--rounds {arguments.rounds}",
        [HEAD, *rows, "", "Seconds are wall time. `before`: the version whose search was its own.",
         "`repeated`: finished trainings that the second start made again.",
         f"This version with {' '.join(LATER)}."],
    )  # fmt: skip


def search(
    place: Path, tree: Path, data: Path, options: list[str], trials: int,
    finished: Callable[[Path], int],
) -> Search:  # fmt: skip
    """Search in `place` with the program of `tree`; kill it at half of the trials; continue."""
    place.mkdir()
    start = time.monotonic()
    process = _begin(place, tree, data, options, trials)
    while finished(place) < trials // 2:
        if process.poll() is not None:
            raise RuntimeError((place / "log").read_text()[-2000:])
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = time.monotonic() - start
    subprocess.run(["pkill", "-9", "-f", str(place)], check=False)
    time.sleep(5)  # Ray's processes see that their head is gone
    trained = {file: file.stat().st_mtime for file in place.glob("runs/stages/metric-*/stage.json")}
    start = time.monotonic()
    process = _begin(place, tree, data, options, trials)
    if process.wait():
        raise RuntimeError((place / "log").read_text()[-2000:])
    after = time.monotonic() - start
    repeated = sum(file.stat().st_mtime != then for file, then in trained.items())
    result = json.loads((place / "out").read_text().splitlines()[-1])
    return Search(before, after, result["trials"], repeated)


def _begin(
    place: Path, tree: Path, data: Path, options: list[str], trials: int
) -> subprocess.Popen[bytes]:
    program = "from pipelines.cli import main; main()"
    command = [
        sys.executable, "-c", program, "tune", *options, "--config", "demo", "--data", str(data),
        "--trials", str(trials), "--storage", str(place / "runs"), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with (place / "out").open("wb") as out, (place / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=place, env=environment, stdout=out, stderr=log, start_new_session=True
        )


def _finished_before(place: Path) -> int:
    states = [trial["state"] for file in place.glob("runs/tune-*/trials.json")
              for trial in _read(file).get("trials", ())]  # fmt: skip
    return sum(state in ("done", "stopped", "failed") for state in states)


def _finished(place: Path) -> int:
    files = sorted(place.glob("runs/tune-*/tune-0000/experiment_state-*.json"))
    trials = [json.loads(state) for file in files[-1:] for state, _ in _read(file)["trial_data"]]
    return sum(trial["status"] in ("TERMINATED", "ERROR") for trial in trials)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError:  # it is being written
        return {"trials": [], "trial_data": []}


if __name__ == "__main__":
    main()
