"""Resolve `models:/NAME@ALIAS` and `models:/NAME/VERSION`, and fetch the model's folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpmpp_core.errors import ConfigError, WeightsError
from dpmpp_core.models.sources import CARD_FILE, REGISTRY_SCHEME
from pipelines.runtime.storage import cache_folder, sqlite_uri

if TYPE_CHECKING:
    from pipelines.registry.client import Registry

MODEL_URI_PATTERN = re.compile(r"models:/(?P<name>[^/@:]+)(@(?P<alias>[^/@:]+)|/(?P<version>\d+))")
TRACKING_URI_VARIABLES = ("DPMPP_TRACKING_URI", "MLFLOW_TRACKING_URI")


def is_registered(source: str) -> bool:
    """Return whether a model is named as in the registry, not by its location."""
    return source.startswith(REGISTRY_SCHEME)


def get_registry_uri() -> str:
    """Return the registry of the environment, or the file that `dpmpp run` writes in `./runs`.

    Raises:
        ConfigError: the path of the file cannot be written in a URI.
    """
    given = [
        os.environ[variable] for variable in TRACKING_URI_VARIABLES if os.environ.get(variable)
    ]
    variable = TRACKING_URI_VARIABLES[0]
    advice = f"name the registry in the environment variable {variable}"
    return given[0] if given else sqlite_uri(Path("runs").absolute(), advice)


def find_registry(source: str) -> str | None:
    """Return the URI of the registry that holds a model; None if it is named by its location.

    Raises:
        ConfigError: as `get_registry_uri`.
    """
    return get_registry_uri() if is_registered(source) else None


@contextmanager
def use_registry(uri: str | None) -> Iterator[None]:
    """Make `uri` the registry of the environment during the block; None leaves it as it is."""
    if uri is None:
        yield
        return
    variable = TRACKING_URI_VARIABLES[0]
    before = os.environ.get(variable)
    os.environ[variable] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def resolve_model_uri(source: str) -> str:
    """Return `models:/NAME/VERSION` of a name, as its alias may be moved later.

    Raises:
        ConfigError: no such model, alias or version, or no name of either form.
        TrackingError: the registry does not answer.
    """
    registry, number = _find_version(source)
    return f"{REGISTRY_SCHEME}{registry.name}/{number}"


def fetch_registered(source: str) -> Path:
    """Return the model folder of a version, in the cache of this node.

    Raises:
        WeightsError: the files are not those that were registered, or hold no model of ours.
        ConfigError, TrackingError: as `resolve_model_uri`.
    """
    from pipelines.registry.client import FILES, hash_files, translate_errors

    registry, number = _find_version(source)
    stated = registry.version(number).tags.get(FILES)
    key = stated or hashlib.sha256(f"{registry.uri} {registry.name} {number}".encode()).hexdigest()
    cache = cache_folder() / "models" / key
    if cache.is_dir() and stated not in (None, hash_files(cache)):
        shutil.rmtree(cache)  # damaged since
    if not cache.is_dir():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            with translate_errors(registry.uri):
                files = registry.download(number, Path(folder))
            if stated not in (None, hash_files(files)):
                raise WeightsError(f"{source}: its files are not those that were registered")
            if not cache.is_dir():  # others fetch it at the same time
                shutil.move(files, cache)
    cards = list(cache.glob(f"artifacts/*/{CARD_FILE}"))
    if len(cards) != 1:
        raise WeightsError(f"{source} holds no model that `dpmpp run` registered")
    return cards[0].parent


def _find_version(source: str) -> tuple[Registry, int]:
    """Return the registry of a model's name, and the number of the named version."""
    from pipelines.registry.client import Registry, translate_errors

    named = MODEL_URI_PATTERN.fullmatch(source)
    if named is None:
        raise ConfigError(
            f"{source}: a model of the registry is models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    registry = Registry(get_registry_uri(), named["name"])
    with translate_errors(registry.uri):
        if named["version"]:
            return registry, int(registry.version(int(named["version"])).version)
        aliases = registry.aliases()
    if named["alias"] not in aliases:
        there = ", ".join(sorted(aliases)) or "none"
        raise ConfigError(f"{registry.name} has no alias {named['alias']!r}; it has: {there}")
    return registry, aliases[named["alias"]]
