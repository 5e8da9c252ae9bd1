"""The command line: one function a command, nothing decided here."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from dpmpp_core import __version__
from dpmpp_core.errors import UserError

app = typer.Typer(
    name="dpmpp",
    help="Occluded person re-identification: from a folder of images to a registered model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Look at and make data sets.", no_args_is_help=True)
config_app = typer.Typer(help="Show configurations.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Configuration values to change."),
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Data folder or s3://bucket/prefix. Default: the demo set."),
]
ConfigName = Annotated[
    str, typer.Option("--config", help="Name of a shipped recipe, or a YAML file.")
]
StorageUri = Annotated[
    str, typer.Option("--storage", help="Folder or s3://bucket/prefix for all results.")
]
TrackingUri = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow server. Default: SQLite in the work folder."),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster. Default: a local one is started.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Folder of a saved model. Default: train one on the data."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Make every stage anew.")]
Bands = Annotated[
    str | None,
    typer.Option("--bands", help="Percent hidden, 10-20,20-30,...; default: 0-10 to 60-70."),
]
Parts = Annotated[
    str | None,
    typer.Option("--parts", help="Parts hidden; default: any,top,bottom,side."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one result object as the last line of stdout.")
]


@app.callback(invoke_without_command=False)
def _version(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show it.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _pipeline_command(name: str, until: str, help_text: str) -> None:
    """A command that runs the pipeline up to a stage; finished stages are reused."""

    @app.command(name, help=help_text)
    def command(
        overrides: Overrides = None,
        data: Data = None,
        config: ConfigName = "pretrain" if name == "pretrain" else "demo",
        storage: StorageUri = "runs",
        tracking_uri: TrackingUri = None,
        address: Address = None,
        fresh: Fresh = False,
        as_json: Json = False,
    ) -> None:
        arguments = (data, config, overrides or [], storage, tracking_uri, address, fresh)
        _run(arguments, until, as_json)


for _name, _until, _help in (
    ("run", "register", "Run the whole pipeline: data to registered model and report."),
    ("prepare", "prepare", "Check the images and write the manifest."),
    ("saliency", "saliency", "... and compute the person masks (stage 0)."),
    ("prompts", "prompts", "... and learn the text prototypes (stage 1)."),
    ("train", "metric", "... and train the model (stages 1 and 2)."),
    ("pretrain", "pretrain", "Make weights for a small CLIP from generated people."),
    ("report", "report", "... and evaluate and write the report; nothing is registered."),
):
    _pipeline_command(_name, _until, _help)


@app.command()
def evaluate(
    overrides: Overrides = None,
    data: Data = None,
    config: ConfigName = "demo",
    model: Model = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Measure a model: the one trained on the data, or any saved one."""
    arguments = (data, config, overrides or [], storage, tracking_uri, address, fresh, model)
    _run(arguments, "evaluate", as_json)


