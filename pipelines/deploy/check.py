"""Check a whole overlay: schemas, the operator's rules, ours, and its config.yaml."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dpmpp_core.config import Config, load_config
from dpmpp_core.errors import ConfigError
from pipelines.deploy.admission import check_pods, check_templates
from pipelines.deploy.capacity import check_capacity, list_needed_pods
from pipelines.deploy.network import check_addresses
from pipelines.deploy.placement import check_overlay
from pipelines.deploy.policy import check_policy, find_missing_references, get_config_text
from pipelines.deploy.quota import find_overlay_shortages
from pipelines.deploy.render import Object, format_name
from pipelines.deploy.rules import check_operator_rules, iter_clusters
from pipelines.deploy.schemas import Problem, check_schema

CRDS_VARIABLE = "KUBERAY_CRDS"
_CHANGE = re.compile(r"[a-z]\w*(\.\w+)*=")  # SECTION.KEY=


def resolve_crds_folder(given: Path | None) -> Path | None:
    """Return the folder of KubeRay's CRDs, as given or of the environment; None = neither."""
    folder = given or (Path(os.environ[CRDS_VARIABLE]) if os.environ.get(CRDS_VARIABLE) else None)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of KubeRay's CRDs (--crds, {CRDS_VARIABLE})")
    return folder


def find_problems(objects: Sequence[Object], crds: Path | None) -> list[Problem]:
    """Return all problems; later rules are only checked where an object passes the earlier ones."""
    problems: list[Problem] = []
    for thing in objects:
        name = format_name(thing)
        wrong = check_schema(thing, crds) or check_templates(thing)
        wrong = wrong or [Problem(name, *rule) for rule in check_operator_rules(thing)]
        problems += wrong or [*(Problem(name, *rule) for rule in check_policy(thing))]
        problems += [] if wrong else _drop_known(check_pods(thing), problems)
    if problems:
        return problems
    problems += [
        Problem(format_name(t), path, text) for t, path, text in find_missing_references(objects)
    ]
    problems += [Problem("overlay", *rule) for rule in check_overlay(objects)]
    problems += [Problem("ConfigMap/dpmpp-site", *rule) for rule in check_addresses(objects)]
    return problems + _check_config(objects)


def _drop_known(found: Sequence[Problem], known: Sequence[Problem]) -> list[Problem]:
    """Drop what was said of the pods of another object: every job has the same cluster."""
    said = {(problem.path, problem.message) for problem in known}
    return [problem for problem in found if (problem.path, problem.message) not in said]


def find_job_problems(job: Object, objects: Sequence[Object]) -> list[Problem]:
    """Check a job whose schema an API server has checked: our rules, its pods, its config."""
    problems = [Problem(format_name(job), *rule) for rule in check_policy(job)] + check_pods(job)
    maps = [thing for thing in objects if thing["kind"] == "ConfigMap"]
    return problems or _check_config([*maps, job])


def load_overlay_config(objects: Sequence[Object], overrides: Sequence[str] = ()) -> Config:
    """Return the configuration in the ConfigMap dpmpp-config, with changes `section.key=value`.

    Raises:
        ConfigError: it, or a change, is wrong.
    """
    text = get_config_text(objects)
    if text is None:
        raise ConfigError(
            "there is no ConfigMap 'dpmpp-config' with a config.yaml: jobs need it to train"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text)
        try:
            return load_config(str(path), list(overrides))
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{path}: ", "config.yaml: ")) from None


def check_words(objects: Sequence[Object], words: Sequence[str]) -> None:
    """Raise ConfigError if words of a submission change a key or to a value that is wrong.

    Words that are no changes are left to the job's command, and all are if they name another
    configuration.
    """
    changes = [word for word in words if _CHANGE.match(word)]
    if changes and not any(word.startswith("--config") for word in words):
        load_overlay_config(objects, changes)


def _check_config(objects: Sequence[Object]) -> list[Problem]:
    """Check that config.yaml is a configuration, and fits the clusters and quotas."""
    name = "ConfigMap/dpmpp-config"
    try:
        config = load_overlay_config(objects)
    except ConfigError as error:
        return [Problem(name, "", str(error))]
    problems = [
        Problem(format_name(thing), *rule)
        for thing in objects
        for _, spec in iter_clusters(thing)
        for rule in check_capacity(config.cluster, spec)
    ]
    problems = problems[:5]  # every job has the same cluster
    needed = {
        job["metadata"]["name"]: list_needed_pods(job, config.cluster)
        for job in objects
        if job["kind"] == "RayJob"
    }
    return problems or [
        Problem(format_name(quota), "spec.hard", sentence)
        for quota, sentence in find_overlay_shortages(objects, needed)
    ]
