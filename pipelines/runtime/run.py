"""What the stages of one run share, and how each is built or reused."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpmpp_core.config import Config
from pipelines.runtime.device import resolve_precision
from pipelines.runtime.resources import Plan
from pipelines.runtime.stage import Stage, StageNotFoundError, stage_key, training_key
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What the stages of one run share.

    Attributes:
        config: The configuration, with the precision that `auto` means here.
        fresh: Whether every stage is built, none reused.
        build: Whether missing stages are built; else `build_stage` raises StageNotFoundError.
        lock: Taken for a stage's key while it is built; runs and trials may share stages.
        stages: The finished ones, in order.
    """

    config: Config
    storage: Storage
    tracking: Tracking
    plan: Plan
    fresh: bool = False
    build: bool = True
    lock: Callable[[str], AbstractContextManager[Any]] = nullcontext
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = resolve_precision(self.config, self.plan.train_gpu)

    def folder(self, stage: Stage) -> Path:
        """Return a local folder with the stage's files."""
        return self.storage.fetch(stage.key)

    def publish(self, key: str, files: Mapping[str, bytes]) -> None:
        """Write files into a folder of the storage, and into the pipeline's MLflow run."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                self.storage.write(f"{key}/{name}", content)
                path = Path(folder) / name
                path.write_bytes(content)
                self.tracking.log_artifact(path)

    def build_stage(
        self,
        name: str,
        identity: Mapping[str, Any],
        build: Callable[[Path], dict[str, Any]],
        metrics: Callable[[dict[str, Any]], Mapping[str, float]] | None = None,
    ) -> Stage:
        """Reuse the stage of this identity, or build it.

        Args:
            name: Name of the stage.
            identity: JSON-able values and configuration sections that determine the content.
            build: Fills a folder and returns the summary.
            metrics: Takes the summary; what it returns becomes metrics of MLflow too.
        """
        key = stage_key(name, identity)
        result = None if self.fresh else self._find(name, key)
        if result is None and not self.build:
            raise StageNotFoundError(key)
        if result is None:
            with self.lock(key):
                if self.fresh:
                    self.storage.delete(key)
                    self.storage.delete(training_key(key))
                result = self._find(name, key) or self._build(name, key, build)
        self.stages.append(result)
        self.tracking.end_stage(result, metrics(result.summary) if metrics else None)
        return result

    def _find(self, name: str, key: str) -> Stage | None:
        marker = self.storage.marker(key)
        if marker is None:
            return None
        if not self.storage.is_whole(key, marker):
            log.warning("%s: files of %s are missing or cut off; built once more", name, key)
            return None
        if self.build:
            log.info("%s: reused (%s)", name, key)
        return Stage(name, key, marker["summary"], marker["seconds"], reused=True)

    def _build(self, name: str, key: str, build: Callable[[Path], dict[str, Any]]) -> Stage:
        log.info("%s: started (%s)", name, key)
        self.tracking.start_stage(name)
        start = time.monotonic()
        with self.storage.commit(key) as (folder, marker):
            summary = build(folder)
            seconds = round(time.monotonic() - start, 2)
            marker |= {"name": name, "summary": summary, "seconds": seconds}
        log.info("%s: done in %.1f s", name, seconds)
        return Stage(name, key, summary, seconds, reused=False)
