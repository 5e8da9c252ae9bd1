"""Render the results of a search: one self-contained HTML file, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from dpmpp_core.data.images import Image
from dpmpp_core.data.inspection import inspect_picture
from dpmpp_core.data.names import distinguish
from dpmpp_core.data.sightings import show_time
from pipelines.gallery.search import Hit
from pipelines.inference.queries import QueryEmbeddings
from pipelines.reporting.figures import tint_patches
from pipelines.reporting.html import load_templates, write_page

THUMBNAIL_PIXELS = 192  # of the larger side
QUERY_SIZE = 256, 128  # height and width of a query
BAR_PIXELS = 46  # width of the bars of bands
PAPER, BAR, EMPTY = (255, 255, 255), (0, 114, 178), (208, 215, 222)


class QueryAnswer(NamedTuple):
    """A query and its hits.

    Attributes:
        image: its path or URI.
        picture: RGB.
        query: embeddings of this query only.
        hits: best first.
    """

    image: str
    picture: Image
    query: QueryEmbeddings
    hits: Sequence[Hit]


class _RenderedAnswer(NamedTuple):
    image: str
    picture: Image
    caption: str
    hits: Sequence[Hit]
    names: list[str]
    thumbnails: list[Image | None]


def write_search_page(path: Path, facts: Mapping[str, str], answers: Sequence[QueryAnswer]) -> None:
    """Write the page: each query, what its mask trusts, its hits.

    Raises:
        OSError: it cannot be written.
    """
    title = f"Search: {len(answers)} queries" if len(answers) > 1 else "Search"
    shown = (_prepare_answer(answer) for answer in answers)
    page = _build_environment().get_template("search.html.j2")
    write_page(path, page.render(title=title, facts=facts, answers=shown))


def render_answer(answer: QueryAnswer) -> str:
    """Return one query and its hits as HTML to put into another page."""
    parts = _build_environment().get_template("answer.html.j2").make_module()
    return Markup("<style>{}{}</style>{}").format(
        parts.light(),  # type: ignore[attr-defined]
        parts.style(),  # type: ignore[attr-defined]
        parts.render_answer(_prepare_answer(answer)),  # type: ignore[attr-defined]
    )


def draw_trusted(picture: Image, query: QueryEmbeddings) -> Image:
    """Draw a query, and next to it the query with the parts dark that do not show the person.

    Patches that were masked from attention are red.

    With bands there is one bar per band: its trust, relative to the most trusted one. A model with
    neither gives the picture only.
    """
    height, width = QUERY_SIZE
    method = cv2.INTER_AREA if picture.shape[0] > height else cv2.INTER_CUBIC
    plain = cv2.resize(picture, (width, height), interpolation=method).astype(np.uint8)
    cells = [plain]
    if query.visible is not None:
        light = cv2.resize(query.visible[0], (width, height), interpolation=cv2.INTER_LINEAR)
        shade = 0.15 + 0.85 * np.clip(light, 0, 1)
        cells.append((plain * shade[..., None]).astype(np.uint8))
    if query.occluded is not None:
        shown = cells.pop() if len(cells) > 1 else plain
        cells.append(tint_patches(shown, query.occluded[0]))
    if query.bands is not None:
        cells.append(_draw_bars(query.bands[0]))
    gap = np.full((height, 6, 3), PAPER, np.uint8)
    joined = [part for cell in cells for part in (cell, gap)][:-1]
    return np.concatenate(joined, axis=1)


def _draw_bars(bands: np.ndarray) -> Image:
    height = QUERY_SIZE[0]
    canvas = np.full((height, BAR_PIXELS, 3), PAPER, np.uint8)
    edges = np.linspace(0, height, len(bands) + 1).round().astype(int)
    for share, top, bottom in zip(bands / bands.max(), edges[:-1], edges[1:], strict=True):
        canvas[top + 2 : bottom - 2] = EMPTY
        canvas[top + 2 : bottom - 2, : round(BAR_PIXELS * float(share))] = BAR
    return canvas


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
    return _RenderedAnswer(answer.image, picture, caption, answer.hits, names, thumbnails)


def load_thumbnail(image: str, sha256: str) -> Image | None:
    """Return a small picture of an index; None if it is gone or another file now.

    The hash also prevents that a foreign index shows other pictures of this machine than those
    that its author had.
    """
    root, _, name = image.rpartition("/")
    row, picture = inspect_picture(root or "/", name)
    if picture is None or row["sha256"] != sha256:
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
    environment = load_templates()
    environment.filters["chance"] = format_probability
    environment.filters["time"] = show_time
    environment.filters["name"] = lambda image: image.rpartition("/")[2]
    return environment
