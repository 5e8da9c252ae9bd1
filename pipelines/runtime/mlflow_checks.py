"""Check, before any work, that MLflow can do what the end of a run needs; explain what it refuses.

A server that is away, too old, or without a place for artifacts costs a line, not a training.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from requests import RequestException
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from dpmpp_core.errors import ConfigError, UserError
from dpmpp_core.redaction import one_line
from pipelines.runtime.storage import sqlite_file

# MLflow's client retries for minutes, which is right in a training and wrong where one waits.
QUICK_REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
OLDEST_SERVER = 3  # the first whose runs hold models, as registering needs
PROBE = "dpmpp-probe.txt"  # one for each experiment; deleting it may need a further right


class TrackingError(UserError):
    """MLflow's server or database did not answer, or refused a request."""


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow and its database raise into a TrackingError of one line."""
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise TrackingError(f"MLflow at {uri}: {_describe(error)}") from error


@contextmanager
def quick_requests() -> Iterator[None]:
    """Let MLflow's client give up within seconds, without a line for each try."""
    before = {name: os.environ.get(name) for name in QUICK_REQUESTS}
    logger = logging.getLogger("urllib3.connectionpool")
    level = logger.level
    os.environ.update({name: before[name] or value for name, value in QUICK_REQUESTS.items()})
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def check_version(uri: str) -> None:
    """Raise ConfigError if an http server tells a version that is too old."""
    if not uri.startswith(("http://", "https://")):
        return
    creds = get_default_host_creds(uri)
    answer = http_request(creds, "/version", "GET", raise_on_status=False)
    major = answer.text.strip().partition(".")[0]
    if answer.ok and major.isdecimal() and int(major) < OLDEST_SERVER:
        raise ConfigError(
            f"MLflow at {uri} is version {answer.text.strip()}, which cannot hold the models of a "
            f"run: upgrade the server to {OLDEST_SERVER}.0 or newer"
        )


def check_database(uri: str) -> None:
    """Raise SQLAlchemyError if `uri` is a database that cannot be read now.

    MLflow's own client tries ten times, for two minutes, also where a file is no database. A SQLite
    file that is not there is no error, since MLflow creates it.
    """
    file = sqlite_file(uri)
    absent = file is not None and not file.exists()
    if absent or urlsplit(uri).scheme.partition("+")[0] not in DATABASE_ENGINES:
        return
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def check_artifacts(uri: str, location: str) -> None:
    """Raise an error if no file can be stored with an experiment.

    Args:
        uri: tracking URI.
        location: where the experiment's artifacts are, as MLflow says.

    Raises:
        ConfigError: a folder of the server's machine, which is not there on this one.
        TrackingError: writing fails.
    """
    parts = urlsplit(location)
    if uri.startswith("http") and parts.scheme in ("", "file"):
        folder = Path(unquote(parts.path))
        if not folder.is_dir() and not folder.parent.is_dir():
            raise ConfigError(
                f"MLflow at {uri} keeps artifacts in its folder {folder}, which is not on this "
                "machine: start the server with --artifacts-destination in place of "
                "--default-artifact-root, and name a new experiment with tracking.experiment"
            )
    try:
        with tempfile.TemporaryDirectory() as folder_name:
            probe = Path(folder_name) / PROBE
            probe.write_text("written before each run, to see that artifacts can be stored\n")
            get_artifact_repository(location, tracking_uri=uri).log_artifact(str(probe))
    except Exception as error:  # each kind of store has its own
        raise TrackingError(
            f"MLflow at {uri}: no artifact can be written to {location}: {_describe(error)}"
        ) from error


def _describe(error: BaseException) -> str:
    """Return the reason of an error in one line; of a lost connection, the system's."""
    if getattr(error, "error_code", None) == "PERMISSION_DENIED":
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or "without a name"
        return (
            f"the login {user} lacks a right: a run needs EDIT on its experiment and on its model, "
            "a promotion MANAGE on the models NAME and NAME.promotions"
        )
    if "error code 401" in str(error):
        return (
            "the login is missing or wrong: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ConnectionError | TimeoutError) and inner.strerror:
            return f"no answer: {inner.strerror}"
        inner = inner.__cause__ or inner.__context__
    if "timed out" in str(error):
        return "no answer: timed out"
    reason = error.orig if isinstance(error, DBAPIError) else error  # without SQLAlchemy's link
    return one_line(str(reason))[:300]
