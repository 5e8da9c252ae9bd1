"""Commands that check and generate data sets, show configurations, and list models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli import show
from pipelines.cli.completion import complete_dataset, complete_key, complete_layout
from pipelines.cli.help_pages import START, examples
from pipelines.cli.options import (
    ConfigName,
    Json,
    Overrides,
    StorageUri,
    TrackingUri,
    run_command,
)

data_app = typer.Typer(help="Check and generate data sets.", no_args_is_help=True)
models_app = typer.Typer()
config_app = typer.Typer(help="Show and explain configurations.", no_args_is_help=True)


@data_app.command(
    "check",
    epilog=examples(
        "dpmpp data check DIR",
        r"dpmpp data check DIR --layout folders --camera 'cam(\d+)'",
        "dpmpp data check s3://bucket/Market-1501 --dataset market1501",
    ),
)
def data_check(
    folder: Annotated[str, typer.Argument(help="Data folder or s3://bucket/prefix.")],
    layout: Annotated[
        str,
        typer.Option(
            help="Layout; auto = detect it; folders = a folder per person.",
            autocompletion=complete_layout,
        ),
    ] = "auto",
    camera: Annotated[
        str | None, typer.Option(help="Of folders: regular expression, first group = camera.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Compare with the published counts of this data set.",
            autocompletion=complete_dataset,
        ),
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


@data_app.command(
    "demo",
    epilog=examples("dpmpp data demo PEOPLE", "dpmpp data demo PEOPLE data.demo.test_identities=8"),
)
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

        target = out.expanduser()
        summary = draw_demo(target, load_config(config, overrides or []).data.demo)
        return {"root": str(target), "images": dict(summary.images), "seconds": summary.seconds}

    run_command(work, show.show_demo, as_json)


@config_app.command(
    "show",
    epilog=examples(
        "dpmpp config show",
        "dpmpp config show --config market1501 metric.epochs=30 > mine.yaml",
    ),
)
def config_show(
    overrides: Overrides = None, config: ConfigName = "demo", as_json: Json = False
) -> None:
    """Show the effective configuration as commented YAML, which `--config` takes."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        return load_config(config, overrides or []).model_dump(mode="json")

    def show_config(values: dict[str, Any]) -> None:
        from dpmpp_core.config import Config
        from dpmpp_core.config.describing import render_commented

        typer.echo(render_commented(Config.model_validate(values)), nl=False)

    run_command(work, show_config, as_json)


@config_app.command(
    "explain",
    epilog=examples(
        "dpmpp config explain",
        "dpmpp config explain metric.loss",
        "dpmpp config explain model.bands --config market1501",
    ),
)
def config_explain(
    key: Annotated[
        str | None,
        typer.Argument(
            help="A key or a section, such as metric. Default: all keys.",
            autocompletion=complete_key,
        ),
    ] = None,
    config: ConfigName = "demo",
    as_json: Json = False,
) -> None:
    """Explain configuration keys: meaning, type, allowed values, default, and stages."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config
        from dpmpp_core.config.describing import describe_keys
        from pipelines.workflows.pipeline import list_readers

        values = load_config(config).model_dump(mode="json")
        explained = []
        for one in describe_keys(key):
            value: Any = values
            for part in one.key.split("."):
                value = value[part]
            explained.append({**vars(one), "value": value, "stages": list_readers(one.key)})
        return {"config": config, "keys": explained}

    run_command(work, show.show_keys, as_json)


@config_app.command("schema", epilog=examples("dpmpp config schema > schema.json"))
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    from dpmpp_core.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


@config_app.command("list", epilog=examples("dpmpp config list"))
def config_list() -> None:
    """Print the names of the shipped recipes."""
    from dpmpp_core.config import recipe_names

    typer.echo("\n".join(recipe_names()))


@models_app.command(
    "models",
    rich_help_panel=START,
    epilog=examples(
        "dpmpp models", "dpmpp models --storage s3://bucket/runs", "dpmpp models --json"
    ),
)
def models(
    storage: StorageUri = "runs", tracking_uri: TrackingUri = None, as_json: Json = False
) -> None:
    """List the models that can be named here: shipped, trained, exported, registered."""

    def work() -> dict[str, Any]:
        from pipelines.registry.inventory import list_models

        return {"models": [vars(model) for model in list_models(storage, tracking_uri)]}

    run_command(work, show.show_models, as_json)
