"""Run the checks of a gate on a registered version, and load and measure what they need."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from dpmpp_core.config.gate import Gate
from dpmpp_core.errors import DataError, WeightsError
from dpmpp_core.gate import (
    Check,
    Sets,
    budget_check,
    dataset_check,
    files_check,
    floor_checks,
    images_check,
    load_check,
    mask_checks,
    no_worse_checks,
    refused_by,
    reproduce_checks,
    rolled_back_check,
)
from pipelines.registry import record
from pipelines.registry.client import FILES, Registry, hash_files, measure_megabytes
from pipelines.registry.promotion_log import ROLLED_BACK
from pipelines.registry.record import Record
from pipelines.registry.verify import VerificationResult, verify_version

log = logging.getLogger(__name__)


@dataclass
class Verdict:
    """The result of a gate's checks of a version.

    Attributes:
        version: its number.
        champion: the number of the version that it was compared with; None = there is none.
        checks: in the order in which they ran; one that makes the others meaningless is the last.
        notes: remarks for readers of the checks.
        card: the version's model card, if it has one.
    """

    version: int
    champion: int | None
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    card: str = ""

    @property
    def refused_by(self) -> list[str]:
        """Names of the failed checks."""
        return refused_by(self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that a promotion prints and stores; the card is not one of them."""
        return {
            "version": self.version,
            "champion": self.champion,
            "notes": self.notes,
            "refused_by": self.refused_by,
            "checks": [vars(check) for check in self.checks],
        }


def run_promotion_checks(
    registry: Registry,
    gate: Gate,
    version: ModelVersion,
    champion: ModelVersion | None,
    folder: Path,
    data: str | None = None,
    records_only: bool = False,
    own_code: bool = False,
) -> Verdict:
    """Check a version against a gate.

    Args:
        registry: that of the version.
        gate: the checks and their bounds.
        version: the version to promote.
        champion: what it is compared with; None = there is none.
        folder: an empty one, for the versions' files.
        data: where the evaluation's images are; None = where they were.
        records_only: load no model: the recorded figures are taken as they are, and a champion
            that was measured on other images is not compared.
        own_code: as in `verify_version`.

    Raises:
        TrackingError: the registry does not answer.
        DataError, WeightsError: the champion cannot be measured on the version's images.
    """
    number = int(version.version)
    verdict = Verdict(number, None if champion is None else int(champion.version))
    checks = verdict.checks
    files = registry.download(number, folder)
    checks.append(files_check(hash_files(files), version.tags.get(FILES)))
    checks.append(rolled_back_check(version.tags.get(ROLLED_BACK)))
    if not checks[0].passed:
        return verdict  # nothing in these files can be trusted
    record_folder = files / "artifacts" / record.FOLDER
    own, verdict.card = Record.read(record_folder), (record_folder / record.CARD).read_text()
    checks.append(dataset_check(own.facts["dataset_id"], gate.dataset))
    checks += floor_checks(own.queries, gate.floors)
    if gate.mask_std is not None:
        checks += mask_checks(own.measured["masks"], gate.mask_std)
    if gate.size_mb is not None:
        checks.append(budget_check("size", measure_megabytes(files), gate.size_mb, "MB"))
    root = data or own.facts["root"]
    measure = partial(verify_version, images=own.images, root=root, own_code=own_code)
    if gate.reproduce is not None and not records_only:
        _verify(checks, partial(measure, files), own, gate)
        if checks[-1].name == "images":
            return verdict  # nor could a champion be measured on them
    other: Sets | None = None
    if champion is not None and gate.no_worse:
        other, note = _read_champion(registry, champion, own, folder, measure, records_only)
        verdict.notes += [note] if note else []
        if other is None:
            return verdict
    checks += no_worse_checks(own.queries, other, gate)
    return verdict


def _verify(
    checks: list[Check], measure: Callable[[], VerificationResult], own: Record, gate: Gate
) -> None:
    """Load and measure the version; append the checks of it."""
    assert gate.reproduce is not None
    count = len(own.images)
    try:
        verified = measure()
    except DataError as error:
        checks.append(images_check(count, f"{error} (--data names another place)"))
        return
    except WeightsError as error:
        checks.append(load_check(str(error)))
        return
    checks += [images_check(count, None), load_check(None, verified.seconds)]
    checks += reproduce_checks(own.queries, verified.queries, gate.reproduce)
    if gate.latency_ms is not None:
        checks.append(budget_check("latency", verified.latency_ms, gate.latency_ms, "ms"))


def _read_champion(
    registry: Registry,
    champion: ModelVersion,
    own: Record,
    folder: Path,
    measure: Callable[[Path], VerificationResult],
    records_only: bool,
) -> tuple[Sets | None, str]:
    """Return the champion's figures by query on the version's images, and a note on their origin.

    None where records alone do not hold them.
    """
    number = int(champion.version)
    files = registry.download(number, folder)
    if hash_files(files) != champion.tags.get(FILES):
        raise WeightsError(
            f"the files of the champion, version {number}, are not those that were registered: "
            "nothing can be compared with it; go back with `--rollback`, or name another champion"
        )
    theirs = Record.read(files / "artifacts" / record.FOLDER)
    if theirs.facts["evaluation_id"] == own.facts["evaluation_id"]:
        return theirs.queries, ""
    if records_only:
        return None, (
            f"the champion, version {number}, was measured on other images: records do not compare "
            "them, a promotion measures it again"
        )
    note = f"the champion, version {number}, was measured on other images: measured again on these"
    log.info(note)
    try:
        return measure(files).queries, note
    except WeightsError as error:
        raise WeightsError(f"the champion, version {number}: {error}") from None
