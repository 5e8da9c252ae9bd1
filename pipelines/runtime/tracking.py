"""MLflow: one run a pipeline, a nested run a stage. Only the driver talks to it.

With an explicit client and run ids, so that a killed driver can be followed by another one that
goes on with the same run.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dpmpp_core.config import Config, config_keys
from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import redact
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage

RUN_TAG, STAGE_TAG, KEY_TAG, REUSED_TAG = "dpmpp.run", "dpmpp.stage", "dpmpp.key", "dpmpp.reused"
PACKAGES = ("dpmpp", "torch", "open_clip_torch", "ray", "optuna", "mlflow", "pyarrow", "numpy")
NOT_IDENTITY = ("cluster.", "tracking.")
SQLITE = "sqlite:///"


class Tracking:
    """The MLflow runs of one pipeline.

    Args:
        uri: tracking URI, `sqlite:///FILE` or `http://...`. A login in an http URI goes into the
            environment, where MLflow's client looks for it, since that prints and records its URI.
            Whatever is recorded goes through `redact`.
        artifacts: artifact root of an experiment that has to be created; None = the server's.

    Stages that end before `begin` are recorded when it is called: a run's identity holds that of
    its data, which the first stages find out.

    Raises:
        ConfigError: an http URI with parameters.
    """

    def __init__(self, uri: str, artifacts: str | None = None) -> None:
        self.uri = without_login(uri)
        self._artifacts = artifacts
        self._waiting: list[Stage] = []
        self._client: MlflowClient | None = None
        self.run_id: str | None = None
        self._stage_run: str | None = None

    def begin(
        self, config: Config, identity: str, data: Mapping[str, Any], fresh: bool = False
    ) -> str:
        """Open the pipeline's run: the one of the same identity if there is one, else a new one.

        Args:
            identity: the run's identity.
            data: `id`, `root` and `counts` of the data set.
            fresh: always a new one.

        Returns:
            the MLflow run id.
        """
        mlflow.set_tracking_uri(self.uri)
        self._client = client = open_client(self.uri)
        self._experiment_id = experiment_id = self._experiment(config.tracking.experiment)
        old = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
        if old and not fresh:
            self.run_id = old[0].info.run_id
            client.update_run(self.run_id, status="RUNNING")
            self._end_stale_stages()
        else:
            self.run_id = self._new_run(config, identity, data)
        for stage in self._waiting:
            self.stage_ended(stage)
        self._waiting.clear()
        return self.run_id

    def _experiment(self, name: str) -> str:
        """The id of an experiment, made where there is none; another run may make it meanwhile."""
        found = self._open.get_experiment_by_name(name)
        if found is None:
            try:
                return self._open.create_experiment(name, artifact_location=self._artifacts)
            except MlflowException as error:
                found = self._open.get_experiment_by_name(name)
                if found is None:
                    raise error
        return str(found.experiment_id)

    def _new_run(self, config: Config, identity: str, data: Mapping[str, Any]) -> str:
        client = self._open
        tags = {"mlflow.runName": identity, RUN_TAG: identity, "dpmpp.data": str(data["id"])}
        run_id = client.create_run(self._experiment_id, tags=tags).info.run_id
        values = config.model_dump(mode="json")
        params = [
            Param(key, redact(str(look_up(values, key))))
            for key in config_keys()
            if not key.startswith(NOT_IDENTITY)
        ]
        client.log_batch(run_id, params=params)
        dataset = Dataset(
            name=Path(str(data["root"])).name or "data",
            digest=str(data["id"])[:36],
            source_type="local" if "://" not in str(data["root"]) else "s3",
            source=redact(str(data["root"])),
            profile=str(data["counts"]),
        )
        tag = InputTag("mlflow.data.context", "training and evaluation")
        client.log_inputs(run_id, [DatasetInput(dataset, [tag])])
        client.log_text(run_id, redact(config.to_yaml()), "config.yaml")
        client.log_dict(run_id, environment(), "environment.json")
        return run_id

    def _stage_runs(self, condition: str = "") -> list[Any]:
        query = f"tags.`mlflow.parentRunId` = '{self.run_id}'" + condition
        return list(self._open.search_runs([self._experiment_id], query, max_results=1000))

    def _end_stale_stages(self) -> None:
        for run in self._stage_runs(" and attributes.status = 'RUNNING'"):
            self._open.set_terminated(run.info.run_id, "KILLED")

    def stage_started(self, name: str) -> None:
        """Open the stage's nested run."""
        if self.run_id is not None:
            self._stage_run = self._new_stage_run(name)

    def _new_stage_run(self, name: str) -> str:
        tags = {"mlflow.runName": name, "mlflow.parentRunId": str(self.run_id), STAGE_TAG: name}
        return self._open.create_run(self._experiment_id, tags=tags).info.run_id

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of the stage that is under way, at an epoch."""
        if self._stage_run is not None:
            now = int(time.time() * 1000)
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            self._open.log_batch(self._stage_run, metrics=metrics)

    def alarm(self, name: str, sentence: str) -> None:
        """Tag the stage that is under way and the pipeline's run, for a search to find them."""
        if self._stage_run is not None:
            for run in (self._stage_run, str(self.run_id)):
                self._open.set_tag(run, f"dpmpp.{name}", redact(sentence))

    def stage_ended(self, stage: Stage) -> None:
        """Record a finished stage; one that this run already recorded is left alone."""
        if self.run_id is None:
            self._waiting.append(stage)
            return
        run = self._stage_run
        if run is None:
            condition = f" and tags.`{KEY_TAG}` = '{stage.key}'"
            if self._stage_runs(condition):
                return
            run = self._new_stage_run(stage.name)
        client = self._open
        client.set_tag(run, KEY_TAG, stage.key)
        client.set_tag(run, REUSED_TAG, str(stage.reused).lower())
        now = int(time.time() * 1000)
        numbers = {**flat_numbers(stage.summary), "seconds": stage.seconds}
        client.log_batch(run, metrics=[Metric(k, v, now, 0) for k, v in numbers.items()])
        client.log_text(run, redact(json.dumps(stage.summary, indent=2)), "summary.json")
        client.set_terminated(run, "FINISHED")
        self._stage_run = None

    def trial(
        self, search: str, name: str, params: Mapping[str, str], figures: Mapping[str, Any]
    ) -> None:
        """Record a finished trial below the pipeline's run, once."""
        key = f"{search}/{name}"
        if self._stage_runs(f" and tags.`{KEY_TAG}` = '{key}'"):
            return
        client = self._open
        run = self._new_stage_run(name)
        client.set_tag(run, KEY_TAG, key)
        now = int(time.time() * 1000)
        client.log_batch(
            run,
            params=[Param(k, redact(v)) for k, v in params.items()],
            metrics=[Metric(k, v, now, 0) for k, v in flat_numbers(figures).items()],
        )
        client.set_terminated(run, "FINISHED")

    def end(self, status: str) -> None:
        """Close what is open: FINISHED, FAILED or KILLED."""
        if self._client is None or self.run_id is None:
            return
        if self._stage_run is not None:
            self._client.set_terminated(self._stage_run, status)
            self._stage_run = None
        self._client.set_terminated(self.run_id, status)

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Log final numbers on the pipeline's run; nested names are joined by `/`."""
        now = int(time.time() * 1000)
        metrics = [Metric(k, v, now, 0) for k, v in flat_numbers(values).items()]
        self._open.log_batch(str(self.run_id), metrics=metrics)

    def artifact(self, path: Path, name: str) -> None:
        """Store a file with the pipeline's run under `name`."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name
            copy.write_bytes(path.read_bytes())
            self._open.log_artifact(str(self.run_id), str(copy))

    @property
    def _open(self) -> MlflowClient:
        if self._client is None:
            raise RuntimeError("Tracking.begin was not called")
        return self._client


def without_login(uri: str) -> str:
    """An http URI without its login, which becomes MLFLOW_TRACKING_USERNAME and _PASSWORD."""
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
    """A client whose database is there: several that make a new SQLite file at once break it."""
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


def environment() -> dict[str, Any]:
    """Python, packages and machine: what a figure depends on."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": packages,
    }


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers of a nested mapping, names joined by `/`."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
            flat[prefix + name] = float(value)
    return flat


def look_up(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def resolve_tracking(uri: str | None, storage: Storage) -> tuple[str, str | None]:
    """Tracking URI and artifact root: a SQLite file in the work folder unless told otherwise."""
    if uri is not None:
        return uri, None
    folder = Path(storage.base if storage.is_local else "runs").absolute()
    return f"sqlite:///{folder}/mlflow.db", (folder / "mlartifacts").as_uri()
