"""DPM++: occluded person re-identification by a dynamic masked metric. The method itself.

`load_model(path)` gives an object whose `embed(images)` returns features and masks;
`dpmpp_core.retrieval` ranks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dpmpp_core.models.reid import ReidModel

__version__ = "0.1.0"


def load_model(path: str | Path, device: str = "cpu") -> ReidModel:
    """Read a saved model; see `dpmpp_core.models.reid.load_model`."""
    from dpmpp_core.models.reid import load_model as load  # torch only when it is needed

    return load(path, device)
