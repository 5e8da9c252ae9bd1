"""The `dpmpp` program: as a process of its own, and in this process."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

DPMPP = str(Path(sys.executable).with_name("dpmpp"))
TRACKING_URI = "MLFLOW_TRACKING_URI"  # which MLflow sets, and the program reads
TIMEOUT_S = 500  # what no run here takes, also on a busy machine


def run_dpmpp(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    return subprocess.run(
        [DPMPP, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env=env, cwd=cwd,
    )  # fmt: skip


def invoke_dpmpp(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program in this process: seconds cheaper, with what this process has loaded."""
    from pipelines.cli import app

    with _unchanged_process():
        result = CliRunner().invoke(app, arguments, prog_name="dpmpp")
    return subprocess.CompletedProcess(
        ["dpmpp", *arguments], result.exit_code, result.stdout, result.stderr
    )


def parse_command(line: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The command that a line for a shell calls, and the values of its parameters.

    The program's own parser reads the line, up to a redirection; nothing is run.
    """
    from pipelines.cli import app

    program, *arguments = shlex.split(line.replace(r"\[", "["))
    assert program == "dpmpp"
    end = next((i for i, word in enumerate(arguments) if word in (">", "|")), len(arguments))
    command: Any = typer.main.get_command(app)
    context, called = command.make_context(program, arguments[:end]), []
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
        called.append(name)
    return tuple(called), context.params


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Restore what the program sets for its process: SIGTERM, log levels and formats, MLflow."""
    uri = os.environ.get(TRACKING_URI)
    handler = signal.getsignal(signal.SIGTERM)
    loggers = [logging.getLogger(name) for name in ("", "pipelines", "dpmpp_core")]
    levels = [logger.level for logger in loggers]
    forms = [(one, one.formatter) for one in logging.getLogger().handlers]
    try:
        yield
    finally:
        os.environ.pop(TRACKING_URI, None)
        if uri is not None:
            os.environ[TRACKING_URI] = uri
        signal.signal(signal.SIGTERM, handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for one, form in forms:
            one.setFormatter(form)


def assert_mistake(
    done: subprocess.CompletedProcess[str], says: str, lines: int | None = 1
) -> None:
    """The program ended with 2, one line on stderr, and nothing on stdout."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert lines is None or len(done.stderr.strip().splitlines()) == lines, done.stderr
