"""A stage: inputs and configuration in, one committed folder out, reused when nothing changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dpmpp_core
from dpmpp_core.config import fingerprint


class StageNotFoundError(Exception):
    """A stage was to be found, and is not there."""


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: its name.
        key: its folder in storage; ends in the hash of everything that decides the content.
        summary: JSON-able figures that it recorded.
        seconds: what it took when it was made.
        reused: whether it was found, not made, by this run.
    """

    name: str
    key: str
    summary: dict[str, Any]
    seconds: float
    reused: bool


def stage_key(name: str, identity: Mapping[str, Any]) -> str:
    """`stages/NAME-HASH`: the same identity and package version give the same key anywhere."""
    parts = [value for item in sorted(identity.items()) for value in item]
    return f"stages/{name}-{fingerprint(name, dpmpp_core.__version__, *parts)[:16]}"


def training_key(key: str) -> str:
    """Where a training stage keeps its checkpoints until it is committed."""
    return key.replace("stages/", "training/", 1)
