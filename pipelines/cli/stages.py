"""Commands that run the pipeline up to a stage."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

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
from pipelines.workflows.pipeline import STAGE

app = typer.Typer()


def _add_command(name: str, until: str, help_text: str) -> None:
    """Add a command that runs the pipeline up to a stage; finished stages are reused."""

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
        _run(
            until,
            as_json,
            data=data,
            config=config,
            overrides=overrides or [],
            storage=storage,
            tracking_uri=tracking_uri,
            address=address,
            fresh=fresh,
        )


_add_command("run", "register", "Run the whole pipeline: data to registered model and report.")
for _name, _until in (
    ("prepare", "prepare"),
    ("saliency", "saliency"),
    ("prompts", "prompts"),
    ("train", "metric"),
    ("pretrain", "captions"),
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
    _run(
        "evaluate",
        as_json,
        data=data,
        config=config,
        overrides=[*(overrides or []), *([] if shots is None else [f"evaluation.shots=[{shots}]"])],
        storage=storage,
        tracking_uri=tracking_uri,
        address=address,
        fresh=fresh,
        model=model,
    )


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
    _run(
        "robustness",
        as_json,
        bands=bands,
        parts=parts,
        data=data,
        config=config,
        overrides=overrides or [],
        storage=storage,
        tracking_uri=tracking_uri,
        address=address,
        fresh=fresh,
        model=model,
    )


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

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(config, changes)
        from dpmpp_core.data.synthesis import BANDS, Part, parse_bands
        from pipelines.stages.synthesis import SynthesisRequest
        from pipelines.workflows.pipeline import run_pipeline
        from pipelines.workflows.session import Options

        options = Options(
            data=data,
            config=config,
            overrides=changes,
            storage=storage,
            tracking_uri=tracking_uri,
            address=address,
            fresh=fresh,
            synthesis=SynthesisRequest(
                out=out,
                bands=parse_bands(bands) if bands else BANDS,
                splits=tuple(splits.split(",")),
                part=cast(Part, part),
            ),
        )
        return run_pipeline(options, until="synthesis")

    def show(result: dict[str, Any]) -> None:
        from pipelines.cli.show import show_synthesis

        show_synthesis(result)

    run_command(work, show, as_json)


def _run(
    until: str, as_json: bool, bands: str | None = None, parts: str | None = None, **options: Any
) -> None:
    """Run the pipeline up to a stage, with these fields of `Options`."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(options["config"], options["overrides"])  # a typo must not wait for torch
        from dpmpp_core.data.synthesis import BANDS, PARTS, parse_bands, parse_parts
        from pipelines.workflows.pipeline import run_pipeline
        from pipelines.workflows.session import Options

        chosen = Options(
            bands=BANDS if bands is None else parse_bands(bands),
            parts=PARTS if parts is None else parse_parts(parts),
            **options,
        )
        return run_pipeline(chosen, until)

    def show(result: dict[str, Any]) -> None:
        from pipelines.cli.show import show_result

        show_result(result)

    run_command(work, show, as_json)