@app.command()
def robustness(
    overrides: Overrides = None,
    data: Data = None,
    config: ConfigName = "demo",
    model: Model = None,
    bands: Bands = None,
    parts: Parts = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Measure a model on clean queries hidden more and more: mAP and rank-1 by part and share."""
    arguments = (data, config, overrides or [], storage, tracking_uri, address, fresh, model)
    _run(arguments, "robustness", as_json, bands, parts)


@app.command()
def ablate(
    overrides: Overrides = None,
    data: Data = None,
    config: ConfigName = "proof",
    grid: Annotated[str, typer.Option(help="Shipped grid, or a YAML file of variants.")] = "method",
    variants: Annotated[
        str | None, typer.Option(help="Some of them, a,b,c; plain and full always take part.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds of plain and full.")] = "0,1,2,3,4",
    few_seeds: Annotated[
        str | None, typer.Option(help="Training seeds of the others. Default: the same.")
    ] = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Compare variants of the method: a grid of trials, one table, controls for every mask."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(config, overrides or [])
        from pipelines.ablate import Request, ablate, parse_seeds
        from pipelines.run import Options

        several = parse_seeds(seeds)
        few = parse_seeds(few_seeds) if few_seeds is not None else several
        names = tuple(variants.split(",")) if variants else ()
        options = Options(data, config, overrides or [], storage, tracking_uri, address)
        return ablate(options, Request(grid, several, few, names))

    def show(result: dict[str, Any]) -> None:
        from pipelines.show import show_ablation

        show_ablation(result)

    _guarded(work, show, as_json)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    overrides: Overrides = None,
    data: Data = None,
    config: ConfigName = "demo",
    bands: Bands = None,
    splits: Annotated[
        str, typer.Option(help="What to hide: query, or query,train (hidden beside the clean).")
    ] = "query",
    part: Annotated[str, typer.Option(help="Part hidden: any, top, bottom or side.")] = "any",
    seed: Annotated[int | None, typer.Option(help="Default: the configuration's.")] = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Write a data set whose queries are hidden as much as asked, in Market-1501 layout."""
    changes = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(config, changes)
        from dpmpp_core.data.synthesis import BANDS, Part, parse_bands
        from pipelines.run import Options, run_pipeline
        from pipelines.synthesis import Order

        chosen = parse_bands(bands) if bands else BANDS
        order = Order(out.absolute(), chosen, tuple(splits.split(",")), cast(Part, part))
        options = Options(data, config, changes, storage, tracking_uri, address, fresh)
        return run_pipeline(options, "saliency", order)

    def show(result: dict[str, Any]) -> None:
        from pipelines.show import show_synthesis

        show_synthesis(result)

    _guarded(work, show, as_json)


@app.command()
def reproduce(
    protocol: Annotated[str | None, typer.Argument(help="A protocol; see --list.")] = None,
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option("--data", help="Folder to train on.")] = None,
    test_data: Annotated[
        str | None, typer.Option("--test-data", help="Folder to test on, where it is another.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds.")] = "0,1,2",
    any_counts: Annotated[
        bool, typer.Option("--any-counts", help="Go on where counts are not the published ones.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the protocols.")] = False,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train and test as published, and compare with what was published."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config
        from dpmpp_core.errors import ConfigError
        from dpmpp_core.protocols import load_protocol, parse_seeds

        chosen, changes = parse_seeds(seeds), overrides or []
        if protocol is not None:
            load_config(load_protocol(protocol).recipe, changes)
        elif not listed:
            raise ConfigError("which protocol? `dpmpp reproduce --list` shows them")
        from pipelines import reproduce as kit

        if listed or protocol is None:
            return kit.list_protocols()
        places = storage, tracking_uri, address
        return kit.reproduce(
            kit.Request(protocol, data, test_data, chosen, any_counts, changes, *places)
        )

    def show(result: dict[str, Any]) -> None:
        from pipelines.show import show_protocols, show_reproduction

        (show_protocols if listed else show_reproduction)(result)

    _guarded(work, show, as_json)


@data_app.command("check")
def data_check(
    folder: Annotated[str, typer.Argument(help="Data folder or s3://bucket/prefix.")],
    layout: Annotated[str, typer.Option(help="Layout; auto = find out.")] = "auto",
    dataset: Annotated[
        str | None, typer.Option(help="Compare with the published counts of this data set.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look through a data set: what is usable, what is not and why."""
    from pipelines.show import show_data

    def work() -> dict[str, Any]:
        from dpmpp_core.data.manifest import compare_counts, read_manifest

        manifest = read_manifest(folder, layout)
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
        }

    _guarded(work, show_data, as_json)


@data_app.command("demo")
def data_demo(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    overrides: Overrides = None,
    config: ConfigName = "demo",
    as_json: Json = False,
) -> None:
    """Generate the demo data set, in Market-1501 layout."""
    from pipelines.show import show_demo

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config
        from pipelines.prepare import draw_demo

        summary = draw_demo(out, load_config(config, overrides or []).data.demo)
        return {"root": str(out), "images": dict(summary.images), "seconds": summary.seconds}

    _guarded(work, show_demo, as_json)


@config_app.command("show")
def config_show(
    overrides: Overrides = None, config: ConfigName = "demo", as_json: Json = False
) -> None:
    """The effective configuration."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        return load_config(config, overrides or []).model_dump(mode="json")

    def show(values: dict[str, Any]) -> None:
        from dpmpp_core.config import Config

        typer.echo(Config.model_validate(values).to_yaml(), nl=False)

    _guarded(work, show, as_json)


@config_app.command("schema")
def config_schema() -> None:
    """The JSON schema of the configuration."""
    from dpmpp_core.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


@config_app.command("list")
def config_list() -> None:
    """Names of the shipped recipes."""
    from dpmpp_core.config import recipe_names

    typer.echo("\n".join(recipe_names()))


def _run(
    arguments: tuple, until: str, as_json: bool, bands: str | None = None, parts: str | None = None
) -> None:
    """Run the pipeline with the fields of `pipelines.run.Options`, in their order."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(arguments[1], arguments[2])  # a typo must not wait for torch and Ray
        from dpmpp_core.data.synthesis import BANDS, PARTS, parse_bands, parse_parts
        from pipelines.run import Options, run_pipeline

        options = replace(
            Options(*arguments),
            bands=BANDS if bands is None else parse_bands(bands),
            parts=PARTS if parts is None else parse_parts(parts),
        )
        return run_pipeline(options, until)

    def show(result: dict[str, Any]) -> None:
        from pipelines.show import show_result

        show_result(result)

    _guarded(work, show, as_json)


def _guarded(
    work: Callable[[], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    as_json: bool,
) -> None:
    """Run a command's work. Exit codes: 0 done, 1 failed while running, 2 the user's to mend.

    While it runs, stdout is stderr: libraries and Ray's workers print where they like, and
    `--json` promises that the last line of stdout is the result.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("pipelines", "dpmpp_core"):
        logging.getLogger(name).setLevel(logging.INFO)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.filterwarnings("ignore", module="ray.data")
    stdout = os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    code = 0
    result: dict[str, Any] | None = None
    try:
        result = work()
    except UserError as error:
        print(f"dpmpp: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("dpmpp: stopped; the same command goes on from here", file=sys.stderr)
        code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os.dup2(stdout, 1)
    if result is not None:
        code = 1 if result.get("failed") else code
        if as_json:
            print(json.dumps(result), flush=True)
        else:
            show(result)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `dpmpp` program."""
    app()
