"""DPM++: occluded person re-identification by a dynamic masked metric. The method itself.

Photos without labels: `Index.build(photos).search(picture)`. Single pictures: `load_model()`
returns a model whose `embed(pictures)` computes features and masks, which `similarity` compares;
`masked_topk` ranks them, `evaluate` measures rankings.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpmpp_core.config import Config, load_config
    from dpmpp_core.gallery.index import Index
    from dpmpp_core.gallery.matches import Matches
    from dpmpp_core.models.embedded import Embedded
    from dpmpp_core.models.reid import ReidModel, load_model
    from dpmpp_core.retrieval import Embeddings, evaluate, masked_similarity, masked_topk

__version__ = "0.2.0"
_MAX_PIXELS = 50_000_000  # as data.headers.MAX_PIXELS, which refuses such images by their header
_MODULES = {
    "Config": "config", "Embedded": "models.embedded", "Embeddings": "retrieval",
    "Index": "gallery.index", "Matches": "gallery.matches", "ReidModel": "models.reid",
    "evaluate": "retrieval", "load_config": "config", "load_model": "models.reid",
    "masked_similarity": "retrieval", "masked_topk": "retrieval",
}  # fmt: skip
__all__ = [
    "Config", "Embedded", "Embeddings", "Index", "Matches", "ReidModel", "evaluate", "load_config",
    "load_model", "masked_similarity", "masked_topk",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use, as most modules load torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'dpmpp_core' has no attribute {name!r}")
    return getattr(import_module(f"dpmpp_core.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _limit_opencv() -> None:
    """Keep OpenCV from decoding more pixels than ours, also where the environment allows more.

    OpenCV reads its limit once, when it is imported. A program that imported it before keeps its
    own; the checks of headers hold there too.
    """
    given = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "")
    if not given.isdecimal() or int(given) > _MAX_PIXELS:
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(_MAX_PIXELS)


_limit_opencv()
