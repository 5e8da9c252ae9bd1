"""Commands that check and generate data sets, and show configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli import show
from pipelines.cli.options import ConfigName, Json, Overrides, run_command

data_app = typer.Typer(help="Check and generate data sets.", no_args_is_help=True)
config_app = typer.Typer(help="Show configurations.", no_args_is_help=True)


@data_app.command("check")
def data_check(
    folder: Annotated[str, typer.Argument(help="Data folder or s3://bucket/prefix.")],
    layout: Annotated[
        str, typer.Option(help="Layout; auto = detect it; folders = a folder per person.")
    ] = "auto",
    camera: Annotated[
        str | None, typer.Option(help="Of folders: regular expression, first group = camera.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Compare with the published counts of this data set.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a data set: what is usable, what is not and why."""

    def work() -> dict[str, Any]:
        import pyarrow.compute as pc

        from dpmpp_core.data.files import resolve_path
        from dpmpp_core.data.manifest import read_manifest
        from dpmpp_core.data.published import compare_counts
        from dpmpp_core.data.scenes import scene_hint

        manifest = read_manifest(resolve_path(folder), layout, camera=camera)
        wide = pc.sum(pc.greater(manifest.images["width"], manifest.images["height"])).as_py()
        return {
            "root": manifest.root,
            "layout": manifest.layout,
            "dataset_id": manifest.dataset_id,
            "counts": manifest.counts(),
            "quarantined": manifest.quarantine.to_pylist(),
            "warnings": [
                *manifest.warnings,
                *(compare_counts(manifest, dataset) if dataset else []),
            ],
            "hint": scene_hint(wide or 0, len(manifest.images), folder),
        }

    run_command(work, show.show_data, as_json)


@data_app.command("demo")
def data_demo(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    overrides: Overrides = None,
    config: ConfigName = "demo",
    as_json: Json = False,
) -> None:
    """Generate the demo data set, in Market-1501 layout."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config
        from pipelines.stages.prepare import draw_demo

        summary = draw_demo(out, load_config(config, overrides or []).data.demo)
        return {"root": str(out), "images": dict(summary.images), "seconds": summary.seconds}

    run_command(work, show.show_demo, as_json)


@config_app.command("show")
def config_show(
    overrides: Overrides = None, config: ConfigName = "demo", as_json: Json = False
) -> None:
    """Show the effective configuration."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        return load_config(config, overrides or []).model_dump(mode="json")

    def show_config(values: dict[str, Any]) -> None:
        from dpmpp_core.config import Config

        typer.echo(Config.model_validate(values).to_yaml(), nl=False)

    run_command(work, show_config, as_json)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    from dpmpp_core.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


@config_app.command("list")
def config_list() -> None:
    """Print the names of the shipped recipes."""
    from dpmpp_core.config import recipe_names

    typer.echo("\n".join(recipe_names()))
