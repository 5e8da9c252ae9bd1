"""MLflow that cannot be used, with real databases and servers: one line, before any work.

MLflow itself tries again for two minutes; no test here waits for that.
"""

from __future__ import annotations

import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dpmpp_core.config import load_config
from dpmpp_core.errors import ConfigError, UserError
from pipelines.runtime.tracking import Tracking
from tests.support.cli import invoke_dpmpp

EXPERIMENT = "people"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one experiment."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").create_experiment(EXPERIMENT)
    return file


@pytest.fixture
def database(original: Path, tmp_path: Path) -> Path:
    """A copy of it that MLflow has not opened yet."""
    return Path(shutil.copy(original, tmp_path / "mlflow.db"))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port at which something listens and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def check(uri: str) -> str:
    """The one line with which the check of MLflow ends."""
    with pytest.raises(UserError) as caught:
        Tracking(uri).check(EXPERIMENT)
    message = str(caught.value)
    assert "\n" not in message and "sqlalche.me" not in message
    return message


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(database: Path) -> None:
    client = MlflowClient(f"sqlite:///{database}")
    number = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.delete_experiment(number)
    assert f"mlflow experiments restore --experiment-id {number}" in check(f"sqlite:///{database}")


def test_a_database_of_another_revision_is_refused(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert "out-of-date database schema" in check(f"sqlite:///{database}")


def test_a_locked_database_is_refused(database: Path) -> None:
    holder = sqlite3.connect(database)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert "locked" in check(f"sqlite:///{database}")
    finally:
        holder.close()


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("notes, not a database")
    assert "not a database" in check(f"sqlite:///{file}")
    assert file.read_text() == "notes, not a database"


def test_a_folder_of_runs_is_refused_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "mlruns" / "0"
    folder.mkdir(parents=True)
    (folder / "meta.yaml").write_text("name: Default\n")
    assert "sqlite" in check((tmp_path / "mlruns").as_uri()).lower()
    assert (folder / "meta.yaml").read_text() == "name: Default\n"


def test_a_server_that_is_away_or_silent_is_refused(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = unused.getsockname()[1]
    for port in (away, silent_port):
        assert f"http://127.0.0.1:{port}" in check(f"http://127.0.0.1:{port}")
    answer = check(f"postgresql://me:secret@127.0.0.1:{away}/mlflow")
    assert f"{away}/mlflow" in answer and "secret" not in answer


def test_a_run_says_so_before_it_writes_anything(small_demo: Path, tmp_path: Path) -> None:
    storage, file = tmp_path / "runs", tmp_path / "mlflow.db"
    file.write_text("notes, not a database")
    done = invoke_dpmpp(
        "run", "--data", str(small_demo), "--storage", str(storage),
        "--tracking-uri", f"sqlite:///{file}",
    )  # fmt: skip
    assert done.returncode in (1, 2) and done.stdout == ""
    assert "not a database" in done.stderr and "Traceback" not in done.stderr
    assert not list(storage.rglob("*.parquet"))


def test_a_folder_that_was_moved_is_named_with_its_place_before(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "mlartifacts").mkdir(parents=True)
    tracking = Tracking(f"sqlite:///{before}/mlflow.db", (before / "mlartifacts").as_uri())
    MlflowClient(tracking.uri).create_experiment(EXPERIMENT, (before / "mlartifacts").as_uri())
    tracking.check(EXPERIMENT)
    before.rename(after)
    moved = Tracking(f"sqlite:///{after}/mlflow.db", (after / "mlartifacts").as_uri())
    with pytest.raises(ConfigError, match=f"ln -s {after} {before}"):
        moved.check(EXPERIMENT)
    before.symlink_to(after)
    moved.check(EXPERIMENT)


def test_a_trial_that_a_kill_left_half_recorded_is_recorded_once(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> Tracking:
        tracking = Tracking(f"sqlite:///{database}", tmp_path.as_uri())
        data = {"id": "0", "root": "d", "counts": {}}
        tracking.begin(load_config("demo"), "search-0", data)
        return tracking

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    killed = begin()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "log_batch", kill)
        killed.log_trial("search", "trial 0", {"metric.lr": "0.1"}, {"mAP": 0.5})
    for _ in range(2):
        begin().log_trial("search", "trial 0", {"metric.lr": "0.1"}, {"mAP": 0.5})
    client = MlflowClient(f"sqlite:///{database}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (trial,) = (run for run in runs if run.info.run_name == "trial 0")
    assert trial.info.status == "FINISHED"
    assert trial.data.params == {"metric.lr": "0.1"} and trial.data.metrics == {"mAP": 0.5}
