"""The command that exports a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli import show
from pipelines.cli.options import Json, run_command

app = typer.Typer()


@app.command()
def export(
    model: Annotated[Path, typer.Option("--model", help="Folder of a saved model.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write. Default: FOLDER/model.onnx.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as one ONNX file: pixels in, features and masks out; checked against it."""

    def work() -> dict[str, Any]:
        from pipelines.inference import onnx_export
        from pipelines.inference.onnx_model import default_graph_path

        return onnx_export.export(model, out or Path(default_graph_path(str(model))))

    run_command(work, show.show_export, as_json)
