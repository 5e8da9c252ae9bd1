"""Indexes and search results for people at a terminal."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from dpmpp_core.redaction import one_line
from pipelines.cli.show import show_hint, show_left_out


def show_added(result: dict[str, Any]) -> None:
    """Print what was added, what was left out, and the index."""
    _print_line(
        f"{result['root']}: {result['added']:,} added, {result['replaced']:,} of them for older "
        f"pictures, {result['known']:,} already known, {result['relabelled']:,} of them with new "
        f"labels, {result['seconds']:.1f} s"
    )
    show_left_out(Console(), result["quarantined"])
    show_hint(Console(), result)
    show_index(result)


def show_index(result: dict[str, Any]) -> None:
    """Print the facts of an index."""
    from dpmpp_core.data.sightings import show_time
    from dpmpp_core.index import show_labels

    if "gone" in result:
        _print_line(f"{result['gone']:,} deleted")
    if "bytes_before" in result:
        _print_line(
            f"{_format_bytes(result['bytes_before'])} before, {_format_bytes(result['bytes'])} now"
        )
    names = result.get("names", {}).get("cameras", {})
    cameras = ", ".join(show_labels(result["cameras"][:20], names))
    cameras += ", ..." if len(result["cameras"]) > 20 else ""
    spaces = ", ".join(f"{space} {width}" for space, width in result["spaces"].items())
    times = (show_time(result[key]) for key in ("first_time", "last_time"))
    facts = {
        "index": result["index"],
        "images": f"{result['images']:,}",
        "persons": f"{result['persons']:,}" if result["persons"] else "not known",
        "cameras": cameras or "not known",
        "times": " to ".join(filter(None, times)) or "not known",
        "size": f"{_format_bytes(result['bytes'])} in {result['segments']} segments, "
        f"{result['stored']}",
        "sketches": f"of {result['sketched']:,} images; `dpmpp index compact` adds what is missing"
        if result["sketched"]
        else "",
        "deleted": f"{result['deleted']:,}; `dpmpp index compact` frees their space"
        if result["deleted"]
        else "",
        "model": f"{result['model']} ({result['weights_sha256'][:12]}; {spaces})",
    }
    for name, value in facts.items():
        if value:
            _print_line(f"{name + ':':10}{value}")


def show_calibration(result: dict[str, Any]) -> None:
    """Print how good the probabilities are, and what thresholds cost."""
    held = result["held_out"]
    _print_line(
        f"fitted on {result['same']:,} pairs of the same person and {result['different']:,} of "
        f"two, of {result['persons']} persons"
    )
    rate = f"{100 * result['base_rate']:g} %"
    for odds, ending in (("even odds", ""), (f"a base rate of {rate}", "_stated")):
        _print_line(
            f"persons not fitted on, at {odds}: log loss {held['log_loss' + ending]:.4f} "
            f"(knowing the base rate only: {held['log_loss_prior' + ending]:.4f}), "
            f"calibration error {100 * held['ece' + ending]:.2f} %"
        )
    table = Table(title="Thresholds on the score")
    for column in ("score", "two persons accepted (%)", "one person refused (%)"):
        table.add_column(column, justify="right")
    for row in result["thresholds"]:
        accepted, refused = 100 * row["false_accept"], 100 * row["false_reject"]
        table.add_row(f"{row['score']:.4f}", f"{accepted:.3g}", f"{refused:.1f}")
    Console().print(table)
    _print_line(f"picture: {result['picture']}")


def show_results(result: dict[str, Any]) -> None:
    """Print one table per query."""
    from dpmpp_core.data.names import distinguish
    from dpmpp_core.data.sightings import show_time

    console = Console()
    images = [hit["image"] for query in result["queries"] for hit in query["hits"]]
    names = dict(zip(images, distinguish(images), strict=True))
    for query in result["queries"]:
        rows = [
            {
                "": str(rank),
                "score": f"{hit['score']:.4f}",
                "same person": _show_probability(hit["probability"]),
                "person": _show_label(hit, "person", "pid"),
                "camera": _show_label(hit, "camera", "camid"),
                "time": show_time(hit["time"]),
                "image": one_line(names[hit["image"]]),
            }
            for rank, hit in enumerate(query["hits"], 1)
        ]
        table = Table()
        # What no hit has, such as times of photographs without, gets no column.
        columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
        for name in columns:
            left = name in ("time", "image")
            table.add_column(name, justify="left" if left else "right", no_wrap=name == "time")
        for row in rows:
            table.add_row(*(row[name] for name in columns))
        _print_line(query["image"])  # a title would be broken to the width of the table
        console.print(table, markup=False)
    if result["approximate"]:
        _print_line(
            f"approximate: {result['scored']:,} of {result['images']:,} images scored; without "
            "--approximate all are scored"
        )
    if result["base_rate"] is None:
        _print_line("no probabilities: `dpmpp index calibrate` fits them")
    else:
        _print_line(
            f"same person: if {100 * result['base_rate']:g} % of the compared pairs show one; "
            "--base-rate changes it"
        )
    show_left_out(console, result["quarantined"])
    show_hint(console, result)
    if "html" in result:
        _print_line(f"page: {result['html']}")


def show_crops(result: dict[str, Any]) -> None:
    """Print what was cut out of each source, and the commands that search it."""
    table = Table(title=one_line(result["root"]), title_justify="left")
    for column in ("camera", "source", "frames", "tracklets", "pictures"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for row in result["cameras"]:
        camera = "" if row["camera"] is None else str(row["camera"])
        counts = (f"{row[key]:,}" for key in ("frames", "tracklets", "crops"))
        table.add_row(camera, one_line(row["source"]), *counts)
    console = Console()
    console.print(table, markup=False)
    show_left_out(console, result["quarantined"])
    out = shlex.quote(result["out"])
    _print_line(f"{result['crops']:,} pictures in {result['out']}, {result['seconds']:.1f} s")
    _print_line("search them:")
    labels = shlex.quote(result["labels"])
    _print_line(f"  dpmpp index build --index GALLERY --data {out} --labels {labels}")
    if result["tracklets"]:
        _print_line(f"  dpmpp search --index GALLERY --query {out}/VIDEO/TRACKLET --tracklet")


def _print_line(text: str) -> None:
    Console().print(one_line(text), highlight=False, soft_wrap=True, markup=False)


def _show_probability(chance: float | None) -> str:
    from dpmpp_core.gallery.pages import format_probability

    return "" if chance is None else format_probability(chance)


def _show_label(hit: dict[str, Any], name: str, number: str) -> str:
    label = hit.get(name, hit[number])
    return "" if label is None else one_line(str(label))


def _format_bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
