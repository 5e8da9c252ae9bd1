"""The options of a pipeline; it loads nothing, so that the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpmpp_core.data.synthesis import Band, Part
    from pipelines.stages.synthesis import SynthesisRequest


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a pipeline; see `dpmpp run --help`.

    Attributes:
        model: a saved model to measure in place of training one.
        bands, parts: shares of the person, and the parts, that `robustness` occludes; empty = all.
        synthesis: the data set that the stage `synthesis` writes.
    """

    data: str | None = None
    config: str = "demo"
    overrides: list[str] = field(default_factory=list)
    storage: str = "runs"
    tracking_uri: str | None = None
    address: str | None = None
    fresh: bool = False
    model: str | None = None
    bands: tuple[Band, ...] = ()
    parts: tuple[Part, ...] = ()
    synthesis: SynthesisRequest | None = None
