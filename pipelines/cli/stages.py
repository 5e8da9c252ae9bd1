"""Commands that run the pipeline up to a stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, cast

import typer

from pipelines.cli import show
from pipelines.cli.options import (
    Address,
    Bands,
    ConfigName,
    Data,
    Fresh,
    Json,
    Model,
    Overrides,
    Parts,
    StorageUri,
    TrackingUri,
    run_command,
)
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import STAGE

app = typer.Typer()
RECIPES = {"pretrain": "pretrain", "pretrain-head": "head"}  # default of --config; others: demo


def _add_command(name: str, until: str, help_text: str) -> None:
    """Add a command that runs the pipeline up to a stage; finished stages are reused."""

    @app.command(name, help=help_text)
    def command(
        overrides: Overrides = None,
        data: Data = None,
        config: ConfigName = RECIPES.get(name, "demo"),
        storage: StorageUri = "runs",
        tracking_uri: TrackingUri = None,
        address: Address = None,
        fresh: Fresh = False,
        as_json: Json = False,
    ) -> None:
        options = Options(
            data=data, config=config, overrides=overrides or [], storage=storage,
            tracking_uri=tracking_uri, address=address, fresh=fresh,
        )  # fmt: skip
        _run(options, until, as_json)


@app.command(help="Draw people, train on them, evaluate, report and register: needs no data.")
def demo(
    overrides: Overrides = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on the demo set."""
    options = Options(
        overrides=overrides or [], storage=storage, tracking_uri=tracking_uri, address=address,
        fresh=fresh,
    )  # fmt: skip
    _run(options, "register", as_json)


_add_command("run", "register", "Run the whole pipeline: data to registered model and report.")
for _name, _until in (
    ("prepare", "prepare"),
    ("saliency", "saliency"),
    ("prompts", "prompts"),
    ("train", "metric"),
    ("pretrain", "captions"),
    ("pretrain-head", "head"),
    ("report", "report"),
):
    _add_command(_name, _until, STAGE["pretrain" if _name == "pretrain" else _until].help)


@app.command(help=STAGE["evaluate"].help)
def evaluate(
    overrides: Overrides = None,
    data: Data = None,
    config: ConfigName = "demo",
    model: Model = None,
    shots: Annotated[
        str | None, typer.Option(help="Queries of one person and camera as one: 1,2,4,8.")
    ] = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run the pipeline up to the stage `evaluate`, without training if there is a `--model`."""
    options = Options(
        data=data, config=config,
        overrides=[*(overrides or []), *([] if shots is None else [f"evaluation.shots=[{shots}]"])],
        storage=storage, tracking_uri=tracking_uri, address=address, fresh=fresh, model=model,
    )  # fmt: skip
    _run(options, "evaluate", as_json)


@app.command(help=STAGE["robustness"].help)
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
    """Run the pipeline up to the stage `robustness`, without training if there is a `--model`."""
    options = Options(
        data=data, config=config, overrides=overrides or [], storage=storage,
        tracking_uri=tracking_uri, address=address, fresh=fresh, model=model,
    )  # fmt: skip
    _run(options, "robustness", as_json, bands, parts)


@app.command(help=STAGE["synthesis"].help)
def synthesize(
    out: Annotated[
        str, typer.Option("--out", help="A new or empty folder, or s3://bucket/prefix-{date}.")
    ],
    overrides: Overrides = None,
    data: Data = None,
    config: ConfigName = "demo",
    bands: Bands = None,
    splits: Annotated[
        str,
        typer.Option(help="What to occlude: query, or query,train (occluded copies are added)."),
    ] = "query",
    part: Annotated[str, typer.Option(help="Part occluded: any, top, bottom or side.")] = "any",
    seed: Annotated[int | None, typer.Option(help="Default: the configuration's.")] = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run the pipeline up to the stage `synthesis`."""
    changes = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]

    options = Options(
        data=data, config=config, overrides=changes, storage=storage, tracking_uri=tracking_uri,
        address=address, fresh=fresh,
    )  # fmt: skip

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(config, changes)
        from dpmpp_core.data.synthesis import BANDS, Part, parse_bands
        from pipelines.stages.synthesis import SynthesisRequest
        from pipelines.workflows.pipeline import run_pipeline

        synthesis = SynthesisRequest(
            out=out,
            bands=parse_bands(bands) if bands else BANDS,
            splits=tuple(splits.split(",")),
            part=cast(Part, part),
        )
        return run_pipeline(replace(options, synthesis=synthesis), until="synthesis")

    run_command(work, show.show_synthesis, as_json)


def _run(
    options: Options, until: str, as_json: bool, bands: str | None = None, parts: str | None = None
) -> None:
    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(options.config, options.overrides)  # a typo must not wait for torch and Ray
        from dpmpp_core.data.synthesis import parse_bands, parse_parts
        from pipelines.workflows.pipeline import run_pipeline

        chosen_bands = () if bands is None else parse_bands(bands)
        chosen_parts = () if parts is None else parse_parts(parts)
        return run_pipeline(replace(options, bands=chosen_bands, parts=chosen_parts), until)

    run_command(work, show.show_result, as_json)
