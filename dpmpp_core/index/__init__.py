"""A gallery on disk, searched with the masked metric: exactly, or the best by its sketches."""

from dpmpp_core.index.facts import facts
from dpmpp_core.index.gallery import Added, GalleryIndex
from dpmpp_core.index.manifest import ModelVersion
from dpmpp_core.index.search import Found, Where, best, search
from dpmpp_core.index.segments import ROW_SCHEMA, STORED, Block, Stored

__all__ = [
    "ROW_SCHEMA",
    "STORED",
    "Added",
    "Block",
    "Found",
    "GalleryIndex",
    "ModelVersion",
    "Stored",
    "Where",
    "best",
    "facts",
    "search",
]
