"""Render the results of a search: one self-contained HTML file, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from dpmpp_core.data.headers import ImageError
from dpmpp_core.data.images import Image, decode
from dpmpp_core.data.names import distinguish
from dpmpp_core.data.sightings import show_time
from dpmpp_core.gallery.drawing import draw_trusted
from dpmpp_core.gallery.hits import Hit, read_indexed
from dpmpp_core.gallery.html import load_page_templates, write_page
from dpmpp_core.gallery.queries import QueryEmbeddings

THUMBNAIL_PIXELS = 192  # of the larger side


class QueryAnswer(NamedTuple):
    """A query and its hits.

    Attributes:
        image: its path or URI.
        picture: RGB.
        query: embeddings of this query only.
        hits: best first.
        pid: its person, if known: hits of known persons are then marked as right or wrong.
        person: the name of that one, if there is one.
    """

    image: str
    picture: Image
    query: QueryEmbeddings
    hits: Sequence[Hit]
    pid: int | None = None
    person: str | None = None


class _RenderedAnswer(NamedTuple):
    image: str
    picture: Image
    caption: str
    hits: Sequence[Hit]
    names: list[str]
    thumbnails: list[Image | None]
    person: int | str | None
    marks: list[str]


def write_search_page(path: Path, facts: Mapping[str, str], answers: Sequence[QueryAnswer]) -> None:
    """Write the page: each query, what its mask trusts, its hits.

    Raises:
        OSError: it cannot be written.
    """
    write_page(path, render_search_page(facts, answers))


def render_search_page(facts: Mapping[str, str], answers: Sequence[QueryAnswer]) -> str:
    """Return the page of `write_search_page` as text."""
    title = f"Search: {len(answers)} queries" if len(answers) > 1 else "Search"
    shown = (_prepare_answer(answer) for answer in answers)
    page = _build_environment().get_template("search.html.j2")
    return page.render(title=title, facts=facts, answers=shown)


def render_answer(answer: QueryAnswer) -> str:
    """Return one query and its hits as HTML to put into another page."""
    parts = _build_environment().get_template("answer.html.j2").make_module()
    return Markup("<style>{}{}</style>{}").format(
        parts.light(),  # type: ignore[attr-defined]
        parts.style(),  # type: ignore[attr-defined]
        parts.render_answer(_prepare_answer(answer)),  # type: ignore[attr-defined]
    )


def _prepare_answer(answer: QueryAnswer) -> _RenderedAnswer:
    caption = ""
    if answer.query.visible is not None or answer.query.bands is not None:
        caption = "Dark: not seen to be the person, so not trusted."
    if answer.query.occluded is not None:
        caption += " Red: hides a part of the body, so the encoder leaves it out."
    if answer.query.bands is not None:
        caption += " Bars: how much each band counts."
    thumbnails = [load_thumbnail(hit.image, hit.sha256) for hit in answer.hits]
    picture = draw_trusted(answer.picture, answer.query)
    names = distinguish([hit.image for hit in answer.hits])
    return _RenderedAnswer(
        image=answer.image,
        picture=picture,
        caption=caption,
        hits=answer.hits,
        names=names,
        thumbnails=thumbnails,
        person=answer.person or answer.pid,
        marks=[_mark(hit.pid, answer.pid) for hit in answer.hits],
    )


def _mark(pid: int | None, of_query: int | None) -> str:
    """Return `right` or `wrong`, or nothing where one of the persons is not known."""
    if pid is None or of_query is None:
        return ""
    return "right" if pid == of_query else "wrong"


def load_thumbnail(image: str, sha256: str) -> Image | None:
    """Return a small picture of an index; None if it is gone or another file now."""
    data = read_indexed(image, sha256)
    try:
        picture = None if data is None else decode(data)
    except ImageError:
        return None
    if picture is None:
        return None
    scale = THUMBNAIL_PIXELS / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def format_probability(probability: float) -> str:
    """Return a probability in percent; never 0 or 100, which no calibration can know."""
    if probability < 0.001:
        return "< 0.1 %"
    if probability > 0.999:
        return "> 99.9 %"
    return f"{100 * probability:.1f} %" if probability < 0.1 else f"{100 * probability:.0f} %"


def _build_environment() -> jinja2.Environment:
    environment = load_page_templates()
    environment.filters["chance"] = format_probability
    environment.filters["time"] = show_time
    environment.filters["name"] = lambda image: image.rpartition("/")[2]
    return environment
