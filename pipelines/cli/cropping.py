"""The command that cuts persons out of videos and whole scenes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli import show_search
from pipelines.cli.help_pages import START, examples
from pipelines.cli.options import Json, run_command

app = typer.Typer()


@app.command(
    rich_help_panel=START,
    epilog=examples(
        "dpmpp crop --from VIDEOS --out CROPS",
        "dpmpp crop --from VIDEO.mp4 --out CROPS --start 2026-11-27T14:05",
        "dpmpp crop --from SCENES --out CROPS --detector FILE.onnx",
    ),
)
def crop(
    source: Annotated[
        str, typer.Option("--from", help="A video, or a folder of videos and whole scenes.")
    ],
    out: Annotated[str, typer.Option("--out", help="A new or empty folder.")],
    detector: Annotated[
        str,
        typer.Option(
            help="motion: what moves before a fixed camera; or your own FILE.onnx of a person "
            "detector (YOLO, torchvision, RT-DETR), which needs 'dpmpp[onnx]'."
        ),
    ] = "motion",
    every: Annotated[
        float, typer.Option(help="Seconds between two frames that are looked at; 0 = each frame.")
    ] = 0.2,
    min_height: Annotated[int, typer.Option(help="Pixels of the smallest person.")] = 64,
    confidence: Annotated[
        float, typer.Option(help="Score from which a box of FILE.onnx counts.")
    ] = 0.5,
    start: Annotated[
        str | None,
        typer.Option(
            "--start", help="When the videos begin: 2026-11-27T14:05, UTC. Default: 1970."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut persons out of videos, as one folder for each time a person is seen, or of pictures."""

    def work() -> dict[str, Any]:
        from dpmpp_core.data.sightings import parse_time
        from dpmpp_core.detection import CropOptions
        from pipelines.gallery.crop import CropRequest, run_crop

        options = CropOptions(every, min_height, 0 if start is None else parse_time(start))
        return run_crop(CropRequest(source, out, options, detector, confidence))

    run_command(work, show_search.show_crops, as_json)
