"""YAML of a user: plain values in one tree, without code, aliases and repeated keys."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from dpmpp_core.errors import ConfigError
from dpmpp_core.redaction import one_line

MAX_BYTES = 2**20  # of a file; a configuration has a few thousand
MAX_DEPTH = 20  # of nested values
MAX_SHOWN = 200  # characters of a value in a message


class _Plain(yaml.SafeLoader):
    """Refuses features of YAML that a configuration does not need.

    These are aliases, by which ten lines unfold to gigabytes; repeated keys, of which one would be
    lost silently; unlimited nesting.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        where = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", where)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            problem = f"values are nested more than {MAX_DEPTH} deep"
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


# YAML 1.1 reads 010 as 8, 1:30 as 90 and 0x10 as 16; here a number is decimal, or no number.
_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse a YAML text. Raises ValueError, in one line, for anything else."""
    try:
        return yaml.load(text, _Plain)  # a SafeLoader: tags of objects are refused
    # Constructors raise these for `!!int x`, `!!bool x`, 2001-99-99 or a number of 5,000 digits.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(shorten(one_line(str(error)), 2 * MAX_SHOWN)) from None


def read_text(path: str) -> str:
    """Read a user's file; ConfigError if unreadable, over MAX_BYTES (1 MiB) or not in UTF-8."""
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
    """Return whether a file exists; False for names that no file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def shorten(text: str, length: int = MAX_SHOWN) -> str:
    """Shorten a text to `length` characters, for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
