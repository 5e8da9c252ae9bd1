"""Gates: requirements on a registered model before it becomes the champion."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, PositiveInt, ValidationError, model_validator

from dpmpp_core.config.reading import first_problem
from dpmpp_core.config.section import NonNegative, Positive, Probability, Section, TwoOrMore
from dpmpp_core.config.shipped import read_named
from dpmpp_core.config.text import shorten
from dpmpp_core.errors import ConfigError, suggest

FOLDER = "gates"
QUERY_SETS = ("occluded", "holistic")
FIGURES = ("mAP", "rank1", "rank5", "rank10")


class Gate(Section):
    """Bounds of a promotion; null and `{}` switch a check off.

    Figures are fractions in [0, 1], of ranking with masks. `occluded.mAP` is that of one query set,
    which must exist; `mAP` that of every query set.
    """

    model_config = ConfigDict(strict=True)

    floors: dict[str, Probability] = Field({}, description="figure: the least that is enough")
    no_worse: dict[str, Probability] = Field(
        {},
        description="figure: margin; the 95 % interval of the difference to the champion, over "
        "query identities, must lie above -margin",
    )
    identities: TwoOrMore = Field(20, description="least number of query persons, for the interval")
    draws: PositiveInt = Field(10_000, description="bootstrap samples of the interval")
    mask_std: Positive | None = Field(0.01, description="least std of a mask between queries")
    dataset: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = Field(
        None, description="identity of the data set it must be measured on, or its beginning"
    )
    reproduce: NonNegative | None = Field(
        0.005,
        description="largest difference of mAP and rank-1 to those registered, when a new process "
        "loads the version and embeds the evaluation's images; null = it is not loaded",
    )
    latency_ms: Positive | None = Field(None, description="median per picture on this machine")
    size_mb: Positive | None = Field(None, description="all files of the version, in 10^6 bytes")

    @model_validator(mode="after")
    def _go_together(self) -> Gate:
        for section in ("floors", "no_worse"):
            for name in getattr(self, section):
                query_set, _, figure = name.rpartition(".")
                if figure not in FIGURES or query_set not in ("", *QUERY_SETS):
                    names = [
                        f"{s}.{f}".removeprefix(".") for s in ("", *QUERY_SETS) for f in FIGURES
                    ]
                    raise ValueError(f"{section}.{name}: no such figure{suggest(name, names)}")
        if self.latency_ms is not None and self.reproduce is None:
            raise ValueError("latency_ms needs reproduce: a version that is not loaded has none")
        return self


def load_gate(source: str = "default") -> Gate:
    """Read a shipped gate by name or a YAML file by path.

    Raises:
        ConfigError: no such gate; an unknown key or figure, with the nearest one; a wrong value.
    """
    tree = read_named("gate", source, FOLDER)
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a mapping is needed, not {type(tree).__name__}")
    for key in tree:
        if key not in Gate.model_fields:
            hint = suggest(str(key), Gate.model_fields)
            raise ConfigError(f"{source}: unknown key {shorten(repr(key))}{hint}")
    try:
        return Gate.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error)}") from None
