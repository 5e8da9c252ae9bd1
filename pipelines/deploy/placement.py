"""Rules for the pods of an overlay together: where they land, and what all of them need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.deploy.admission import iter_created_pods
from pipelines.deploy.render import Object, format_name
from pipelines.deploy.rules import Findings

POOL_LABEL = "dpmpp/pool"
STAYS = "system"  # the pool of machines that are not taken away
SPOT_TAINT = "dpmpp/spot"
WORKING_GROUPS = ("data", "train")  # groups that may be lost


def check_overlay(objects: Sequence[Object]) -> Findings:
    """Yield (path, sentence) for each rule that the pods of an overlay break together."""
    if not any(thing["kind"] == "ResourceQuota" for thing in objects):
        yield "", "there is no ResourceQuota: nothing bounds what jobs take"
    pods = [*_iter_all_pods(objects)]
    yield from _check_pools(pods)
    yield from _check_pull_secrets(pods)


def _iter_all_pods(objects: Sequence[Object]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for thing in objects:
        for role, pod in iter_created_pods(thing):
            yield format_name(thing), role, pod["spec"]


def _check_pools(pods: Sequence[tuple[str, str, dict[str, Any]]]) -> Findings:
    """Check that servers, heads, drivers and submitters stay, if the machines have pools."""
    if not any(POOL_LABEL in (spec.get("nodeSelector") or {}) for _, _, spec in pods):
        return
    for name, role, spec in pods:
        pool = (spec.get("nodeSelector") or {}).get(POOL_LABEL)
        wanted = role if role in WORKING_GROUPS else STAYS
        if pool != wanted:
            text = f"its {POOL_LABEL} is {pool or 'missing'}, not {wanted}"
            yield f"{name} pod {role}", f"{text}: it could land on a machine that is taken away"
        keys = {item.get("key") for item in spec.get("tolerations") or []}
        if SPOT_TAINT in keys and role not in WORKING_GROUPS:
            yield f"{name} pod {role}", f"tolerates {SPOT_TAINT}: only data and train may be lost"


def _check_pull_secrets(pods: Sequence[tuple[str, str, dict[str, Any]]]) -> Findings:
    """Check that all pods of an image have the secrets with which one of them pulls it."""
    by_image: dict[str, set[str]] = {}
    for _, _, spec in pods:
        for container in spec.get("containers") or []:
            by_image.setdefault(str(container.get("image")), set()).update(_pull_secrets(spec))
    for name, role, spec in pods:
        for container in spec.get("containers") or []:
            missing = by_image[str(container.get("image"))] - _pull_secrets(spec)
            if missing:
                yield (
                    f"{name} pod {role}",
                    f"imagePullSecrets lack {', '.join(sorted(missing))}, with which other pods "
                    f"pull {container.get('image')}",
                )


def _pull_secrets(spec: dict[str, Any]) -> set[str]:
    return {str(secret.get("name")) for secret in spec.get("imagePullSecrets") or []}
