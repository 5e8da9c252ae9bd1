"""Options that several commands share, and how every command runs and ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from dpmpp_core.errors import UserError
from dpmpp_core.redaction import one_line, redact
from pipelines.cli.completion import PARTS, complete_from, complete_override, complete_shipped

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="Configuration values to change; `dpmpp config explain` lists the keys.",
        autocompletion=complete_override,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        envvar="DPMPP_DATA",
        help="Data folder or s3://bucket/prefix. Default: the demo set.",
    ),
]
ConfigName = Annotated[
    str,
    typer.Option(
        "--config",
        envvar="DPMPP_CONFIG",
        help="Name of a shipped recipe, or a YAML file.",
        autocompletion=complete_shipped(),
    ),
]
DemoConfigName = Annotated[  # not of the environment, which may name one for real data
    str,
    typer.Option(
        "--config",
        help="Name of a shipped recipe, or a YAML file, for drawn people.",
        autocompletion=complete_shipped(),
    ),
]
StorageUri = Annotated[
    str,
    typer.Option(
        "--storage", envvar="DPMPP_STORAGE", help="Folder or s3://bucket/prefix for all results."
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar=["DPMPP_TRACKING_URI", "MLFLOW_TRACKING_URI"],
        help="MLflow server. Default: SQLite in the work folder.",
    ),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster. Default: a local one is started.")
]
_MODEL = (
    "Folder of a saved model, of the stage or run that trained it, s3://bucket/prefix, FILE.onnx, "
    "models:/NAME@ALIAS, models:/NAME/VERSION, or shipped; `dpmpp models` lists them."
)
RequiredModel = Annotated[str, typer.Option("--model", help=_MODEL)]
IndexedModel = Annotated[
    str, typer.Option("--model", help=f"{_MODEL} The default has learnt from drawn people only.")
]
Model = Annotated[
    str | None, typer.Option("--model", help=f"{_MODEL} Default: train one on the data.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Build every stage again.")]
Bands = Annotated[
    str | None,
    typer.Option("--bands", help="Percent occluded, 10-20,20-30,...; default: 0-10 to 60-70."),
]
Parts = Annotated[
    str | None,
    typer.Option(
        "--parts",
        help="Parts occluded; default: any,top,bottom,side.",
        autocompletion=complete_from(*PARTS),
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print all tables of the result.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one result object as the last line of stdout.")
]

# Packages of an extra that commands import without asking whether they are there.
EXTRA_OF_PACKAGE = {
    "boto3": "train", "matplotlib": "train", "mlflow": "train", "optuna": "train", "ray": "train",
    "jsonschema": "deploy", "kubernetes": "deploy", "referencing": "deploy", "urllib3": "deploy",
}  # fmt: skip


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def run_command(
    work: Callable[[], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    as_json: bool,
) -> None:
    """Run a command's work.

    Exit codes: 0 done, 1 failed while running, 2 for the user to correct, 3 refused (`refused` of
    the result is the reason).

    While it runs, stdout is stderr: libraries and Ray's workers print where they like, and
    `--json` promises that the last line of stdout is the result.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Redacting("%(message)s"))
    for name in ("pipelines", "dpmpp_core"):
        logging.getLogger(name).setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run
    warnings.filterwarnings("ignore", module="ray.data")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    stdout = os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    code = 0
    result: dict[str, Any] | None = None
    try:
        result = work()
    except UserError as error:
        print(f"dpmpp: {one_line(str(error))}", file=sys.stderr)
        code = 2
    except ModuleNotFoundError as error:
        extra = EXTRA_OF_PACKAGE.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"dpmpp: this command needs {error.name}, which is not installed: "
            f"pip install 'dpmpp[{extra}]'",
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:
        print("dpmpp: stopped; the same command again reuses what it had finished", file=sys.stderr)
        code = 1
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os.dup2(stdout, 1)
    os.close(stdout)
    if result is not None:
        code = 1 if result.get("failed") else code
        if as_json:
            print(json.dumps(result), flush=True)
        else:
            show(result)
        if result.get("refused"):
            print(f"dpmpp: not promoted: {one_line(result['refused'])}", file=sys.stderr)
            code = 3
    raise typer.Exit(code)
