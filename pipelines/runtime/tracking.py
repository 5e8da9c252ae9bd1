"""MLflow: one run per pipeline, one nested run per stage, written by the driver alone.

Client and run ids are explicit, so that after a kill another driver can continue the same run.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import dpmpp_core
from dpmpp_core.config import Config, config_keys
from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import redact
from pipelines.runtime.environment import environment
from pipelines.runtime.mlflow_checks import (
    check_artifacts,
    check_database,
    check_version,
    quick_requests,
    translate_errors,
)
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage, sqlite_file, sqlite_uri

RUN_TAG, STAGE_TAG, KEY_TAG, REUSED_TAG = "dpmpp.run", "dpmpp.stage", "dpmpp.key", "dpmpp.reused"
NOT_IDENTITY = ("cluster.", "tracking.")
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow shows chats


class Tracking:
    """The MLflow runs of one pipeline.

    Args:
        uri: Tracking URI, `sqlite:///FILE` or `http://...`. A login in an http URI moves to the
            environment, where MLflow's client reads it, since the client records its URI.
        artifacts: Artifact root of an experiment that has to be created; None = the server's.

    Everything recorded passes through `redact`. Stages that end before `begin` are recorded when
    it is called: a run's identity depends on its data, which the first stages determine.

    Raises:
        ConfigError: An http URI has parameters.
    """

    def __init__(self, uri: str, artifacts: str | None = None) -> None:
        self.uri = without_login(uri)
        self._artifacts = artifacts
        self._waiting: list[tuple[Stage, Mapping[str, float]]] = []
        self._client: MlflowClient | None = None
        self.run_id: str | None = None
        self._stage_run: str | None = None

    def check(self, experiment: str) -> None:
        """Ask MLflow, before any work, for what the run will need of it.

        That is the experiment, created where MLflow says where its artifacts lie; a place for
        artifacts; and the registry.

        Raises:
            TrackingError: it does not answer, or its database or artifacts cannot be used.
            ConfigError: the server is too old, or the experiment was deleted.
        """
        with quick_requests(), translate_errors(self.uri):
            check_version(self.uri)
            check_database(self.uri)
            client = open_client(self.uri)
            found = client.get_experiment_by_name(experiment)
            client.search_registered_models(max_results=1)  # its place may be another server
        if found is not None and found.lifecycle_stage == LifecycleStage.DELETED:
            raise ConfigError(
                f"the experiment {experiment!r} at {self.uri} was deleted: restore it with `mlflow "
                f"experiments restore --experiment-id {found.experiment_id}`, or name another with "
                "tracking.experiment"
            )
        if self._artifacts is None:
            with quick_requests(), translate_errors(self.uri):
                found = found or _ensure_experiment(client, experiment, None)
                check_artifacts(self.uri, found.artifact_location)
        elif found is not None:
            _refuse_moved(found.artifact_location, self._artifacts)

    def begin(
        self,
        config: Config,
        identity: str,
        data: Mapping[str, Any],
        fresh: bool = False,
        recipe: str | None = None,
    ) -> str:
        """Open the pipeline's run: the one of the same identity if there is one, else a new one.

        Args:
            config: Configuration, of which the run's parameters are taken.
            identity: The run's identity.
            data: `id`, `root`, `counts` of the data set, and its `name` if not that of the folder.
            fresh: Always create a new one.
            recipe: Name or file of the configuration, for a tag.

        Returns:
            The MLflow run id.
        """
        mlflow.set_tracking_uri(self.uri)
        self._client = client = open_client(self.uri)
        experiment = _ensure_experiment(client, config.tracking.experiment, self._artifacts)
        self._experiment_id = experiment_id = str(experiment.experiment_id)
        old = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
        if old and not fresh:
            self.run_id = old[0].info.run_id
            client.update_run(self.run_id, status="RUNNING")
            for run in self._stage_runs(" and attributes.status = 'RUNNING'"):  # of a killed driver
                client.set_terminated(run.info.run_id, "KILLED")
        else:
            self.run_id = self._new_run(config, identity, data, recipe)
        for stage, metrics in self._waiting:
            self.end_stage(stage, metrics)
        self._waiting.clear()
        return self.run_id

    def _new_run(
        self, config: Config, identity: str, data: Mapping[str, Any], recipe: str | None
    ) -> str:
        client, machine = self._open, environment()
        name = str(data.get("name") or Path(str(data["root"])).name or "data")
        tags = {
            "mlflow.runName": identity,
            RUN_TAG: identity,
            "dpmpp.data": str(data["id"]),
            "dpmpp.data_name": redact(name),
            "dpmpp.recipe": redact(recipe or config.name),
            "dpmpp.version": dpmpp_core.__version__,
            "dpmpp.commit": machine["commit"] or "not a checkout",
        }
        run_id = client.create_run(self._experiment_id, tags=tags).info.run_id
        values = config.model_dump(mode="json")
        params = [
            Param(key, redact(str(look_up(values, key))))
            for key in config_keys()
            if not key.startswith(NOT_IDENTITY)
        ]
        client.log_batch(run_id, params=params)
        dataset = Dataset(
            name=name,
            digest=str(data["id"])[:36],
            source_type="local" if "://" not in str(data["root"]) else "s3",
            source=redact(str(data["root"])),
            profile=str(data["counts"]),
        )
        tag = InputTag("mlflow.data.context", "training and evaluation")
        client.log_inputs(run_id, [DatasetInput(dataset, [tag])])
        client.log_text(run_id, redact(config.to_yaml()), "config.yaml")
        client.log_dict(run_id, machine, "environment.json")
        return run_id

    def _stage_runs(self, condition: str = "") -> list[Any]:
        query = f"tags.`mlflow.parentRunId` = '{self.run_id}'" + condition
        return list(self._open.search_runs([self._experiment_id], query, max_results=1000))

    def start_stage(self, name: str) -> None:
        """Open the stage's nested run."""
        if self.run_id is not None:
            self._stage_run = self._new_stage_run(name)

    def _new_stage_run(self, name: str, key: str | None = None) -> str:
        tags = {"mlflow.runName": name, "mlflow.parentRunId": str(self.run_id), STAGE_TAG: name}
        if key is not None:
            tags[KEY_TAG] = key
        return self._open.create_run(self._experiment_id, tags=tags).info.run_id

    def _unrecorded_run(self, name: str, key: str) -> str | None:
        """Return the nested run of a key, new or left by a killed driver; None if finished."""
        found = self._stage_runs(f" and tags.`{KEY_TAG}` = '{key}'")
        if not found:
            return self._new_stage_run(name, key)
        return None if found[0].info.status == "FINISHED" else found[0].info.run_id

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of the running stage at a step, such as an epoch."""
        if self._stage_run is not None:
            self._open.log_batch(self._stage_run, metrics=_to_metrics(values, step))

    def set_warning_tag(self, name: str, message: str) -> None:
        """Tag the running stage and the pipeline's run, so that MLflow can filter for them."""
        if self._stage_run is not None:
            for run in (self._stage_run, str(self.run_id)):
                self._open.set_tag(run, f"dpmpp.{name}", redact(message))

    def end_stage(self, stage: Stage, metrics: Mapping[str, float] | None = None) -> None:
        """Record a finished stage, once per run.

        Args:
            stage: The numbers of its summary become metrics. The whole of it, with what lies
                deeper, is an artifact.
            metrics: More of them, that are worth a name of their own.
        """
        metrics = metrics or {}
        if self.run_id is None:
            self._waiting.append((stage, metrics))
            return
        run = self._stage_run or self._unrecorded_run(stage.name, stage.key)
        if run is None:
            return
        client = self._open
        client.set_tag(run, KEY_TAG, stage.key)
        client.set_tag(run, REUSED_TAG, str(stage.reused).lower())
        numbers = {**stage.summary, **metrics, "seconds": stage.seconds}
        client.log_batch(run, metrics=_to_metrics(select_numbers(numbers)))
        client.log_text(run, redact(json.dumps(stage.summary, indent=2)), "summary.json")
        client.set_terminated(run, "FINISHED")
        self._stage_run = None

    def log_trial(
        self, search: str, name: str, params: Mapping[str, str], figures: Mapping[str, float]
    ) -> None:
        """Record a finished trial as a nested run, unless (search, name) has one already.

        Args:
            search: Identity of the search.
            name: Of the trial.
            params: Logged as parameters, redacted.
            figures: Numbers, of which NaN is left out.
        """
        key = f"{search}/{name}"
        run = self._unrecorded_run(name, key)
        if run is None:
            return
        client = self._open
        logged = [Param(name, redact(value)) for name, value in params.items()]
        client.log_batch(run, params=logged, metrics=_to_metrics(select_numbers(figures)))
        client.set_terminated(run, "FINISHED")

    def end(self, status: str) -> None:
        """Close the open runs with a status: FINISHED, FAILED or KILLED."""
        if self._client is None or self.run_id is None:
            return
        if self._stage_run is not None:
            self._client.set_terminated(self._stage_run, status)
            self._stage_run = None
        self._client.set_terminated(self.run_id, status)

    def log_final_metrics(self, values: Mapping[str, float]) -> None:
        """Log final numbers on the pipeline's run; NaN is left out."""
        self._open.log_batch(str(self.run_id), metrics=_to_metrics(select_numbers(values)))

    def describe(self, markdown: str) -> None:
        """Set the description that MLflow shows of the pipeline's run."""
        self._open.set_tag(str(self.run_id), "mlflow.note.content", redact(markdown))

    def log_text(self, name: str, text: str) -> None:
        """Store a text with the pipeline's run."""
        self._open.log_text(str(self.run_id), redact(text), name)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file with the pipeline's run under its name, in a folder of the artifacts."""
        self._open.log_artifact(str(self.run_id), str(path), folder)

    @property
    def page(self) -> str:
        """Address of the pipeline's run below that of MLflow's server."""
        return f"#/experiments/{self._experiment_id}/runs/{self.run_id}"

    @property
    def _open(self) -> MlflowClient:
        if self._client is None:
            raise RuntimeError("Tracking.begin was not called")
        return self._client


