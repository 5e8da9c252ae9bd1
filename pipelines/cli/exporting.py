"""The command that exports a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli import show
from pipelines.cli.help_pages import RELEASE, examples
from pipelines.cli.options import Json, RequiredModel, run_command

app = typer.Typer()


@app.command(
    rich_help_panel=RELEASE,
    epilog=examples(
        "dpmpp export --model runs/RUN",
        "dpmpp export --model shipped --out model.onnx",
        "dpmpp export --model models:/NAME@champion --out model.onnx",
    ),
)
def export(
    model: RequiredModel,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write. Default: FOLDER/model.onnx.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as one ONNX file: pixels in, features and masks out; checked against it."""

    def work() -> dict[str, Any]:
        from dpmpp_core.errors import ArgumentError
        from pipelines.inference import onnx_export
        from pipelines.inference.onnx_model import default_graph_path
        from pipelines.registry.models import fetch_model, resolve_model_source

        source = resolve_model_source(model)
        if out is None and not Path(source).is_dir():
            raise ArgumentError(f"--out: name the file to be written, as {model} is no folder")
        target = out.expanduser() if out else Path(default_graph_path(source))
        return onnx_export.export(fetch_model(source), target)

    run_command(work, show.show_export, as_json)
