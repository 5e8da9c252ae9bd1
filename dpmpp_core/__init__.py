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
# OpenCV reads its limit when it is imported; headers.MAX_PIXELS refuses such images before.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "50000000")
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