def _to_metrics(values: Mapping[str, float], step: int = 0) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in values.items()]


def without_login(uri: str) -> str:
    """Return an http URI without its login, now MLFLOW_TRACKING_USERNAME and _PASSWORD."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return uri
    if parts.query or parts.fragment:
        raise ConfigError(
            f"--tracking-uri {uri}: give the server alone; a token goes into the environment "
            "variable MLFLOW_TRACKING_TOKEN"
        )
    login, at, host = parts.netloc.rpartition("@")
    if at:
        user, _, password = login.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return urlunsplit(parts._replace(netloc=host))


def open_client(uri: str) -> MlflowClient:
    """Return a client whose database exists: concurrent creations would break a SQLite file."""
    file = sqlite_file(uri)
    if file is None:
        return MlflowClient(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


def select_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are numbers, without NaN and truth values."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    }


def look_up(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def _ensure_experiment(client: MlflowClient, name: str, artifacts: str | None) -> Experiment:
    """Return an experiment; create it where missing, unless another run is faster."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name, artifacts, EXPERIMENT_TAGS))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    return found


def _refuse_moved(recorded: str, now: str) -> None:
    """Raise ConfigError if the folder of a database was moved away from what it records."""
    before, after = (Path(unquote(urlsplit(uri).path)) for uri in (recorded, now))
    if recorded.startswith("file:") and not before.exists() and after.exists():
        raise ConfigError(
            f"the folder {after.parent} was {before.parent} before, where MLflow's records name "
            f"files: move it back, or link it with `ln -s {after.parent} {before.parent}`"
        )


def resolve_tracking(uri: str | None, storage: Storage) -> tuple[str, str | None]:
    """Return tracking URI and artifact root; by default a SQLite file in the work folder."""
    if uri is not None:
        return uri, None
    folder = Path(storage.base if storage.is_local else "runs").absolute()
    return sqlite_uri(folder), (folder / "mlartifacts").as_uri()
