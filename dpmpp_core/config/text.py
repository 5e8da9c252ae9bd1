"""YAML of a user: plain values in one tree, nothing that runs, unfolds or hides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import one_line

MAX_BYTES = 2**20  # of a file; a configuration has a few thousand
DEEPEST = 20  # values inside values
SHOWN = 200  # characters of a value in a message


class _Plain(yaml.SafeLoader):
    """Refuses what YAML allows but a configuration has no use for.

    Aliases, by which ten lines unfold to gigabytes; the same key twice, of which one would be lost
    silently; values inside values without end.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        where = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", where)
        self.depth += 1
        if self.depth > DEEPEST:
            problem = f"values are nested more than {DEEPEST} deep"
            raise yaml.composer.ComposerError(None, None, problem, where)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        counts = Counter(key.value for key in keys)
        for key in keys:
            if counts[key.value] > 1:
                problem = f"the key {key.value!r} stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds. Raises ValueError, in one line, for anything else."""
    try:
        return yaml.load(text, _Plain)  # a SafeLoader: tags of objects are refused
    # What the constructors of `!!int x`, `!!bool x`, 2001-99-99 or a number of 5,000 digits raise.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(shorten(one_line(str(error)), 2 * SHOWN)) from None


def read_text(path: str) -> str:
    """A user's file; ConfigError if it cannot be read, is large, or no text."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 2**20} MiB, so no configuration")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None


def is_file(path: str) -> bool:
    """Whether a file is there; False for names that no file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def shorten(text: str, length: int = SHOWN) -> str:
    """At most `length` characters of a text, for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
