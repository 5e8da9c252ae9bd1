"""The page of the web app, which Streamlit runs again at every input.

    streamlit run app_page.py -- INDEX MODEL [approximate]

Pictures that are dropped on it stay in memory; nothing is written.
"""

from __future__ import annotations

import sys

import streamlit as st

from dpmpp_core.data.images import decode, is_wide
from dpmpp_core.data.scenes import scene_hint
from dpmpp_core.data.sightings import parse_time
from dpmpp_core.errors import UserError
from dpmpp_core.index import RowFilter, describe_index
from pipelines.gallery.pages import QueryAnswer, render_answer
from pipelines.gallery.search import Searcher

MAX_RESULTS = 200


@st.cache_resource(show_spinner="Opening the index ...")
def open_searcher(index: str, model: str, approximate: bool) -> Searcher:
    """Return the searcher, which all sessions of the app share."""
    return Searcher(index, model, approximate=approximate)


def main() -> None:
    """Show the form, and the results for a dropped picture."""
    st.set_page_config(page_title="DPM++ search", layout="wide")
    st.html("<style>.stMainBlockContainer { padding-top: 2.5rem; }</style>")
    st.markdown("#### Find a person")
    index, model, *flags = sys.argv[1:]
    searcher = open_searcher(index, model, "approximate" in flags)
    indexed = describe_index(searcher.index)
    with st.sidebar:
        st.caption(f"{indexed['images']:,} images, {len(indexed['cameras'])} cameras")
        top = int(st.number_input("Results", 1, MAX_RESULTS, 20))
        cameras = st.multiselect("Cameras", indexed["cameras"], placeholder="All")
        since = st.text_input("From (UTC)", placeholder="2026-11-27T14:05")
        until = st.text_input("Until (UTC)", placeholder="2026-11-27T18:00")
        masked = st.checkbox("Use the mask", value=True, help="Off: trust the whole picture.")
    dropped = st.file_uploader(
        "A picture of one person, cut to the person",
        ["jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "avif", "heic", "heif"],
    )
    if dropped is None:
        return
    try:
        where = RowFilter(
            cameras=cameras or None,
            since=parse_time(since) if since else None,
            until=parse_time(until) if until else None,
        )
        picture = decode(dropped.getvalue())
        query = searcher.embed([picture], [dropped.name], masked)
        results = searcher.find(query, top, where)
    except UserError as error:
        st.error(str(error))
        return
    hint = scene_hint(is_wide(picture), 1, "FOLDER")
    if hint:
        st.info(hint)
    st.html(render_answer(QueryAnswer(dropped.name, picture, query, results.hits[0])))
    facts_shown = searcher.describe(where, results.scored)
    if "search" in facts_shown:
        st.caption("Search: " + facts_shown["search"])
    st.caption("Probability: " + facts_shown["probability"])


main()
