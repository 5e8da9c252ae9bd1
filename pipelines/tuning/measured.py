"""What a trial has measured, as Tune keeps it, and the keys by which Tune knows a trial.

A module of its own, which loads little: the processes of trials need it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ray import tune

NUMBER_KEY = "number"  # in a trial's configuration: its number; 0 = the start
FIRST_RUNG_KEY = "first_rung"  # in a trial's configuration: how many rungs its bracket skips
FACTOR_KEY = "factor"  # in a member's configuration: of its learning rates from now on
MEMBER_KEY = "member"  # of a Tune grid: one member's first configuration
EPOCHS_KEY, RUNGS_KEY = "epochs", "rungs"  # in a result
CHECKPOINT_FILE = "measured.json"


def load_measured() -> dict[str, Any]:
    """Return what this trial, or the one that it is a copy of, has measured before."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return {RUNGS_KEY: {}, "rates": []}
    with checkpoint.as_directory() as folder:
        return json.loads((Path(folder) / CHECKPOINT_FILE).read_text())


def report_measured(epochs: int, measured: dict[str, Any]) -> None:
    """Report a rung to Tune, with all that was measured so far as the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CHECKPOINT_FILE).write_text(json.dumps(measured))
        result = {EPOCHS_KEY: epochs, **measured[RUNGS_KEY][str(epochs)], **measured}
        tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))
