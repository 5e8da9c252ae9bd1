"""Commands that train more than one model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli import show
from pipelines.cli.completion import (
    OBJECTIVES,
    SCHEDULERS,
    SEARCHERS,
    complete_from,
    complete_shipped,
)
from pipelines.cli.help_pages import MEASURE, TRAIN, examples
from pipelines.cli.options import (
    Address,
    Bands,
    ConfigName,
    Data,
    Json,
    Overrides,
    Parts,
    StorageUri,
    TrackingUri,
    run_command,
)
from pipelines.workflows.options import Options

app = typer.Typer()


@app.command(
    rich_help_panel=MEASURE,
    epilog=examples(
        "dpmpp ablate",
        "dpmpp ablate --data DIR --config demo --seeds 0,1,2 --variants bands,attention",
        "dpmpp ablate --grid MINE.yaml --storage s3://bucket/runs",
    ),
)
def ablate(
    overrides: Overrides = None,
    data: Data = None,
    config: ConfigName = "proof",
    grid: Annotated[
        str,
        typer.Option(
            help="Shipped grid, or a YAML file of variants.",
            autocompletion=complete_shipped("grids"),
        ),
    ] = "method",
    variants: Annotated[
        str | None, typer.Option(help="Some of them, a,b,c; plain and full always take part.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds of plain and full.")] = "0,1,2,3,4",
    few_seeds: Annotated[
        str | None, typer.Option(help="Training seeds of the others. Default: the same.")
    ] = None,
    bands: Bands = None,
    parts: Parts = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Compare variants of the method: a grid of trials, one table, controls for every mask."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config, parse_seeds

        load_config(config, overrides or [])
        from dpmpp_core.data.synthesis import parse_bands, parse_parts
        from pipelines.workflows.ablation import AblationRequest, ablate

        request = AblationRequest(
            grid=grid,
            seeds=parse_seeds(seeds),
            few_seeds=parse_seeds(seeds if few_seeds is None else few_seeds),
            variants=tuple(variants.split(",")) if variants else (),
        )
        options = Options(
            data=data, config=config, overrides=overrides or [], storage=storage,
            tracking_uri=tracking_uri, address=address,
            bands=() if bands is None else parse_bands(bands),
            parts=() if parts is None else parse_parts(parts),
        )  # fmt: skip
        return ablate(options, request)

    run_command(work, show.show_ablation, as_json)


@app.command(
    rich_help_panel=TRAIN,
    epilog=examples(
        "dpmpp tune --data DIR --trials 20",
        "dpmpp tune --scheduler pbt --space rates --trials 8",
        "dpmpp tune --objectives occluded,holistic metric.identities=8",
    ),
)
def tune(
    overrides: Overrides = None,
    data: Data = None,
    config: ConfigName = "demo",
    space: Annotated[
        str,
        typer.Option(
            help="Shipped search space, or a YAML file of keys and bounds.",
            autocompletion=complete_shipped("spaces"),
        ),
    ] = "default",
    trials: Annotated[int, typer.Option(help="How many in all; the first changes nothing.")] = 12,
    epochs: Annotated[
        int | None,
        typer.Option(help="Of the longest training. Default: a third of the configuration's."),
    ] = None,
    searcher: Annotated[
        str,
        typer.Option(help="tpe or random, of Optuna.", autocompletion=complete_from(*SEARCHERS)),
    ] = "tpe",
    scheduler: Annotated[
        str,
        typer.Option(
            help="asha, pbt (the trials are a population) or fifo, of Ray Tune.",
            autocompletion=complete_from(*SCHEDULERS),
        ),
    ] = "asha",
    grace_period: Annotated[
        int | None,
        typer.Option(help="asha: epochs before which no trial is stopped. Default: a third."),
    ] = None,
    brackets: Annotated[int, typer.Option(help="asha: each begins a rung later.")] = 1,
    perturbation_interval: Annotated[
        int | None,
        typer.Option(help="pbt: epochs after which the worst are replaced. Default: a third."),
    ] = None,
    objectives: Annotated[
        str,
        typer.Option(
            help="occluded, holistic, or both for a Pareto front.",
            autocompletion=complete_from(*OBJECTIVES),
        ),
    ] = "occluded",
    share: Annotated[
        float, typer.Option(help="Of the training identities, held out to measure on.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(help="Of the search and the held-out identities.")] = 0,
    max_concurrent: Annotated[
        int | None,
        typer.Option(help="Trials at a time. Default: as many as there are resources for."),
    ] = None,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Search for a better configuration, measured on held-out training identities."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config
        from dpmpp_core.config.space import load_space

        load_config(config, overrides or [])
        load_space(space)
        from pipelines.tuning.search import TuningRequest, search

        request = TuningRequest(
            space=space, trials=trials, epochs=epochs, searcher=searcher, scheduler=scheduler,
            grace_period=grace_period, brackets=brackets,
            perturbation_interval=perturbation_interval, objectives=tuple(objectives.split(",")),
            share=share, seed=seed, max_concurrent=max_concurrent,
        )  # fmt: skip
        options = Options(
            data=data, config=config, overrides=overrides or [], storage=storage,
            tracking_uri=tracking_uri, address=address,
        )  # fmt: skip
        return search(options, request)

    run_command(work, show.show_tuning, as_json)


@app.command(
    rich_help_panel=MEASURE,
    epilog=examples(
        "dpmpp reproduce --list",
        "dpmpp reproduce occluded_duke --data Occluded_Duke",
        "dpmpp reproduce market1501 --data Market-1501 --seeds 0",
    ),
)
def reproduce(
    protocol: Annotated[
        str | None,
        typer.Argument(
            help="A protocol; see --list.", autocompletion=complete_shipped("protocols")
        ),
    ] = None,
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option("--data", help="Folder to train on.")] = None,
    test_data: Annotated[
        str | None, typer.Option("--test-data", help="Folder to test on, where it is another.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds.")] = "0,1,2",
    any_counts: Annotated[
        bool, typer.Option("--any-counts", help="Continue if counts are not the published ones.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the protocols.")] = False,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train and test as published, and compare with what was published."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config import load_config, parse_seeds
        from dpmpp_core.errors import ConfigError
        from dpmpp_core.protocols import load_protocol

        chosen, changes = parse_seeds(seeds), overrides or []
        if protocol is not None:
            load_config(load_protocol(protocol).recipe, changes)
        elif not listed:
            raise ConfigError("which protocol? `dpmpp reproduce --list` shows them")
        from pipelines.workflows.reproduce import ReproductionRequest, list_protocols, reproduce

        if listed or protocol is None:
            return list_protocols()
        request = ReproductionRequest(
            protocol=protocol, data=data, test_data=test_data, seeds=chosen, any_counts=any_counts,
            overrides=changes, storage=storage, tracking_uri=tracking_uri, address=address,
        )  # fmt: skip
        return reproduce(request)

    run_command(work, show.show_protocols if listed else show.show_reproduction, as_json)
