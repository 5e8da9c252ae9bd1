"""Checkpoints of a training: written atomically, and verified before they are used.

A checkpoint is two files, `step-000000120.pt` and then `step-000000120.json`, its marker, with the
SHA-256 of the first. Ray Train's own checkpoints have no hash and no fallback for a damaged one.

Torch is imported where a state is read or written: Ray Train's data manager only looks up steps.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dpmpp_core.errors import DataError
from pipelines.runtime.storage import Storage

log = logging.getLogger(__name__)

KEPT = 2  # newest ones; the one of the lowest loss is kept too
State = dict[str, Any]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        storage: Where they are kept.
        key: Their folder in storage.
        warn: Logs a warning for the user, from any process.
    """

    def __init__(
        self, storage: Storage, key: str, warn: Callable[[str], Any] = log.warning
    ) -> None:
        self._storage, self._key, self._warn = storage, key, warn

    def newest(self) -> int:
        """Return the step of the newest undamaged checkpoint, 0 where there is none.

        Damaged ones are logged, and their markers deleted.
        """
        for step in sorted(self._markers(), reverse=True):
            try:
                self._read(step)
                return step
            except ValueError as fault:
                self._warn(f"{fault}; going back to the checkpoint before it")
                self._storage.delete(self._marker(step))
        return 0

    def load(self, step: int) -> State:
        """Return the state saved at a step, tensors on the CPU; no code in the file is run.

        Args:
            step: Steps done when it was saved, such as `newest` returns.

        Raises:
            ValueError: There is no such checkpoint, or its hash is not that of its marker.
            DataError: The marker is damaged.
            OSError: The storage cannot be read.
        """
        import torch

        data = io.BytesIO(self._read(step))
        return torch.load(data, map_location="cpu", weights_only=True)

    def copy_newest_from(self, key: str) -> None:
        """Copy the newest checkpoint of another folder, unless there is one here already."""
        other = Checkpoints(self._storage, key, self._warn)
        step = 0 if self._markers() else other.newest()
        if step:
            state, marker = other._read(step), self._storage.read(other._marker(step))
            self._storage.write(self._state(step), state)
            self._storage.write(self._marker(step), marker or b"")

    def copy_to(self, step: int, folder: Path) -> None:
        """Copy the checkpoint of a step to a local folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for key in (self._state(step), self._marker(step)):
            (folder / Path(key).name).write_bytes(self._storage.read(key) or b"")

    def save(self, step: int, data: bytes, loss: float) -> None:
        """Store a checkpoint, and delete those that are not kept.

        Args:
            step: Steps done.
            data: From `serialize_state`.
            loss: Determines which checkpoint is the best; NaN = unknown.

        Raises:
            OSError: It could not be written, and nothing is left of it.
        """
        marker = {"step": step, "loss": loss, "sha256": hashlib.sha256(data).hexdigest()}
        self._storage.write(self._state(step), data)
        self._storage.write(self._marker(step), json.dumps(marker).encode())
        self._delete_old()

    def _delete_old(self) -> None:
        losses = {step: marker["loss"] for step, marker in self._markers().items()}
        known = [step for step, loss in losses.items() if loss == loss]
        best = min(known, key=lambda step: losses[step], default=None)
        for step in sorted(losses)[:-KEPT]:
            if step != best:
                self._storage.delete(self._marker(step))
                self._storage.delete(self._state(step))

    def _markers(self) -> dict[int, dict[str, Any]]:
        markers = {}
        for key in self._storage.files(self._key):
            if not key.endswith(".json"):
                continue
            try:
                marker = self._storage.read_json(key) or {}
                markers[int(marker["step"])] = marker
            except (DataError, KeyError, ValueError):
                self._warn(f"{self._storage.location(key)} is damaged: its checkpoint is not used")
                self._storage.delete(key)
        return markers

    def _read(self, step: int) -> bytes:
        marker = self._storage.read_json(self._marker(step)) or {}
        path = self._storage.location(self._state(step))
        data = self._storage.read(self._state(step))
        if data is None:
            raise ValueError(f"{path} is missing")
        if hashlib.sha256(data).hexdigest() != marker.get("sha256"):
            raise ValueError(f"{path} is damaged: its content is not what was written")
        return data

    def _state(self, step: int) -> str:
        return f"{self._key}/step-{step:09d}.pt"

    def _marker(self, step: int) -> str:
        return f"{self._key}/step-{step:09d}.json"


def find_newest_step(storage: str, key: str, monitor: Any) -> int:
    """Return the step of the newest checkpoint in a folder, logging through a `TrainingMonitor`.

    Args:
        storage: URI of the storage.
        key: Folder of the checkpoints.
        monitor: Handle of the actor.
    """
    return Checkpoints(Storage(storage), key, monitor.log_warning.remote).newest()


def serialize_state(state: State) -> bytes:
    """Return a copy of a state, which later steps do not change."""
    import torch

    data = io.BytesIO()
    torch.save(state, data)
    return data.getvalue()


class Writer:
    """Write checkpoints during training, one at a time.

    A failure to write one is logged and the training continues, since it is worth more.
    """

    def __init__(self, checkpoints: Checkpoints, warn: Callable[[str], Any]) -> None:
        self._checkpoints, self._warn = checkpoints, warn
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._writing is not None and not self._writing.done()

    def start(self, step: int, state: State, loss: float) -> None:
        """Copy the state now, and write it while the training continues.

        Waits for the write before it. An error of this one is logged.

        Args:
            step: Steps done.
            state: To be saved, tensors on any device.
            loss: Mean of the last epoch, by which the best checkpoint is kept; NaN = unknown.
        """
        self.wait()
        self._writing = self._pool.submit(self._write, step, serialize_state(state), loss)

    def _write(self, step: int, data: bytes, loss: float) -> None:
        try:
            self._checkpoints.save(step, data, loss)
        except OSError as error:
            self._warn(
                f"the checkpoint of step {step} could not be written ({error}); training "
                "continues and writes the next one when it is due"
            )

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None:
            self._writing.result()

    def finish(self, step: int, state: State, loss: float) -> None:
        """Write the last checkpoint; OSError if that fails."""
        self.wait()
        self._checkpoints.save(step, serialize_state(state), loss)
