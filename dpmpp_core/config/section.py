"""The base class and types of the sections of the configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
TwoOrMore = Annotated[int, Field(ge=2)]

LARGEST = 2**31 - 1  # of whole numbers: valid as a seed of every library


class Section(BaseModel):
    """A frozen section without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _whole_numbers_fit(self) -> Section:
        for name, value in self:
            if isinstance(value, int) and value > LARGEST:
                raise ValueError(f"{name} {value} is larger than {LARGEST}")
        return self
