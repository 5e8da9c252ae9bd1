"""Commands that run the pipeline up to a stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, cast

import typer

from dpmpp_core.errors import ArgumentError
from pipelines.cli import show, show_run
from pipelines.cli.completion import PARTS, SYNTHESIS_SPLITS, complete_from
from pipelines.cli.help_pages import MEASURE, START, TRAIN, examples
from pipelines.cli.options import (
    Address,
    Bands,
    ConfigName,
    Data,
    DemoConfigName,
    Fresh,
    Json,
    Model,
    Overrides,
    Parts,
    StorageUri,
    TrackingUri,
    Verbose,
    run_command,
)
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import STAGE

app = typer.Typer()
RECIPES = {"pretrain": "pretrain", "pretrain-head": "head"}  # default of --config; others: demo


def _add_command(name: str, until: str, help_text: str, panel: str, *lines: str) -> None:
    """Add a command that runs the pipeline up to a stage; `lines` are its examples."""

    @app.command(name, help=help_text, rich_help_panel=panel, epilog=examples(*lines))
    def command(
        overrides: Overrides = None,
        data: Data = None,
        config: ConfigName = RECIPES.get(name, "demo"),
        storage: StorageUri = "runs",
        tracking_uri: TrackingUri = None,
        address: Address = None,
        fresh: Fresh = False,
        verbose: Verbose = False,
        as_json: Json = False,
    ) -> None:
        options = Options(
            data=data, config=config, overrides=overrides or [], storage=storage,
            tracking_uri=tracking_uri, address=address, fresh=fresh,
        )  # fmt: skip
        _run(options, until, as_json, verbose, needs_data=name == "run")


@app.command(
    help="Draw people, train on them, evaluate, report and register: needs no data.",
    rich_help_panel=START,
    epilog=examples("dpmpp demo", "dpmpp demo metric.epochs=6", "dpmpp demo --config proof"),
)
def demo(
    overrides: Overrides = None,
    config: DemoConfigName = "demo",
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    fresh: Fresh = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on the demo set."""
    options = Options(
        config=config, overrides=overrides or [], storage=storage, tracking_uri=tracking_uri,
        address=address, fresh=fresh,
    )  # fmt: skip
    _run(options, "register", as_json, verbose)


_add_command(
    "run", "register", "Run the whole pipeline: data to registered model and report.", START,
    "dpmpp run --data DIR data.layout=folders",
    "dpmpp run --data DIR --config market1501 metric.epochs=30",
    "dpmpp run --data s3://bucket/data --storage s3://bucket/runs --json",
)  # fmt: skip
for _name, _stage, _panel, _lines in (
    ("prepare", "prepare", TRAIN, ("dpmpp prepare --data DIR", "dpmpp prepare --data DIR --fresh")),
    ("saliency", "saliency", TRAIN,
     ("dpmpp saliency --data DIR", "dpmpp saliency --data DIR saliency.provider=spectral")),
    ("prompts", "prompts", TRAIN,
     ("dpmpp prompts --data DIR", "dpmpp prompts --data DIR prompts.epochs=60")),
    ("train", "metric", TRAIN,
     ("dpmpp train --data DIR", "dpmpp train --data DIR --config market1501 metric.epochs=30")),
    ("pretrain", "captions", TRAIN,
     ("dpmpp pretrain", "dpmpp pretrain pretrain.epochs=6 data.demo.train_identities=1000")),
    ("pretrain-head", "head", TRAIN, ("dpmpp pretrain-head", "dpmpp pretrain-head head.epochs=6")),
    ("report", "report", MEASURE,
     ("dpmpp report --data DIR", "dpmpp report --data DIR evaluation.robustness=true")),
):  # fmt: skip
    _help = STAGE["pretrain" if _name == "pretrain" else _stage].help
    _add_command(_name, _stage, _help, _panel, *_lines)


@app.command(
    help=STAGE["evaluate"].help,
    rich_help_panel=MEASURE,
    epilog=examples(
        "dpmpp evaluate --data DIR --model runs/RUN",
        "dpmpp evaluate --data DIR --model shipped",
        "dpmpp evaluate --data DIR --model models:/NAME@champion --shots 1,2,4",
    ),
)
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
    _run(options, "evaluate", as_json, verbose=True)


@app.command(
    help=STAGE["robustness"].help,
    rich_help_panel=MEASURE,
    epilog=examples(
        "dpmpp robustness --data DIR --model runs/RUN",
        "dpmpp robustness --data DIR --model runs/RUN --parts top,side",
    ),
)
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
    _run(options, "robustness", as_json, True, bands, parts)


@app.command(
    help=STAGE["synthesis"].help,
    rich_help_panel=TRAIN,
    epilog=examples(
        "dpmpp synthesize --data DIR --out NEW --bands 10-30,30-50",
        "dpmpp synthesize --data DIR --out NEW --splits query,train --part bottom",
    ),
)
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
        typer.Option(
            help="What to occlude: query, or query,train (occluded copies are added).",
            autocompletion=complete_from(*SYNTHESIS_SPLITS),
        ),
    ] = "query",
    part: Annotated[
        str,
        typer.Option(
            help="Part occluded: any, top, bottom or side.", autocompletion=complete_from(*PARTS)
        ),
    ] = "any",
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
    options: Options,
    until: str,
    as_json: bool,
    verbose: bool,
    bands: str | None = None,
    parts: str | None = None,
    *,
    needs_data: bool = False,
) -> None:
    """Run the pipeline; without `verbose` the end of a training is short, as it has a report.

    `needs_data`: a forgotten `--data` is refused, where other commands take the demo set.
    """

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config

        load_config(options.config, options.overrides)  # a typo must not wait for torch and Ray
        if needs_data and options.data is None:
            raise ArgumentError(
                "--data is needed: a folder of images, or s3://bucket/prefix; `dpmpp demo` draws "
                "people and needs none"
            )
        from dpmpp_core.data.synthesis import parse_bands, parse_parts
        from pipelines.workflows.pipeline import run_pipeline

        chosen_bands = () if bands is None else parse_bands(bands)
        chosen_parts = () if parts is None else parse_parts(parts)
        return run_pipeline(replace(options, bands=chosen_bands, parts=chosen_parts), until)

    def show_end(result: dict[str, Any]) -> None:
        trained = "next" in result
        if trained and not verbose:
            show_run.show_summary(result)
            return
        show.show_result(result)
        if trained:
            show_run.show_next_steps(result)

    run_command(work, show_end, as_json)
