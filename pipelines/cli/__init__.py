"""The command line: one thin function per command; `main` is the entry point of `dpmpp`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from dpmpp_core import __version__
from pipelines.cli import comparisons, cropping, exporting, promoting, searching, stages
from pipelines.cli.deploying import deploy_app
from pipelines.cli.help_pages import CLUSTER, HELP_OPTIONS, START, examples
from pipelines.cli.looking import config_app, data_app, models_app

app = typer.Typer(
    name="dpmpp",
    help="Occluded person re-identification: from a folder of images to a registered model. "
    "A command for a stage first runs the stages that it needs, and reuses finished ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=HELP_OPTIONS,
    epilog=examples(
        "dpmpp demo",
        "dpmpp index build --index GALLERY --data PHOTOS",
        "dpmpp search --index GALLERY --query PICTURE.jpg --html page.html",
    ),
)
# The order of the help page.
app.add_typer(stages.app)
app.add_typer(data_app, name="data", rich_help_panel=START)
app.add_typer(config_app, name="config", rich_help_panel=START)
app.add_typer(models_app)
app.add_typer(searching.index_app, name="index", rich_help_panel=START)
app.add_typer(cropping.app)
app.add_typer(searching.app)
app.add_typer(comparisons.app)
app.add_typer(exporting.app)
app.add_typer(promoting.app)
app.add_typer(deploy_app, name="deploy", rich_help_panel=CLUSTER)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point of the `dpmpp` program."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started the program
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, stream).reconfigure(errors="backslashreplace")  # terminals without UTF-8
    try:
        app()
    except BrokenPipeError:  # whoever reads has had enough, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()
        os.dup2(2, 1)  # what libraries print at exit must not follow the result
