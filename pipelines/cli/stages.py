"""Commands that run the pipeline up to a stage."""

from __future__ import annotations

from dataclasses import replace
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
    guarded,
)

app = typer.Typer()


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
    shots: Annotated[
        str | None, typer.Option(help="Queries of one person and camera as one: 1,2,4,8.")
    ] = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Measure a model: the one trained on the data, or any saved one."""
    changes = [*(overrides or []), *([] if shots is None else [f"evaluation.shots=[{shots}]"])]
    arguments = (data, config, changes, storage, tracking_uri, address, fresh, model)
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
def synthesize(
    out: Annotated[
        str, typer.Option("--out", help="A new or empty folder, or s3://bucket/prefix-{date}.")
    ],
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
        from pipelines.stages.synthesis import SynthesisRequest
        from pipelines.workflows.pipeline import Options, run_pipeline

        chosen = parse_bands(bands) if bands else BANDS
        order = SynthesisRequest(out, chosen, tuple(splits.split(",")), cast(Part, part))
        options = Options(data, config, changes, storage, tracking_uri, address, fresh)
        return run_pipeline(options, "saliency", order)

    def show(result: dict[str, Any]) -> None:
        from pipelines.cli.show import show_synthesis

        show_synthesis(result)

    guarded(work, show, as_json)


def _run(
    arguments: tuple, until: str, as_json: bool, bands: str | None = None, parts: str | None = None
) -> None:
    """Run the pipeline with the fields of `Options`, in their order."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(arguments[1], arguments[2])  # a typo must not wait for torch and Ray
        from dpmpp_core.data.synthesis import BANDS, PARTS, parse_bands, parse_parts
        from pipelines.workflows.pipeline import Options, run_pipeline

        options = replace(
            Options(*arguments),
            bands=BANDS if bands is None else parse_bands(bands),
            parts=PARTS if parts is None else parse_parts(parts),
        )
        return run_pipeline(options, until)

    def show(result: dict[str, Any]) -> None:
        from pipelines.cli.show import show_result

        show_result(result)

    guarded(work, show, as_json)
