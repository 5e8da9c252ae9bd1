"""Where a run's files are, and the commands that use them, as its report shows them."""

from __future__ import annotations

import shlex
from datetime import date
from pathlib import Path

import dpmpp_core
from dpmpp_core.redaction import redact
from pipelines.reporting.html import Command, Link
from pipelines.runtime.environment import find_commit
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage

LOCAL_SERVER = "http://127.0.0.1:5000"  # where `mlflow ui` answers


def describe_origin() -> list[str]:
    """Return the date, and version and commit of the code."""
    commit, today = find_commit(), date.today()
    code = f"dpmpp {dpmpp_core.__version__}" + (f", commit {commit}" if commit else "")
    return [f"{today.day} {today:%B %Y}", code]


def list_links(run: Run, prepared: Stage, metric: Stage) -> list[Link]:
    """Return the places of the data, of the model and of the run's MLflow run."""
    model, data = run.storage.location(f"{metric.key}/model"), redact(prepared.summary["root"])
    server = LOCAL_SERVER if _is_database(run) else redact(run.tracking.uri)
    page = f"{server}/{run.tracking.page}"
    text = f"{page} (once the last command below runs)" if _is_database(run) else page
    return [
        Link("data", data, _to_target(data)),
        Link("model", model, _to_target(model)),
        Link("MLflow run", text, page),
    ]


def list_commands(run: Run, prepared: Stage, metric: Stage, query: str | None) -> list[Command]:
    """Return commands that work on this machine as they are.

    Args:
        run: its storage and MLflow run.
        prepared: the data.
        metric: the trained model.
        query: path of a picture in the data folder, to search for; None = there is none.
    """
    root, model = redact(prepared.summary["root"]), run.storage.location(f"{metric.key}/model")
    index, uri = run.storage.location("gallery"), redact(run.tracking.uri)
    picture = f"{root.rstrip('/')}/{query}" if query else "PICTURE"
    commands = {
        "Index pictures: here the data of this run, any folder will do.": [
            ["dpmpp", "index", "build", "--index", index, "--data", root, "--model", model]
        ],
        "Search them, with a page as the answer or in the browser.": [
            ["dpmpp", "search", "--index", index, "--query", picture, "--html", "search.html"],
            ["dpmpp", "app", "--index", index],
        ],
        "Measure the model on other data.": [
            ["dpmpp", "evaluate", "--model", model, "--data", "DIR"]
        ],
        "Make the registered model the champion, if it passes the gate.": [
            ["dpmpp", "promote", run.config.tracking.model_name, "--tracking-uri", uri]
        ],
    }
    if _is_database(run):
        commands["See the run in MLflow."] = [["mlflow", "ui", "--backend-store-uri", uri]]
    return [
        Command(purpose, "\n".join(map(shlex.join, words))) for purpose, words in commands.items()
    ]


def _is_database(run: Run) -> bool:
    """Return whether MLflow's runs are in a database, of which no server shows pages yet."""
    return not run.tracking.uri.startswith(("http://", "https://"))


def _to_target(place: str) -> str:
    """Return the URI of a local folder; empty for S3, which no browser opens."""
    return "" if "://" in place else Path(place).absolute().as_uri()
