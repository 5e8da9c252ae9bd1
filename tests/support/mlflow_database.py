"""MLflow databases that tests create in this process: quickly, on SQLite."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def create_databases_quickly() -> None:
    """Let MLflow copy the first database of this process in place of migrating each from nothing.

    What tests write need not outlive the machine either: SQLite does not wait for the disk.
    """
    import sqlalchemy
    from mlflow.store.db import utils
    from mlflow.store.model_registry import sqlalchemy_store

    copying = _copying(utils._initialize_tables)
    utils._initialize_tables = sqlalchemy_store._initialize_tables = copying
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _do_not_wait)


def _copying(create: Callable[[Any], None]) -> Callable[[Any], None]:
    import sqlalchemy

    folder = tempfile.TemporaryDirectory()

    @functools.wraps(create)
    def initialize_tables(engine: Any) -> None:
        file, template = engine.url.database, Path(folder.name) / "mlflow.db"
        if engine.dialect.name != "sqlite" or sqlalchemy.inspect(engine).get_table_names():
            create(engine)  # with tables, it is one of another version of MLflow
        elif template.exists():
            _copy(template, file)
        else:
            create(engine)
            _copy(file, template)

    return initialize_tables


def _copy(source: str | Path, target: str | Path) -> None:
    before, after = sqlite3.connect(source), sqlite3.connect(target)
    before.backup(after)
    before.close()
    after.close()


def _do_not_wait(connection: Any, record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")
