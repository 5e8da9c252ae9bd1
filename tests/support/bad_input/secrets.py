"""Secrets in URIs, errors and the environment: what is shown and recorded has none of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

from dpmpp_core.config import load_config
from dpmpp_core.data.files import list_files
from dpmpp_core.errors import DataError
from dpmpp_core.redaction import one_line, redact
from pipelines.cli.options import _Redacting
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from tests.support.bad_input.row import Outcome, Row, refusal
from tests.support.cli import invoke_dpmpp

SECRET = "wJalrXUtnFEMI"
VARIABLES = {"AWS_SECRET_ACCESS_KEY": SECRET, "SHORT_TOKEN": "on"}


def outcome(said: str) -> Outcome:
    return Outcome(said, "secret shown" if SECRET in said else "no secret shown")


def row(given: str, say: Callable[[Path], str], says: str) -> Row:
    return Row(given, lambda folder: outcome(say(folder)), says, "no secret shown")


def text(given: str, uri: str, says: str) -> Row:
    return row(given, lambda _: redact(f"cannot reach {uri}: timed out"), says)


def of_environment(_: Path) -> str:
    with patch.dict(os.environ, VARIABLES):
        return str(DataError(f"signature of {SECRET} is on the wrong date"))


def logged(_: Path) -> str:
    record = logging.LogRecord("x", 30, "x", 1, "at %s", (f"http://me:{SECRET}@host",), None)
    return _Redacting("%(message)s").format(record)


def login_of_tracking(_: Path) -> str:
    with patch.dict(os.environ):
        uri = Tracking(f"http://me:{SECRET}@host:5000").uri
        found = os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET
        return f"{uri}, login {'taken to the environment' if found else 'lost'}"


def on_the_command_line(*arguments: str) -> Callable[[Path], str]:
    def say(folder: Path) -> str:
        with chdir(folder):
            done = invoke_dpmpp(*arguments)
        left = [path.name for path in folder.iterdir()]
        return f"exit {done.returncode}: {done.stdout}{done.stderr.strip()} (written: {left})"

    return say


ROWS = [
    text("key and secret in an S3 URI", f"s3://AKIA:{SECRET}@bucket/x", r"s3://\*\*\*@bucket/x"),
    text("password of a database", f"postgresql://me:{SECRET}/x@db/mlflow", r"//\*\*\*@db/mlflow"),
    text("password with an @", f"http://me:p@{SECRET}@host/x", r"http://\*\*\*@host/x:"),
    text("token as a parameter", f"http://host/x?a=1&token={SECRET}&b=2", r"token=\*\*\*&b=2"),
    text("signed URL", f"https://host/x?X-Amz-Signature={SECRET}", r"Signature=\*\*\*"),
    text("a URI without secrets", "http://host:5000/a@b?page=2", "http://host:5000/a@b.page=2:"),
    row("value of a variable of the environment", of_environment, r"of \*\*\* is on the wrong"),
    row("in a line of the log", logged, r"at http://\*\*\*@host"),
    row("login in --tracking-uri", login_of_tracking, "^http://host:5000, login taken"),
    row("token in --tracking-uri",
        lambda _: refusal(Tracking, f"http://host?token={SECRET}"), "MLFLOW_TRACKING_TOKEN"),
    row("login in an S3 data folder",
        lambda _: refusal(list_files, f"s3://AKIA:{SECRET}@bucket"), "AWS_SECRET_ACCESS_KEY"),
    row("login in an S3 storage",
        lambda _: refusal(Storage, f"s3://AKIA:{SECRET}@bucket/x"), "AWS_SECRET_ACCESS_KEY"),
    row("login in a key of the configuration",
        lambda _: refusal(load_config, "demo", [f"seed=http://me:{SECRET}@host"]), "seed: .*int"),
    row("login in the arguments of a command",
        on_the_command_line("data", "check", f"s3://AKIA:{SECRET}@bucket"), "^exit 2: dpmpp: "),
    row("terminal codes in an error",
        lambda _: one_line("no file a\x1b[2J\nb\u202e.jpg"), r"^no file a\\x1b\[2J b\\u202e.jpg$"),
]  # fmt: skip
