"""Promote `candidate` to `champion` in MLflow's registry, through a gate, and roll it back."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion

from dpmpp_core.config.gate import Gate, load_gate
from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import redact
from pipelines.registry.checks import Verdict, run_promotion_checks
from pipelines.registry.client import (
    CANDIDATE,
    CHAMPION,
    FILES,
    PREVIOUS,
    Registry,
    hash_files,
    translate_errors,
)
from pipelines.registry.model_card import insert_section, shorten_card
from pipelines.registry.promotion_log import (
    LEASE_SECONDS,
    PROMOTE,
    ROLLBACK,
    Move,
    PromotionConflictError,
    PromotionLog,
)
from pipelines.registry.record import CARD
from pipelines.runtime.environment import describe_owner
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import resolve_tracking

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PromotionRequest:
    """The options of `dpmpp promote`; see its `--help`."""

    name: str
    version: int | None = None
    gate: str = "default"
    data: str | None = None
    storage: str = "runs"
    tracking_uri: str | None = None
    dry_run: bool = False
    records_only: bool = False
    own_code: bool = False
    lease: float = LEASE_SECONDS


def promote(request: PromotionRequest) -> dict[str, Any]:
    """Check a version and, if it passes the gate, set it as champion; return what `--json` prints.

    `refused` in the result is the reason, in one line, why it is not the champion now. Unless it is
    a dry run, the verdict is stored as an MLflow run and as tags of the version.

    Raises:
        UserError: no such gate or version; the registry or the champion cannot be used.
    """
    gate = load_gate(request.gate)
    registry, promotions = _open_registry(request)
    with translate_errors(registry.uri), tempfile.TemporaryDirectory() as folder:
        try:
            if not request.dry_run:
                promotions.repair()
        except PromotionConflictError as conflict:
            return {"name": request.name, "refused": str(conflict)}
        aliases = registry.aliases()
        version = _select_version(registry, request, aliases)
        number, champion = int(version.version), aliases.get(CHAMPION)
        result: dict[str, Any] = {
            "name": request.name,
            "gate": request.gate,
            "tracking_uri": redact(registry.uri),
        }
        if number == champion and not request.records_only:
            return result | {"version": number, "champion": number, "changed": False}
        other = None if champion in (None, number) else registry.version(champion)
        verdict = run_promotion_checks(
            registry,
            gate,
            version,
            other,
            Path(folder),
            request.data,
            request.records_only,
            request.own_code,
        )
        result |= verdict.to_json() | {"champion": champion, "changed": False}
        if not request.dry_run:
            result["run_id"] = _store_verdict(registry, version, verdict, gate, request)
        if verdict.refused_by:
            why = ", ".join(verdict.refused_by)
            return result | {"refused": f"{request.name} version {number} refused by: {why}"}
        if request.dry_run:
            return result
        move = Move(PROMOTE, champion, aliases.get(PREVIOUS), number)
        return result | _apply(promotions, move)


def roll_back(request: PromotionRequest) -> dict[str, Any]:
    """Swap the champion with the previous one; return what `--json` prints.

    The version that is rolled back is tagged, and a gate refuses it from then on.

    Raises:
        UserError: there is no previous champion, or its files are not those that were registered.
    """
    registry, promotions = _open_registry(request)
    with translate_errors(registry.uri), tempfile.TemporaryDirectory() as folder:
        try:
            if not request.dry_run:
                promotions.repair()
        except PromotionConflictError as conflict:
            return {"name": request.name, "refused": str(conflict)}
        aliases = registry.aliases()
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if previous is None or champion == previous:  # a champion may have been deleted
            raise ConfigError(f"{request.name} has no previous champion to go back to")
        files = registry.download(previous, Path(folder))
        result = {"name": request.name, "version": previous, "champion": champion, "changed": False}
        if hash_files(files) != registry.version(previous).tags.get(FILES):
            return result | {
                "refused": f"the files of version {previous} are not those that were registered"
            }
        if request.dry_run:
            return result
        move = Move(ROLLBACK, champion, previous, previous)
        return result | _apply(promotions, move)


def _open_registry(request: PromotionRequest) -> tuple[Registry, PromotionLog]:
    uri, _ = resolve_tracking(request.tracking_uri, Storage(request.storage))
    registry = Registry(uri, request.name)
    return registry, PromotionLog(registry, request.lease)


def _select_version(
    registry: Registry, request: PromotionRequest, aliases: dict[str, int]
) -> ModelVersion:
    number = aliases.get(CANDIDATE) if request.version is None else request.version
    if number is None:
        raise ConfigError(
            f"{request.name} has no candidate: register one with `dpmpp run`, or name a version "
            "with --version"
        )
    return registry.version(number)


def _apply(promotions: PromotionLog, move: Move) -> dict[str, Any]:
    try:
        promotions.apply(move)
    except PromotionConflictError as conflict:
        return {"refused": str(conflict)}
    return {"changed": True, "champion": move.to, "previous": move.champion}


def _store_verdict(
    registry: Registry,
    version: ModelVersion,
    verdict: Verdict,
    gate: Gate,
    request: PromotionRequest,
) -> str:
    """Store the verdict as an MLflow run and as tags of the version; return the run's id."""
    client, number = registry.client, verdict.version
    experiment = client.get_run(str(version.run_id)).info.experiment_id
    answer = "refused" if verdict.refused_by else "passed"
    tags = {
        "mlflow.runName": f"promote {registry.name} {number}",
        "dpmpp.promotion": answer,
        "dpmpp.model": f"{registry.name}/{number}",
    }
    run_id = client.create_run(experiment, tags=tags).info.run_id
    now = datetime.now(UTC)
    stored = verdict.to_json() | {
        "name": registry.name,
        "gate": {"name": request.gate, **gate.model_dump(mode="json")},
        "time": now.isoformat(timespec="seconds"),
        "by": describe_owner(),
    }
    page = render_verdict(stored)
    client.log_text(run_id, redact(json.dumps(stored, indent=2)) + "\n", "verdict.json")
    client.log_text(run_id, redact(page), "verdict.md")
    if verdict.card:
        card = insert_section(verdict.card, page.replace("# ", "## ", 1))
        client.log_text(run_id, redact(card), CARD)
        client.update_model_version(registry.name, str(number), shorten_card(card))
    stamp = int(now.timestamp() * 1000)
    metrics = [
        Metric(check.name, float(check.value), stamp, 0)
        for check in verdict.checks
        if isinstance(check.value, (int, float))
    ]
    client.log_batch(run_id, metrics=metrics)
    client.set_terminated(run_id, "FINISHED")
    for key, value in {
        "dpmpp.gate": answer,
        "dpmpp.gate.refused_by": ", ".join(verdict.refused_by),
        "dpmpp.gate.run": run_id,
    }.items():
        registry.set_tag(number, key, value)
    return run_id


def render_verdict(verdict: dict[str, Any]) -> str:
    """Return a verdict as Markdown."""
    refused = verdict["refused_by"]
    against = "no champion" if verdict["champion"] is None else f"version {verdict['champion']}"
    lines = [
        f"# Promotion of {verdict['name']} version {verdict['version']}: "
        + ("refused" if refused else "passed"),
        "",
        f"Gate `{verdict['gate']['name']}`, against {against}; {verdict['time']} by "
        f"{verdict['by']}." + (f" Refused by: {', '.join(refused)}." if refused else ""),
        *(f"Note: {note}." for note in verdict["notes"]),
        "",
        "| check | | value | threshold | |",
        "|---|---|---:|---:|---|",
    ]
    for check in verdict["checks"]:
        cells = (
            check["name"],
            "passed" if check["passed"] else "**failed**",
            format_value(check["value"]),
            format_value(check["threshold"]),
            check["says"].replace("|", "\\|"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def format_value(value: float | str | None) -> str:
    """Return a short text of a check's value."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, (int, float)) else value[:16]
