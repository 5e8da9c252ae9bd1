"""Report a finished search: a table of its trials and Optuna's plots."""

from __future__ import annotations

import io
import logging
import platform
from collections.abc import Sequence
from datetime import date
from typing import Any

import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from pipelines.runtime.environment import environment
from pipelines.tuning.progress import column_titles, format_cells, rank_trials
from pipelines.tuning.spaces import SearchSpec, TrialRecord, build_study, select_pareto_front

log = logging.getLogger(__name__)

TABLE_FILE, CSV_FILE = "trials.md", "trials.csv"
CSV_COLUMNS = ("number", "state", "value", "params", "intermediate_values", "user_attrs")
MIN_IMPORTANCE_TRIALS = 8  # trained to the end


def compute_importances(spec: SearchSpec, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Return the share of the first objective's variation that each key explains.

    PED-ANOVA (Watanabe et al. 2023) over trials trained to the end; empty for fewer than
    MIN_IMPORTANCE_TRIALS, or if all have the same value.
    """
    study = _build_first_study(spec, records)
    values = [trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])]
    if len(values) < MIN_IMPORTANCE_TRIALS or len(set(values)) < 2:
        return {}
    return get_param_importances(study, evaluator=_build_evaluator(len(values)))


def _build_first_study(spec: SearchSpec, records: Sequence[TrialRecord]) -> optuna.Study:
    """Return a study of the first objective, of the trials that lie in the space."""
    inside = [one for one in records if spec.contains({**spec.start, **one.changes})]
    return build_study(spec, inside, spec.objectives[:1])


def _build_evaluator(trials: int) -> PedAnovaImportanceEvaluator:
    best = max(0.1, 4 / trials)  # one or two trials carry no information
    return PedAnovaImportanceEvaluator(target_quantile=best, evaluate_on_local=False)


def render_report(
    spec: SearchSpec, records: Sequence[TrialRecord], command: str, counts: dict[str, Any]
) -> dict[str, bytes]:
    """Return file name -> content: the trials as Markdown and CSV, and the plots."""
    study, several = _build_first_study(spec, records), build_study(spec, records, spec.objectives)
    files = {
        TABLE_FILE: _render_markdown(spec, records, command, counts).encode(),
        CSV_FILE: several.trials_dataframe(CSV_COLUMNS).to_csv(index=False).encode(),
    }
    first, complete = spec.objectives[0], len(study.get_trials(states=[TrialState.COMPLETE]))
    if complete > 1:
        axes = plots.plot_parallel_coordinate(study, target_name=first)
        axes.grid(visible=False)
        files["parallel-coordinates.png"] = _encode_png(axes, 1.2 * len(spec.space) + 3, 6)
    if any(len(record.rungs) > 1 for record in records):
        axes = plots.plot_intermediate_values(study)
        axes.set(title="What was measured at each rung", xlabel="epochs", ylabel=f"{first} mAP")
        files["intermediate-values.png"] = _encode_png(axes, 8, 5)
    if compute_importances(spec, records):
        evaluator = _build_evaluator(complete)
        axes = plots.plot_param_importances(study, evaluator=evaluator, target_name=first)
        files["importance.png"] = _encode_png(axes, 8, 0.35 * len(spec.space) + 1.5)
    if several.best_trials and len(spec.objectives) > 1:
        axes = plots.plot_pareto_front(several, target_names=list(spec.objectives))
        files["pareto.png"] = _encode_png(axes, 6, 5)
    return files


def _encode_png(axes: Axes, width: float, height: float) -> bytes:
    """Return the figure, of this size in inches, as a PNG file; it is closed."""
    figure, file = axes.get_figure(root=True), io.BytesIO()
    assert figure is not None
    figure.set_size_inches(width, height)
    figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return file.getvalue()


def _render_markdown(
    spec: SearchSpec, records: Sequence[TrialRecord], command: str, counts: dict[str, Any]
) -> str:
    packages = environment()["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "ray", "optuna"))
    sizes = {name: counts[name]["images"] for name in counts if name != "quarantined"}
    front = [str(record.number) for record in select_pareto_front(spec, records)]
    lines = [
        "# Search",
        "",
        f"`{command}`; {date.today()}. {versions}; {platform.machine()}. mAP in percent with "
        "masks, on identities held out of the training set: "
        + ", ".join(f"{name} {size}" for name, size in sizes.items() if size)
        + f". Best: trial {', '.join(front) or 'none'}.",
        "",
        _format_row(column_titles(spec)),
        _format_row(["---:", "---", "---:", *["---:"] * len(spec.objectives), "---"]),
        *(_format_row(format_cells(spec, record)) for record in rank_trials(spec, records)),
    ]
    shares = compute_importances(spec, records)
    if shares:
        first = spec.objectives[0]
        lines += ["", f"Share of the variation of {first} that a key explains (PED-ANOVA):", ""]
        lines += [f"- {key}: {share:.2f}" for key, share in shares.items()]
    return "\n".join(lines) + "\n"


def _format_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
