"""Commands that build gallery indexes and search them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli import show_search
from pipelines.cli.completion import (
    ENGINES,
    INDEX_SPLITS,
    STORED_TYPES,
    complete_from,
    complete_layout,
)
from pipelines.cli.help_pages import START, examples
from pipelines.cli.options import Address, IndexedModel, Json, run_command

app = typer.Typer()
index_app = typer.Typer(help="Build and maintain gallery indexes.", no_args_is_help=True)

Index = Annotated[str, typer.Option("--index", help="Folder of the index.")]
AnyIndex = Annotated[str, typer.Option("--index", help="Folder or s3://bucket/prefix.")]
ImageData = Annotated[
    str, typer.Option("--data", help="Any folder of images, or s3://bucket/prefix.")
]
Split = Annotated[
    str,
    typer.Option(
        help="train, query or gallery of a known layout; or all of the folder.",
        autocompletion=complete_from(*INDEX_SPLITS),
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="CSV file: path (in the data folder), and any of person, camera, time. Persons and "
        "cameras are numbers or names."
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        help="Layout of the data folder; auto = detect it; folders = a folder per person.",
        autocompletion=complete_layout,
    ),
]
FolderCamera = Annotated[
    str | None,
    typer.Option(help="Of the layout folders: regular expression, whose group is the camera."),
]
IndexModel = Annotated[
    str | None,
    typer.Option("--model", help="Where the index's model is, if it was moved; as of `build`."),
]
BaseRate = Annotated[
    float | None,
    typer.Option(help="Share of pairs of the same person. Default: as calibrated."),
]


Approximate = Annotated[
    bool,
    typer.Option(
        "--approximate",
        help="Score only the images whose sketches score best, one in 250: returns 98 % of the ten "
        "best of 100,000. `index compact --approximate` writes the sketches.",
    ),
]


@index_app.command(
    "build",
    epilog=examples(
        "dpmpp index build --index GALLERY --data PHOTOS",
        "dpmpp index build --index GALLERY --data PEOPLE --layout folders",
        "dpmpp index build --index GALLERY --data PHOTOS --model runs/RUN",
    ),
)
def index_build(
    index: Index,
    data: ImageData,
    model: IndexedModel = "shipped",
    split: Split = "all",
    labels: Labels = None,
    layout: Layout = "auto",
    camera: FolderCamera = None,
    stored: Annotated[
        str,
        typer.Option(
            help="Type of the features: float32, float16, bfloat16, int8; or int8+float32, which "
            "reads int8 and returns what float32 returns.",
            autocompletion=complete_from(*STORED_TYPES),
        ),
    ] = "float32",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Build an index of a folder's images; the same command again continues it."""

    def work() -> dict[str, Any]:
        from dpmpp_core.index.segments import known_type
        from pipelines.gallery.index import ImageSource, build_index

        return build_index(
            index, model, known_type(stored),
            ImageSource(data, split, labels, address, layout, camera),
        )  # fmt: skip

    run_command(work, show_search.show_added, as_json)


