"""An overlay checked as a whole: schemas, the operator's rules, ours, and its config.yaml."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dpmpp_core.config import load_config
from dpmpp_core.errors import ConfigError
from pipelines.deploy.policy import config_of, fitting_rules, policy_rules, references
from pipelines.deploy.render import Object, name_of
from pipelines.deploy.rules import clusters, operator_rules
from pipelines.deploy.schemas import Problem, schema_problems

CRDS = "KUBERAY_CRDS"


def crds_folder(given: Path | None) -> Path | None:
    """The folder of KubeRay's CRDs: as given, or of the environment; None = neither."""
    folder = given or (Path(os.environ[CRDS]) if os.environ.get(CRDS) else None)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of KubeRay's CRDs (--crds, {CRDS})")
    return folder


def problems(objects: Sequence[Object], crds: Path | None) -> list[Problem]:
    """Everything that is wrong. Rules are asked only of objects that what precedes accepts."""
    found: list[Problem] = []
    for thing in objects:
        name = name_of(thing)
        wrong = schema_problems(thing, crds)
        wrong = wrong or [Problem(name, *rule) for rule in operator_rules(thing)]
        found += wrong or [Problem(name, *rule) for rule in policy_rules(thing)]
    if found:
        return found
    found += [Problem(name_of(t), path, text) for t, path, text in references(objects)]
    return found + _of_config(objects)


def job_problems(job: Object, objects: Sequence[Object]) -> list[Problem]:
    """What is wrong with a job whose schema an API server has checked: our rules, its config."""
    found = [Problem(name_of(job), *rule) for rule in policy_rules(job)]
    maps = [thing for thing in objects if thing["kind"] == "ConfigMap"]
    return found or _of_config([*maps, job])


def _of_config(objects: Sequence[Object]) -> list[Problem]:
    """Whether config.yaml is one, and fits the clusters."""
    name, text = "ConfigMap/dpmpp-config", config_of(objects)
    if text is None:
        return [Problem(name, "", "is missing: jobs would not know what to train")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text)
        try:
            config = load_config(str(path))
        except ConfigError as error:
            return [Problem(name, "config.yaml", str(error).replace(f"{path}: ", ""))]
    found = [
        Problem(name_of(thing), *rule)
        for thing in objects
        for _, spec in clusters(thing)
        for rule in fitting_rules(config.cluster, spec)
    ]
    return found[:5]  # every job has the same cluster
