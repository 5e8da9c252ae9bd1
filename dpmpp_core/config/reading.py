"""Recipes and overrides -> one validated `Config`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dpmpp_core.config.section import LARGEST
from dpmpp_core.config.sections import Config
from dpmpp_core.config.shipped import read_named, shipped_names
from dpmpp_core.config.text import parse_yaml, shorten
from dpmpp_core.errors import ArgumentError, ConfigError, suggest


def recipe_names() -> list[str]:
    """Return the names of the recipes shipped with the package."""
    return shipped_names()


def load_config(source: str = "demo", overrides: Sequence[str] = ()) -> Config:
    """Read a recipe by name or a YAML file by path, apply `section.key=value` overrides, validate.

    A YAML file may start from a shipped recipe with a top-level `extends: NAME`.
    Values of overrides are read as YAML (`metric.epochs=3`, `metric.milestones=[10,20]`); those of
    text keys are taken as they are, unless quoted or `null`.

    Raises:
        ConfigError: an unknown recipe, key or value; names it and the nearest valid one.
    """
    tree = _read_tree(source)
    for override in overrides:
        _apply_override(tree, override)
    _refuse_unknown_keys(tree, source)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error)}") from None


def _read_tree(source: str, children: tuple[str, ...] = ()) -> dict[str, Any]:
    tree = read_named("recipe", source) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a mapping of sections is needed, not {type(tree).__name__}")
    tree.setdefault("name", source if source in recipe_names() else Path(source).stem)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    lineage = (*children, source)
    if parent in lineage:
        raise ConfigError(f"{' extends '.join((*lineage, parent))}: a circle")
    return _merge(_read_tree(str(parent), lineage), tree)


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: write it as section.key=value")
    try:
        value = text.strip() if _is_plain_text(key.strip(), text) else parse_yaml(text)
    except ValueError as error:
        given, value = shorten(repr(override)), shorten(repr(text))
        raise ConfigError(f"override {given}: {value} is not a YAML value: {error}") from None
    *sections, leaf = key.strip().split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
        tree = child
    tree[leaf] = value


def _is_plain_text(key: str, value: str) -> bool:
    """Return whether a value is taken as it is: of a text key, neither quoted, tagged nor null."""
    section: Any = Config
    for name in key.split("."):
        fields = getattr(section, "model_fields", {})
        section = fields[name].annotation if name in fields else None
    is_text = section is str or section == (str | None)
    value = value.strip()
    return is_text and value.isprintable() and value[:1] not in ("", *"'\"!~") and value != "null"


def _refuse_unknown_keys(tree: Mapping[str, Any], source: str) -> None:
    valid = set(config_keys())
    sections = {key.rsplit(".", 1)[0] for key in valid if "." in key}
    for key in _tree_keys(tree):
        if key not in valid and key not in sections:
            raise ConfigError(f"{source}: unknown configuration key {key!r}{suggest_key(key)}")


def suggest_key(key: str) -> str:
    """Return the nearest configuration key as a hint for a message, as `suggest` does."""
    valid = sorted(config_keys())
    leaf = key.rsplit(".", 1)[-1]
    elsewhere = [name for name in valid if name.rsplit(".", 1)[-1] == leaf]
    cutoff = 0.0 if elsewhere else 0.5  # a valid leaf in a wrong section is the best hint
    return suggest(key, elsewhere or valid, cutoff)


def config_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that holds a value, in the order of definition."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from config_keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _tree_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _tree_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def first_problem(error: ValidationError) -> str:
    """Format the first problem of a validation for a message."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f" (it is {shorten(repr(given))})"
    if not key:  # a fault of sections that do not go together: the message names them
        return message
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 (hex) of JSON-able values and sections, the same on any machine."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse `0,1,2` to (0, 1, 2); ArgumentError for anything else, or a repeated seed."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ArgumentError(f"--seeds {text!r}: write whole numbers with commas between, as 0,1,2")
    if any(len(part) > 10 or int(part) > LARGEST for part in parts):
        raise ArgumentError(f"--seeds {shorten(repr(text))}: a seed is larger than {LARGEST}")
    seeds = tuple(int(part) for part in parts)
    if len(set(seeds)) < len(seeds):
        raise ArgumentError(
            f"--seeds {text!r}: a seed comes twice, which would count one run twice"
        )
    return seeds
