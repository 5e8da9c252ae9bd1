"""Write the model card of a version: origin, data, figures with intervals, intended use, limits."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dpmpp_core.config import Config
from dpmpp_core.percent import format_percent
from dpmpp_core.redaction import one_line
from pipelines.registry.record import CARD, Record
from pipelines.reporting.tables import build_occlusion_rows, format_interval

LAST_HEADING = "## Configuration"
MAX_DESCRIPTION_CHARS = 5000  # that MLflow keeps
INTENDED_USE = (
    "Ranking pictures of persons by likeness to a query, for people who then look themselves."
)
LIMITS = (
    "A rank identifies nobody: the figures are of queries whose person is in the gallery.",
    "Figures hold for the data above. Other cameras, places, clothes or years are another matter.",
    "The intervals are over other persons, not over other trainings: this is one seed.",
    "Differences between groups of people were not measured: decide nothing about people by it.",
)  # fmt: skip

log = logging.getLogger(__name__)


def render_model_card(record: Record, config: Config, client: MlflowClient) -> str:
    """Return the card as Markdown."""
    parts = [
        _format_header(record, config),
        _format_data(record, config),
        _format_figures(record.measured),
        _format_ablation(record, client),
        ["## Intended use and limits", "", config.tracking.intended_use or INTENDED_USE, "",
         *(f"- {limit}" for limit in LIMITS)],
        [LAST_HEADING, "", "```yaml", config.to_yaml().strip(), "```"],
    ]  # fmt: skip
    return "\n".join("\n".join([*part, ""]) for part in parts if part)


def insert_section(card: str, section: str) -> str:
    """Return the card with one more section, before its last, long one."""
    return card.replace(LAST_HEADING, f"{section}\n{LAST_HEADING}", 1)


def shorten_card(card: str) -> str:
    """Return the card, cut to fit a version's description; the whole is next to the model."""
    text, cut = card[: card.index(LAST_HEADING)], f"... whole: {CARD} in `record`"
    return (
        text
        if len(text) <= MAX_DESCRIPTION_CHARS
        else text[: MAX_DESCRIPTION_CHARS - len(cut)] + cut
    )


def _format_header(record: Record, config: Config) -> list[str]:
    facts = record.facts
    packages = ", ".join(f"{k} {v}" for k, v in facts["environment"]["packages"].items())
    model = config.model
    return [
        f"# {config.tracking.model_name}: {config.name}, seed {config.seed}",
        "",
        "Features and masks of pictures of persons, to be ranked with a masked metric (DPM++, "
        "arXiv 2605.06637).",
        "",
        f"- Weights: SHA-256 `{facts['weights_sha256']}`; {model.backbone}, started from "
        f"{model.pretrained or model.checkpoint or 'random weights'}",
        f"- MLflow run: `{facts['run_id']}`; stages "
        + ", ".join(f"`{key}`" for key in facts["stages"].values()),
        f"- Person masks of the training: {config.saliency.provider}"
        + (f", `{facts['saliency']}`" if facts.get("saliency") else ""),
        f"- Built with Python {facts['environment']['python']}, {packages}",
    ]


def _format_data(record: Record, config: Config) -> list[str]:
    facts = record.facts
    counts = [
        f"- {name}: " + ", ".join(f"{number:,} {what}" for what, number in values.items())
        for name, values in facts["counts"].items()
        if values
    ]
    licence = config.tracking.data_licence or "unknown: not stated (`tracking.data_licence`)"
    return [
        "## Data",
        "",
        f"- {one_line(str(facts['root']))}, layout {facts['layout']}, identity "
        f"`{facts['dataset_id']}`",
        *counts,
        f"- Licence of the data: {one_line(licence)}",
    ]


def _format_figures(measured: Mapping[str, Any]) -> list[str]:
    """Return figures with intervals and baselines; and by occlusion ratio, where it is known."""
    lines = [
        "## Figures",
        "",
        "Single query, no re-ranking; gallery pictures of the query's person and camera take no "
        "part. Percent, with 95 % intervals over persons (bootstrap).",
        "",
        "| queries | | mAP | rank-1 |",
        "|---|---|---:|---:|",
    ]
    labels = {"masked": "with mask", "unmasked": "no mask", "gain": "what the mask adds"}
    for name, kinds in measured["intervals"].items():
        for kind, values in kinds.items():
            shown = (format_interval(values[figure], kind == "gain") for figure in ("mAP", "rank1"))
            lines.append(f"| {name} | {labels[kind]} | {' | '.join(shown)} |")
        for baseline, values in measured["metrics"]["baselines"][name].items():
            shown = (format_percent(values[figure]) for figure in ("mAP", "rank1"))
            lines.append(f"| {name} | {baseline} | {' | '.join(shown)} |")
    hidden = build_occlusion_rows(measured["strata"])
    if hidden:
        lines += ["", "| queries | number | mAP | rank-1 |", "|---|---:|---:|---:|"]
        lines += [f"| {' | '.join(row)} |" for row in hidden]
    return lines


def _format_ablation(record: Record, client: MlflowClient) -> list[str]:
    """Return the results of the ablation on the same data, if there is one."""
    experiment = client.get_run(record.facts["run_id"]).info.experiment_id
    query = (
        f"tags.`dpmpp.data` = '{record.facts['dataset_id']}' and tags.`dpmpp.run` LIKE 'ablation-%'"
    )
    runs = client.search_runs([experiment], query, max_results=1)
    if not runs:
        return ["## Ablation", "", "None was run on this data (`dpmpp ablate`)."]
    run_id = runs[0].info.run_id
    try:
        table = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/table.json"))
    except (MlflowException, OSError, ValueError) as error:
        log.warning("model card: the ablation of run %s: %s", run_id, one_line(str(error)))
        return ["## Ablation", "", f"Run `{run_id}`; its table cannot be read."]
    lines = ["## Ablation", "", f"On the same data, run `{run_id}`; mAP with mask, %.", ""]
    for name, sets in table["variants"].items():
        values = "; ".join(f"{s} {_format_spread(v['masked']['mAP'])}" for s, v in sets.items())
        lines.append(f"- {name}: {values}")
    return lines


def _format_spread(values: list[float]) -> str:
    mean = f"{100 * float(np.mean(values)):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * float(np.std(values, ddof=1)):.1f}"
