"""YAML files that the package ships by name, or a user's by path."""

from __future__ import annotations

from importlib import resources
from typing import Any

from dpmpp_core.config.text import is_file, parse_yaml, read_text, shorten
from dpmpp_core.errors import ConfigError, suggest

RECIPES = resources.files("dpmpp_core") / "recipes"


def shipped_names(folder: str = "") -> list[str]:
    """Return the names of the YAML files in one of the package's folders of recipes, sorted."""
    return sorted(f.name[:-5] for f in (RECIPES / folder).iterdir() if f.name.endswith(".yaml"))


def read_named(kind: str, source: str, folder: str = "") -> Any:
    """Return what a shipped file of this name, or else a file at this path, holds.

    Args:
        kind: what it is, for messages: `grid`.
        source: its name or path.
        folder: below `recipes`; empty = there.

    Raises:
        ConfigError: no such name or file, with the nearest name; a file that is not valid YAML.
    """
    names = shipped_names(folder)
    if source in names:
        text = (RECIPES / folder / f"{source}.yaml").read_text()
    elif is_file(source):
        text = read_text(source)
    else:
        raise ConfigError(
            f"no {kind} or file named {shorten(repr(source))}{suggest(source, names)} "
            f"({kind}s: {', '.join(names)})"
        )
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
