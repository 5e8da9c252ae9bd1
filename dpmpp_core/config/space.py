"""Search spaces: the configuration keys that `dpmpp tune` may change, and their bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from dpmpp_core.config.reading import config_keys, first_problem, load_config
from dpmpp_core.config.section import Section
from dpmpp_core.config.sections import Config
from dpmpp_core.config.shipped import read_named
from dpmpp_core.errors import ConfigError, suggest

FOLDER = "spaces"
# Data, evaluation and resources must be the same for all trials.
FIXED = ("name", "seed", "data.", "pretrain.", "evaluation.", "cluster.", "tracking.")


class Range(Section):
    """Numbers between two bounds, both of which can be drawn."""

    low: float
    high: float
    log: bool = Field(False, description="draw the logarithm evenly")
    whole: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _bounds(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm: a range with log starts above 0")
        if self.whole and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError("a whole range has whole bounds")
        return self

    @property
    def examples(self) -> tuple[float, ...]:
        """Values whose validity implies that of all."""
        return tuple(int(x) if self.whole else x for x in (self.low, self.high))

    def contains(self, value: Any) -> bool:
        """Return whether a configuration's value could have been drawn."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high


class Choices(Section):
    """One of several values."""

    choices: Annotated[tuple[Any, ...], Field(min_length=2)]

    @property
    def examples(self) -> tuple[Any, ...]:
        """As of `Range`."""
        return self.choices

    def contains(self, value: Any) -> bool:
        """Return whether a configuration's value could have been drawn."""
        return value in self.choices


Parameter = Range | Choices
_PARAMETERS = TypeAdapter(Annotated[dict[str, dict[str, Any]], Field(min_length=1)])


class Space(Mapping[str, Parameter]):
    """Configuration key -> what may be drawn for it, in the order of the file."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = dict(parameters)

    def __getitem__(self, key: str) -> Parameter:
        return self._parameters[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def check(self, recipe: str, overrides: list[str]) -> None:
        """Raise ConfigError unless the recipe is valid with every bound and choice."""
        for key, parameter in self.items():
            for value in parameter.examples:
                try:
                    load_config(recipe, [*overrides, *as_overrides({key: value})])
                except ConfigError as error:
                    raise ConfigError(f"search space, {key}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Return the space as JSON-able values."""
        return {key: parameter.model_dump(mode="json") for key, parameter in self.items()}


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Format {dotted key: JSON-able value} as the overrides `key=value` of `load_config`."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def apply_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return the configuration with the values of some keys replaced.

    Raises:
        ConfigError: values that are each valid exclude each other.
    """
    tree = config.model_dump(mode="json")
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[leaf] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{config.name}: {first_problem(error)}") from None


def load_space(source: str) -> Space:
    """Read a shipped space by name or a YAML file by path: `key: {low, high}` or `{choices}`.

    Raises:
        ConfigError: no such space; an unknown key, or one that must not differ between trials;
            invalid bounds.
    """
    tree = read_named("search space", source, FOLDER)
    try:
        read = _PARAMETERS.validate_python(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error)}") from None
    return Space({key: _parameter(source, key, values) for key, values in read.items()})


def _parameter(source: str, key: str, values: dict[str, Any]) -> Parameter:
    known = [name for name in config_keys() if not name.startswith(FIXED)]
    if key.startswith(FIXED) and key in set(config_keys()):
        raise ConfigError(
            f"{source}: {key} decides what a trial is measured on or where it runs, which must be "
            "the same for all trials"
        )
    if key not in known:
        raise ConfigError(f"{source}: unknown configuration key {key!r}{suggest(key, known)}")
    try:
        return Choices.model_validate(values) if "choices" in values else Range(**values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {key}: {first_problem(error)}") from None