@index_app.command(
    "add",
    epilog=examples(
        "dpmpp index add --index GALLERY --data PHOTOS",
        "dpmpp index add --index GALLERY --data PHOTOS --labels labels.csv",
    ),
)
def index_add(
    index: Index,
    data: ImageData,
    model: IndexModel = None,
    split: Split = "all",
    labels: Labels = None,
    layout: Layout = "auto",
    camera: FolderCamera = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Add the images of a folder that are new or changed."""

    def work() -> dict[str, Any]:
        from pipelines.gallery.index import ImageSource, add_images

        source = ImageSource(data, split, labels, address, layout, camera)
        return add_images(index, source, model)

    run_command(work, show_search.show_added, as_json)


@index_app.command(
    "delete",
    epilog=examples(
        "dpmpp index delete --index GALLERY --image PHOTOS/a.jpg --image PHOTOS/b.jpg",
        "dpmpp index delete --index GALLERY --person anna",
    ),
)
def index_delete(
    index: Index,
    image: Annotated[
        list[str] | None, typer.Option(help="An image, as `search` shows it; may be repeated.")
    ] = None,
    pid: Annotated[
        list[str] | None,
        typer.Option("--pid", "--person", help="A person, by number or name; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Delete images or persons; `compact` then frees their space."""

    def work() -> dict[str, Any]:
        from pipelines.gallery.index import delete_images

        return delete_images(index, image or [], pid or [])

    run_command(work, show_search.show_index, as_json)


@index_app.command(
    "compact",
    epilog=examples(
        "dpmpp index compact --index GALLERY", "dpmpp index compact --index GALLERY --approximate"
    ),
)
def index_compact(
    index: Index,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Also write sketches, a tenth of float32, for `search --approximate`; later "
            "compactions keep them up to date.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Free the space of what was deleted, and merge many segments into few."""

    def work() -> dict[str, Any]:
        from pipelines.gallery.index import compact_index

        return compact_index(index, approximate)

    run_command(work, show_search.show_index, as_json)


@index_app.command(
    "info",
    epilog=examples(
        "dpmpp index info --index GALLERY", "dpmpp index info --index s3://bucket/gallery --json"
    ),
)
def index_info(index: AnyIndex, as_json: Json = False) -> None:
    """Show what is in an index."""

    def work() -> dict[str, Any]:
        from pipelines.gallery.index import read_index_facts

        return read_index_facts(index)

    run_command(work, show_search.show_index, as_json)


@index_app.command(
    "calibrate",
    epilog=examples(
        "dpmpp index calibrate --index GALLERY --data DIR",
        "dpmpp index calibrate --index GALLERY --data DIR --base-rate 0.001",
    ),
)
def index_calibrate(
    index: Index,
    data: Annotated[
        str, typer.Option("--data", help="Images of persons the model was not trained on.")
    ],
    base_rate: Annotated[
        float, typer.Option(help="Share of pairs of the same person where it is used.")
    ] = 0.01,
    labels: Labels = None,
    model: IndexModel = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Fit the "same person" probability, and show what thresholds cost."""

    def work() -> dict[str, Any]:
        from pipelines.gallery.calibration import calibrate_index
        from pipelines.gallery.index import ImageSource

        return calibrate_index(index, ImageSource(data, "all", labels, address), base_rate, model)

    run_command(work, show_search.show_calibration, as_json)


@app.command(
    rich_help_panel=START,
    epilog=examples(
        "dpmpp search --index GALLERY --query PICTURE.jpg --html page.html",
        "dpmpp search --index GALLERY --query FOLDER --tracklet --top 5",
        "dpmpp search --index GALLERY --query PICTURE.jpg --from 2026-11-27 --camera 2",
    ),
)
def search(
    index: AnyIndex,
    query: Annotated[str, typer.Option(help="A picture, or a folder of pictures.")],
    top: Annotated[int, typer.Option(help="How many to list.")] = 20,
    camera: Annotated[
        list[str] | None,
        typer.Option(help="Only of this camera, by number or name; may be repeated."),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Taken at or after: 2026-11-27T14:05, UTC.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Taken before.")] = None,
    shards: Annotated[
        int, typer.Option(help="Ray workers to share the segments; 0 = this process.")
    ] = 0,
    html: Annotated[str | None, typer.Option(help="Also write an HTML page.")] = None,
    base_rate: BaseRate = None,
    tracklet: Annotated[
        bool, typer.Option("--tracklet", help="All pictures of the folder are of one person.")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            help="torch, or onnx: run the file that `dpmpp export` wrote.",
            autocompletion=complete_from(*ENGINES),
        ),
    ] = "torch",
    approximate: Approximate = False,
    no_mask: Annotated[
        bool, typer.Option("--no-mask", help="Trust the whole picture; to compare.")
    ] = False,
    min_score: Annotated[
        float | None, typer.Option(help="Leave out hits below this score, -1 to 1.")
    ] = None,
    person: Annotated[
        str | None,
        typer.Option(
            help="Number or name of the query's person: the page marks right and wrong hits."
        ),
    ] = None,
    model: IndexModel = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Find the person of a picture in an index."""

    def work() -> dict[str, Any]:
        from dpmpp_core.data.sightings import parse_time
        from dpmpp_core.index import RowFilter
        from pipelines.gallery.search import SearchRequest, run_search

        where = RowFilter(
            cameras=camera or None,
            since=None if since is None else parse_time(since),
            until=None if until is None else parse_time(until),
        )
        request = SearchRequest(
            index=index, query=query, top=top, where=where, model=model, shards=shards,
            base_rate=base_rate, html=html, address=address, engine=engine, tracklet=tracklet,
            approximate=approximate, masked=not no_mask, min_score=min_score, person=person,
        )  # fmt: skip
        return run_search(request)

    run_command(work, show_search.show_results, as_json)


@app.command(
    "app",
    rich_help_panel=START,
    epilog=examples(
        "dpmpp app --index GALLERY", "dpmpp app --index s3://bucket/gallery --port 8600"
    ),
)
def web_app(
    index: AnyIndex,
    port: Annotated[int, typer.Option(help="Of the address http://127.0.0.1:PORT.")] = 8501,
    host: Annotated[
        str, typer.Option(help="127.0.0.1 = this machine only; there is no login.")
    ] = "127.0.0.1",
    approximate: Approximate = False,
    model: IndexModel = None,
) -> None:
    """Serve a page to drop a picture on and search; ends with Ctrl-C."""

    def work() -> dict[str, Any]:
        from pipelines.gallery.app import serve_app

        return serve_app(index, model, host, port, approximate)

    run_command(work, lambda result: None, as_json=False)
