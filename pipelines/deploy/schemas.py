"""Check objects against the schemas of their kinds, strictly: an unknown field is an error.

KubeRay's come from the files of its CRDs (`KUBERAY_CRDS`, a folder of YAML), Kubernetes' own from
the package kubernetes-validate.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dpmpp_core.errors import ConfigError, suggest
from pipelines.deploy.render import Object, format_name

METADATA_FIELDS = {"name", "generateName", "namespace", "labels", "annotations", "finalizers"}
INTEGER_LIMITS = {"int32": 2**31 - 1, "int64": 2**63 - 1}


@dataclass(frozen=True)
class Problem:
    """A mistake in an object: where, and what would be right."""

    thing: str  # Kind/name
    path: str  # spec.workerGroupSpecs[0].maxReplicas; empty = all of it
    message: str

    def __str__(self) -> str:
        return f"{self.thing} {self.path}: {self.message}".replace(" : ", ": ")


def check_schema(thing: Object, crds: Path | None) -> list[Problem]:
    """Return what the schema of the object's kind refuses.

    Args:
        thing: the object.
        crds: folder of KubeRay's CRDs; None = its objects are only checked by rules.

    Raises:
        ConfigError: no such folder, or CRDs that lack the kind or version.
    """
    version, kind = str(thing.get("apiVersion")), str(thing.get("kind"))
    if version.startswith("ray.io/"):
        if crds is None:
            return []
        validator = _load_crd_validator(crds, kind, version.removeprefix("ray.io/"))
    else:
        validator = _load_kubernetes_validator(kind, version)
        if validator is None:
            return [Problem(format_name(thing), "", f"no schema of {version} {kind} is known")]
    plain = _drop_nulls(thing)
    return [
        Problem(format_name(thing), format_path(error.absolute_path), _format_error(error))
        for error in sorted(validator.iter_errors(plain), key=lambda e: str(e.absolute_path))
    ] + [
        Problem(format_name(thing), *duplicate)
        for duplicate in _find_duplicates(plain, validator.schema, [])
    ]


@cache
def _load_crd_validator(folder: Path, kind: str, version: str) -> Any:
    """Return a validator of the kind's CRD."""
    from jsonschema import Draft202012Validator

    path = folder / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no {path.name}: take config/crd/bases of KubeRay's release"
        )
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    for served in versions:
        if served["name"] == version:
            schema = _make_strict(served["schema"]["openAPIV3Schema"])
            return Draft202012Validator(schema)
    known = ", ".join(served["name"] for served in versions)
    raise ConfigError(f"{path.name} has no version {version} (it has {known})")


def _make_strict(node: Any, top: bool = True) -> Any:
    """Return a CRD's schema as JSON Schema that refuses what the server would drop."""
    if isinstance(node, list):
        return [_make_strict(item, False) for item in node]
    if not isinstance(node, dict):
        return node
    strict = {k: v for k, v in node.items() if k not in ("description", "properties", "items")}
    if "properties" in node:
        strict["properties"] = {k: _make_strict(v, False) for k, v in node["properties"].items()}
        if "additionalProperties" not in node and not node.get(
            "x-kubernetes-preserve-unknown-fields"
        ):
            strict["additionalProperties"] = False
    if "items" in node:
        strict["items"] = _make_strict(node["items"], False)
    if isinstance(node.get("additionalProperties"), dict):
        strict["additionalProperties"] = _make_strict(node["additionalProperties"], False)
    if most := INTEGER_LIMITS.get(str(node.get("format"))):
        strict = {"minimum": -most - 1, "maximum": most} | strict
    if top:
        strict["properties"]["metadata"] = {
            "type": "object",
            "properties": {key: {} for key in METADATA_FIELDS},
            "additionalProperties": False,
        }
        strict["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return strict


@cache
def _load_kubernetes_validator(kind: str, version: str) -> Any:
    """Return a strict validator of one of Kubernetes' own kinds, or None."""
    try:
        from kubernetes_validate import utils
    except ImportError:
        raise ConfigError(
            "kubernetes-validate is missing: pip install 'dpmpp[deploy]' installs it"
        ) from None
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource

    folder = f"kubernetes-json-schema/v{utils.latest_version()}-local-strict"
    short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", version)
    try:
        schema = utils.schema_contents(f"{folder}/{kind.lower()}-{short}.json", "latest")
    except (FileNotFoundError, utils.VersionNotSupportedError):
        return None
    definitions = utils.schema_contents(f"{folder}/_definitions.json", "latest")
    registry: Registry = Resource.from_contents(schema) @ Registry()
    registry = Resource.from_contents(definitions) @ registry
    return Draft202012Validator(schema, registry=registry)


def _drop_nulls(value: Any) -> Any:
    """Drop nulls, which a server takes as absent values."""
    if isinstance(value, dict):
        return {k: _drop_nulls(v) for k, v in value.items() if v is not None}
    return [_drop_nulls(v) for v in value] if isinstance(value, list) else value


def _format_error(error: Any) -> str:
    """Return a JSON Schema error as a sentence."""
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = [key for key in error.instance if key not in known]
        hint = suggest(unknown[0], known)
        return f"unknown field {', '.join(map(repr, unknown))}{hint}"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{', '.join(missing)} is missing"
    if error.validator == "type":
        wanted = error.validator_value
        wanted = wanted if isinstance(wanted, str) else " or ".join(wanted)
        given = json.dumps(error.instance)[:100]
        return f"{given} is no {wanted}" + (": quote it" if wanted == "string" else "")
    if error.validator == "pattern" and "KMGTPE" in error.validator_value:
        return f"{error.instance!r} is no quantity; write it as 500m, 2 or 2Gi"
    if error.validator == "enum":
        return f"{error.instance!r} is none of {', '.join(map(str, error.validator_value))}"
    return str(error.message)[:300]


def _find_duplicates(value: Any, schema: Any, path: list[Any]) -> Iterator[tuple[str, str]]:
    """Yield (path, sentence) for items with the same key in lists that the server keys."""
    if not isinstance(schema, dict):
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _find_duplicates(
                inner, (schema.get("properties") or {}).get(key), [*path, key]
            )
    elif isinstance(value, list):
        items = schema.get("items") or {}
        keys = schema.get("x-kubernetes-list-map-keys")
        if keys:
            defaults = {k: items["properties"].get(k, {}).get("default") for k in keys}
            counts = Counter(tuple(str(i.get(k, defaults[k])) for k in keys) for i in value)
            for key, count in counts.items():
                if count > 1:
                    yield format_path(path), f"{' '.join(key)} stands here {count} times"
        for number, inner in enumerate(value):
            yield from _find_duplicates(inner, items, [*path, number])


def format_path(path: Sequence[Any]) -> str:
    """Return a path in the form `spec.containers[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
