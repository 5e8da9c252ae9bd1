"""Grids of named variants, which `dpmpp ablate` compares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from dpmpp_core.config.reading import first_problem
from dpmpp_core.config.section import Section
from dpmpp_core.config.shipped import read_named
from dpmpp_core.errors import ConfigError, suggest

FOLDER = "grids"


class Variant(Section):
    """One row of the table."""

    says: str = Field(description="description in a few words")
    after: str | None = Field(None, description="the variant that it changes; null = the recipe")
    set: dict[str, Any] = Field({}, description="section.key: value")


class Grid(Section):
    """Named variants, in the order of the table.

    The others are compared with `full`, which has to beat `plain`. `curves` names the variants
    whose robustness is drawn.
    """

    full: str
    plain: str
    curves: tuple[str, ...] = ()
    variants: Annotated[dict[str, Variant], Field(min_length=2)]

    @model_validator(mode="after")
    def _names(self) -> Grid:
        named = [("full", self.full), ("plain", self.plain)]
        named += [("curves", name) for name in self.curves]
        named += [(f"{n}.after", v.after) for n, v in self.variants.items() if v.after]
        for where, name in named:
            if name not in self.variants:
                raise ValueError(f"{where} names {name!r}{self._others(name)}")
        for name in self.variants:
            list(self._lineage(name))
        return self

    def overrides(self, name: str) -> list[str]:
        """Return the variant's changes to a recipe, for `load_config`; later ones win."""
        changes: dict[str, Any] = {}
        for ancestor in reversed(list(self._lineage(name))):
            changes |= self.variants[ancestor].set
        return [f"{key}={json.dumps(value)}" for key, value in changes.items()]

    def check(self, names: Sequence[str]) -> None:
        """Raise ConfigError for a name that is no variant."""
        for name in names:
            if name not in self.variants:
                raise ConfigError(f"no variant named {name!r}{self._others(name)}")

    def _others(self, name: str) -> str:
        return f"{suggest(name, self.variants)} (variants: {', '.join(self.variants)})"

    def _lineage(self, name: str) -> Iterator[str]:
        seen: list[str] = []
        current: str | None = name
        while current is not None:
            if current in seen:
                raise ValueError(f"{' after '.join((*seen, current))}: a circle")
            seen.append(current)
            yield current
            current = self.variants[current].after


def load_grid(source: str) -> Grid:
    """Read a shipped grid by name or a YAML file by path.

    Raises:
        ConfigError: no such grid; an unknown key or name; a circle of `after`.
    """
    tree = read_named("grid", source, FOLDER)
    try:
        return Grid.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error)}") from None
