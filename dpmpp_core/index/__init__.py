"""A gallery on disk, searched exactly with the masked metric."""

from dpmpp_core.index.gallery import Added, Block, GalleryIndex, ModelVersion, facts
from dpmpp_core.index.search import Found, Where, best, search
from dpmpp_core.index.segments import ROW_SCHEMA, STORED, Stored

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
