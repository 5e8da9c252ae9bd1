"""The page of the web app, which Streamlit runs anew whenever somebody does something.

    streamlit run app_page.py -- INDEX MODEL [approximate]

Pictures that are dropped on it stay in memory; nothing is written.
"""

from __future__ import annotations

import sys

import streamlit as st

from dpmpp_core.data.images import decode
from dpmpp_core.data.sightings import parse_time
from dpmpp_core.errors import UserError
from dpmpp_core.index import Where, facts
from pipelines.gallery.pages import QueryAnswer, render_answer
from pipelines.gallery.search import Searcher

MOST = 200


@st.cache_resource(show_spinner="Opening the index ...")
def opened(index: str, model: str, approximate: bool) -> Searcher:
    return Searcher(index, model, approximate=approximate)


def main() -> None:
    st.set_page_config(page_title="DPM++ search", layout="wide")
    st.html("<style>.stMainBlockContainer { padding-top: 2.5rem; }</style>")
    st.markdown("#### Find a person")
    index, model, *how = sys.argv[1:]
    searcher = opened(index, model, "approximate" in how)
    known = facts(searcher.index)
    with st.sidebar:
        st.caption(f"{known['images']:,} images, {len(known['cameras'])} cameras")
        top = int(st.number_input("Results", 1, MOST, 20))
        cameras = st.multiselect("Cameras", known["cameras"], placeholder="All")
        since = st.text_input("From (UTC)", placeholder="2026-11-27T14:05")
        until = st.text_input("Until (UTC)", placeholder="2026-11-27T18:00")
    dropped = st.file_uploader(
        "A picture of one person, cut to the person", ["jpg", "jpeg", "png", "bmp", "tif", "tiff"]
    )
    if dropped is None:
        return
    try:
        where = Where(
            cameras=cameras or None,
            since=parse_time(since) if since else None,
            until=parse_time(until) if until else None,
        )
        picture = decode(dropped.getvalue())
        asked = searcher.ask([picture], [dropped.name])
        found = searcher.find(asked, top, where)
    except UserError as error:
        st.error(str(error))
        return
    st.html(render_answer(QueryAnswer(dropped.name, picture, asked, found.hits[0])))
    told = searcher.facts(where, found.scored)
    if "search" in told:
        st.caption("Search: " + told["search"])
    st.caption("Probability: " + told["probability"])


main()
