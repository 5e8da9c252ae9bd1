"""A stage: inputs and configuration in, one committed folder out, reused when nothing changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dpmpp_core
from dpmpp_core.config import fingerprint


class StageNotFoundError(Exception):
    """A stage is not in the storage."""


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: Its name.
        key: Its folder in storage; ends in the hash of everything that determines the content.
        summary: JSON-able figures that it recorded.
        seconds: How long it took to build.
        reused: Whether an earlier run built it.
    """

    name: str
    key: str
    summary: dict[str, Any]
    seconds: float
    reused: bool


def stage_key(name: str, identity: Mapping[str, Any]) -> str:
    """Return `stages/NAME-HASH`: the same for the same identity and package version anywhere."""
    parts = [value for item in sorted(identity.items()) for value in item]
    return f"stages/{name}-{fingerprint(name, dpmpp_core.__version__, *parts)[:16]}"


def training_key(key: str) -> str:
    """Return the folder in which a training stage keeps its checkpoints until it is committed."""
    return key.replace("stages/", "training/", 1)
