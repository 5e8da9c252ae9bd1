"""The page of the web app, which Streamlit runs again at every input.

    streamlit run app_page.py -- INDEX MODEL [approximate]

Pictures that are dropped on it stay in memory; nothing is written.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import streamlit as st

from dpmpp_core.data.headers import IMAGE_ENDINGS
from dpmpp_core.data.images import Image, decode, is_wide
from dpmpp_core.data.scenes import scene_hint
from dpmpp_core.data.sightings import parse_time
from dpmpp_core.errors import UserError
from dpmpp_core.gallery.downloads import write_hits_csv, zip_hits
from dpmpp_core.gallery.pages import QueryAnswer, render_answer
from dpmpp_core.gallery.queries import SHOWN_FRAMES, fuse_queries, tile_frames
from dpmpp_core.index import RowFilter, describe_index, find_number, invert, show_labels
from pipelines.gallery.search import Searcher, find_person

MAX_RESULTS = 200
LOWEST_SCORE = -1.0  # of the metric: no hit is below


class Choices(NamedTuple):
    """What the form states."""

    top: int
    where: RowFilter
    masked: bool
    min_score: float | None
    person: int | None


@st.cache_resource(show_spinner="Opening the index ...")
def open_searcher(index: str, model: str, approximate: bool) -> Searcher:
    """Return the searcher, which all sessions of the app share."""
    return Searcher(index, model, approximate=approximate)


def main() -> None:
    """Show the form, and the results for the dropped pictures."""
    st.set_page_config(page_title="DPM++ search", layout="wide")
    st.html("<style>.stMainBlockContainer { padding-top: 2.5rem; }</style>")
    st.markdown("#### Find a person")
    index, model, *flags = sys.argv[1:]
    searcher = open_searcher(index, model, "approximate" in flags)
    try:
        with st.sidebar:
            choices = ask_choices(searcher)
    except UserError as error:
        st.error(str(error))
        return
    dropped = st.file_uploader(
        "One picture of a person, cut to the person, or several of the same person",
        list(IMAGE_ENDINGS),
        accept_multiple_files=True,
    )
    if not dropped:
        return
    try:
        pictures = [decode(file.getvalue()) for file in dropped]
        answer, facts = find(searcher, pictures, [file.name for file in dropped], choices)
    except UserError as error:
        st.error(str(error))
        return
    hint = scene_hint(sum(map(is_wide, pictures)), len(pictures), "FOLDER")
    if hint:
        st.info(hint)
    st.html(render_answer(answer))
    offer_downloads(answer)
    for label in ("search", "probability"):
        if label in facts:
            st.caption(f"{label.capitalize()}: {facts[label]}")


def ask_choices(searcher: Searcher) -> Choices:
    """Show the form; UserError for a time that is none, or a name that the index does not have."""
    indexed = describe_index(searcher.index)
    facts = searcher.describe(RowFilter(), 0)
    st.caption(f"Index: {facts['index']}  \nModel: {facts['model']}")
    st.caption(f"{indexed['images']:,} images, {len(indexed['cameras'])} cameras")
    top = int(st.number_input("Results", 1, MAX_RESULTS, 20))
    lowest = st.slider("Lowest score", LOWEST_SCORE, 1.0, LOWEST_SCORE, 0.05)
    names = searcher.index.manifest.names
    cameras = st.multiselect(
        "Cameras",
        indexed["cameras"],
        format_func=lambda camera: show_labels([camera], names.cameras)[0],
        placeholder="All",
    )
    since = st.text_input("From (UTC)", placeholder="2026-11-27T14:05")
    until = st.text_input("Until (UTC)", placeholder="2026-11-27T18:00")
    masked = st.checkbox("Use the mask", value=True, help="Off: trust the whole picture.")
    person = None
    if indexed["persons"]:
        given = st.text_input(
            "Person, if known", help="Number or name. Hits are then marked as right or wrong."
        )
        person = find_number(given, names.persons, "person") if given.strip() else None
    where = RowFilter(
        cameras=cameras or None,
        since=parse_time(since) if since else None,
        until=parse_time(until) if until else None,
    )
    return Choices(
        top=top,
        where=where,
        masked=masked,
        min_score=None if lowest == LOWEST_SCORE else lowest,
        person=person,
    )


def find(
    searcher: Searcher, pictures: list[Image], names: list[str], choices: Choices
) -> tuple[QueryAnswer, dict[str, str]]:
    """Search for the person of the pictures; return the answer and the facts of the search."""
    query = searcher.embed(pictures, names, choices.masked)
    picture, name = pictures[0], names[0]
    if len(pictures) > 1:
        picture, query = tile_frames(pictures[:SHOWN_FRAMES]), fuse_queries([query])
        name = f"{name} and {len(names) - 1} more"
    results = searcher.find(query, choices.top, choices.where, choices.min_score)
    person = find_person(choices.person, names[0])
    facts = searcher.describe(choices.where, results.scored, choices.masked, choices.min_score)
    shown = invert(searcher.index.manifest.names.persons).get(person)
    return QueryAnswer(name, picture, query, results.hits[0], person, shown), facts


def offer_downloads(answer: QueryAnswer) -> None:
    """Show the buttons that download the hits: as a table, and as their files."""
    if not answer.hits:
        return
    table, files, _ = st.columns([1, 1, 4])
    table.download_button("Hits (CSV)", write_hits_csv(answer.hits), "hits.csv", "text/csv")
    files.download_button(
        "Pictures (ZIP)", lambda: zip_hits(answer.hits), "hits.zip", "application/zip"
    )


if __name__ == "__main__":  # as Streamlit runs it
    main()
