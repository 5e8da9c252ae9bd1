"""DPM++: occluded person re-identification by a dynamic masked metric. The method itself.

`load_model(path)` returns a model whose `embed(images)` computes features and masks;
`masked_similarity` scores them, `masked_topk` ranks them, `evaluate` measures rankings.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpmpp_core.config import Config, load_config
    from dpmpp_core.models.reid import ReidModel, load_model
    from dpmpp_core.occlusion import oiou, transfer_patches
    from dpmpp_core.retrieval import Embeddings, evaluate, masked_similarity, masked_topk

__version__ = "0.2.0"
# OpenCV reads its limit when it is imported; headers.MAX_PIXELS refuses such images before.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "50000000")
__all__ = [
    "Config", "Embeddings", "ReidModel", "evaluate", "load_config", "load_model",
    "masked_similarity", "masked_topk", "oiou", "transfer_patches",
]  # fmt: skip
_MODULES = {
    "Config": "config", "load_config": "config", "oiou": "occlusion",
    "transfer_patches": "occlusion", "ReidModel": "models.reid", "load_model": "models.reid",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use, as most modules load torch."""
    if name not in __all__:
        raise AttributeError(f"module 'dpmpp_core' has no attribute {name!r}")
    return getattr(import_module(f"dpmpp_core.{_MODULES.get(name, 'retrieval')}"), name)
