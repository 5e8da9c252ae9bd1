"""Self-contained HTML pages: their templates, and pictures inside them; loads no torch."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import jinja2

from dpmpp_core.data.files import write_atomically
from dpmpp_core.data.images import Image

TEMPLATES = Path(__file__).parent / "templates"


def load_page_templates(*folders: Path) -> jinja2.Environment:
    """Load the templates of pages, of these folders and of this one; they escape their values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = encode_data_uri
    return environment


def write_page(path: Path, page: str) -> None:
    """Write a page atomically; OSError if it cannot be written."""
    with write_atomically(path) as file:
        file.write_text(page, encoding="utf-8")


def encode_data_uri(image: bytes | Image) -> str:
    """Return a data URI: PNG, which keeps plots sharp, or JPEG where it halves the size."""
    if isinstance(image, bytes):
        data, kind = image, "png"
    else:
        data, kind = encode_png(image), "png"
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
        if 2 * len(jpeg) < len(data):
            data, kind = jpeg, "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encode_png(image: Image) -> bytes:
    """Encode an RGB uint8 picture [H, W, 3] as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
