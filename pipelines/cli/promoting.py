"""The command that moves the registry's champion."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli.completion import complete_shipped
from pipelines.cli.help_pages import RELEASE, examples
from pipelines.cli.options import Json, StorageUri, TrackingUri, run_command
from pipelines.cli.show_promotion import show_promotion

app = typer.Typer()


@app.command(
    rich_help_panel=RELEASE,
    epilog=examples(
        "dpmpp promote dpmpp-demo --explain",
        "dpmpp promote dpmpp-demo --gate demo",
        "dpmpp promote dpmpp-demo --rollback",
    ),
)
def promote(
    name: Annotated[str, typer.Argument(help="The registered model, such as dpmpp-demo.")],
    version: Annotated[
        int | None, typer.Option(help="Version to promote. Default: the candidate.")
    ] = None,
    gate: Annotated[
        str,
        typer.Option(
            help="Name of a shipped gate, or a YAML file.",
            autocompletion=complete_shipped("gates"),
        ),
    ] = "default",
    data: Annotated[
        str | None,
        typer.Option(help="Where the evaluation's images are. Default: where they were."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run the checks; change nothing.")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Make the previous champion the champion again.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show each check as a sentence, from records only; load and change nothing.",
        ),
    ] = False,
    own_code: Annotated[
        bool,
        typer.Option(
            "--own-code",
            help="Measure the weights with the code installed here; the version's never runs.",
        ),
    ] = False,
    storage: StorageUri = "runs",
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Make a registered model the champion, if it passes the gate. Exit code 3: it does not."""

    def work() -> dict[str, Any]:
        from dpmpp_core.config.gate import load_gate
        from dpmpp_core.errors import ArgumentError

        load_gate(gate)
        if rollback and (explain or version is not None):
            raise ArgumentError("--rollback goes with neither --explain nor --version")
        from pipelines.registry.promotion import PromotionRequest, promote, roll_back

        request = PromotionRequest(
            name=name, version=version, gate=gate, data=data, storage=storage,
            tracking_uri=tracking_uri, dry_run=dry_run or explain, records_only=explain,
            own_code=own_code,
        )  # fmt: skip
        return roll_back(request) if rollback else promote(request)

    run_command(work, lambda result: show_promotion(result, gate, explain), as_json)
