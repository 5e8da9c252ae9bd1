"""What each configuration key means, for people: descriptions, types, allowed values."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from dpmpp_core.config.reading import config_keys, suggest_key
from dpmpp_core.config.sections import Config
from dpmpp_core.errors import ConfigError, suggest

TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
COMMENT_WIDTH = 96


@dataclass(frozen=True)
class KeyDescription:
    """A configuration key.

    Attributes:
        key: as in an override, `metric.epochs`.
        type: such as `whole number` or `text or null`.
        allowed: bounds or choices; empty = any value of the type.
        values: all that can be given, where they are few: choices, true and false, null.
        default: a JSON value.
    """

    key: str
    description: str
    type: str
    allowed: str
    values: tuple[str, ...]
    default: Any


def describe_keys(name: str | None = None) -> list[KeyDescription]:
    """Return the keys that `name` means, in the order of definition.

    Args:
        name: a key, or a section for all keys in it; None = every key.

    Raises:
        ConfigError: no such key or section, with the nearest one.
    """
    keys = list(config_keys())
    chosen = [k for k in keys if name is None or k == name or k.startswith(f"{name}.")]
    if name is not None and not chosen:
        sections = sorted({key.rsplit(".", 1)[0] for key in keys if "." in key})
        hint = suggest(name, sections, cutoff=0.8) or suggest_key(name)
        raise ConfigError(f"no configuration key or section {name!r}{hint}")
    schema = Config.model_json_schema()
    return [_describe(key, schema) for key in chosen]


def _describe(key: str, schema: Mapping[str, Any]) -> KeyDescription:
    section: Mapping[str, Any] = schema
    kind: type[BaseModel] = Config
    *parents, leaf = key.split(".")
    for parent in parents:
        kind = kind.model_fields[parent].annotation  # type: ignore[assignment]
        section = schema["$defs"][kind.__name__]
    field = section["properties"][leaf]
    return KeyDescription(
        key=key,
        description=kind.model_fields[leaf].description or "",
        type=_describe_type(field),
        allowed=_describe_allowed(field),
        values=_list_values(field),
        default=field["default"],
    )


def _describe_type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_describe_type(option) for option in field["anyOf"])
    if field["type"] != "array":
        return TYPES[field["type"]]
    items = field["prefixItems"] if "prefixItems" in field else [field["items"]]
    count = f"{len(items)} " if "prefixItems" in field else ""
    return f"list of {count}{TYPES[items[0]['type']]}s".replace("texts", "text values")


def _describe_allowed(field: Mapping[str, Any]) -> str:
    options = [option for option in field.get("anyOf", [field]) if option["type"] != "null"]
    (option,) = options
    if option["type"] == "array":
        items = option["prefixItems"][0] if "prefixItems" in option else option["items"]
        each = _describe_allowed(items)
        return f"each {each}" if each else ""
    if "enum" in option:
        return ", ".join(option["enum"])
    if "pattern" in option:
        return f"as the regular expression {option['pattern']}"
    return ", ".join(
        text.format(f"{option[bound]:g}") for bound, text in BOUNDS.items() if bound in option
    )


def _list_values(field: Mapping[str, Any]) -> tuple[str, ...]:
    values: list[str] = []
    for option in field.get("anyOf", [field]):
        values += option.get("enum", ())
        values += {"boolean": ["true", "false"], "null": ["null"]}.get(option["type"], [])
    return tuple(values)


def render_commented(config: Config) -> str:
    """Return a configuration as YAML, with a comment before each key and section.

    `load_config` reads the same configuration from it.
    """
    return "\n".join(_comment(config, indent="")) + "\n"


def _comment(section: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            sentence = (inspect.getdoc(type(value)) or "").splitlines()[0]
            yield from ([] if indent else [""])
            yield from _wrap(sentence, indent)
            yield f"{indent}{name}:"
            yield from _comment(value, indent + "  ")
        else:
            yield from _wrap(field.description or "", indent)
            plain = section.model_dump(mode="json", include={name})
            flow = None if isinstance(plain[name], list) else False  # lists in one line
            text = yaml.safe_dump(plain, default_flow_style=flow, width=float("inf"))
            yield textwrap.indent(text.rstrip("\n"), indent)


def _wrap(text: str, indent: str) -> list[str]:
    lines = textwrap.wrap(text, COMMENT_WIDTH - len(indent), break_long_words=False)
    return [f"{indent}# {line}" for line in lines]
