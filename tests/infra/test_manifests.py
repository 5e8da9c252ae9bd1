"""The manifests are valid, mistakes in them are found, and no value stands in two places."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import dpmpp_core
from dpmpp_core.errors import ConfigError
from pipelines.cli import app
from pipelines.deploy.check import find_problems
from pipelines.deploy.jobs import build_job
from pipelines.deploy.policy import get_config_text
from pipelines.deploy.render import Object, get_object, render_overlay
from pipelines.deploy.rules import iter_jobs
from tests.infra.conftest import MANIFESTS, OVERLAYS, ROOT, rendered
from tests.infra.mistakes import MISTAKES, Mistake
from tests.support.cli import TIMEOUT_S

LATER = {"tune", "promote"}  # commands that may not be there yet


def versions() -> dict[str, str]:
    lines = (MANIFESTS / "base" / "versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay: str, crds: Path) -> None:
    assert [str(problem) for problem in find_problems(rendered(overlay), crds)] == []


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_found_and_explained(mistake: Mistake, request: pytest.FixtureRequest) -> None:
    crds = request.getfixturevalue("crds") if mistake.needs_crds else None
    objects = copy.deepcopy(rendered("local"))
    mistake.make(objects)
    try:
        found = [str(problem) for problem in find_problems(objects, crds)]
    except ConfigError as error:
        found = [str(error)]
    assert any(re.search(mistake.said, problem) for problem in found), found


def test_every_job_has_the_cluster_of_its_overlay() -> None:
    for overlay in OVERLAYS:
        objects = rendered(overlay)
        spec = get_object(objects, "RayCluster")["spec"]
        found = [
            (thing["metadata"]["name"], job) for thing in objects for _, job in iter_jobs(thing)
        ]
        assert len(found) == 6
        for name, job in found:
            logins = secrets_of(job["rayClusterSpec"], "driver") - secrets_of(spec, "driver")
            if name == "dpmpp-promote":  # the two differences: login and network policies
                assert logins == {"dpmpp-mlflow-promoter"}
                text = json.dumps(job["rayClusterSpec"]).replace("mlflow-promoter", "mlflow-login")
                text = text.replace('component": "promoter"', 'component": "ray"')
                assert json.loads(text) == spec
            else:
                assert job["rayClusterSpec"] == spec


def secrets_of(spec: dict[str, Any], group: str) -> set[str]:
    """The secrets whose values a group's Ray container gets."""
    pods = {g["groupName"]: g["template"]["spec"] for g in spec["workerGroupSpecs"]}
    pods["head"] = spec["headGroupSpec"]["template"]["spec"]
    sources = pods[group]["containers"][0].get("envFrom") or []
    return {source["secretRef"]["name"] for source in sources if "secretRef" in source}


def test_each_kind_of_pod_has_the_secrets_that_it_needs() -> None:
    for overlay in OVERLAYS:
        objects = rendered(overlay)
        spec = get_object(objects, "RayCluster")["spec"]
        assert secrets_of(spec, "head") == set()
        assert secrets_of(spec, "data") == secrets_of(spec, "train") == {"dpmpp-s3"}
        assert secrets_of(spec, "driver") == {"dpmpp-s3", "dpmpp-mlflow-login"}
        server = str(get_object(objects, "Deployment", "mlflow"))
        assert "'dpmpp-mlflow-s3'" in server and "'dpmpp-s3'" not in server


def test_the_readme_creates_each_secret_and_gives_the_least_rights() -> None:
    text = (ROOT / "infra" / "README.md").read_text()
    grants = re.findall(r"grant (\w+) (?:experiment|registered_model) (\S+) ([A-Z]+)", text)
    assert set(grants) == {
        ("trainer", "$ID", "EDIT"), ("trainer", "dpmpp", "EDIT"),
        ("promoter", "$ID", "EDIT"), ("promoter", "dpmpp", "MANAGE"),
        ("promoter", "dpmpp.promotions", "MANAGE"),
        ("reader", "$ID", "READ"), ("reader", "dpmpp", "READ"),
    }  # fmt: skip
    rendered_text = str([rendered(overlay) for overlay in OVERLAYS])
    named = set(re.findall(r"'secretRef': {'name': '([^']+)'", rendered_text))
    assert {"dpmpp-s3", "dpmpp-mlflow-s3"} < named
    assert named <= set(re.findall(r"^secret (\S+)", text, re.MULTILINE))


def test_jobs_are_templates_that_apply_without_starting() -> None:
    for thing in rendered("gpu"):
        if thing["kind"] == "RayJob":
            assert thing["spec"]["suspend"] is True


def test_versions_stand_in_one_place() -> None:
    told = versions()
    pins = dict(
        line.split("==", 1) for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )  # fmt: skip
    assert told["TAG"] == dpmpp_core.__version__
    assert told["RAY_VERSION"] == pins["ray"]
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert asked == f">={told['PYTHON_VERSION']}"
    written = [
        path for path in (ROOT / "infra").rglob("*")
        if path.is_file() and path.name != "versions.env" and path.suffix not in (".md", ".json")
        and told["RAY_VERSION"] in path.read_text()
    ]  # fmt: skip
    assert written == []
    for overlay in OVERLAYS:
        objects = rendered(overlay)
        assert get_object(objects, "RayCluster")["spec"]["rayVersion"] == told["RAY_VERSION"]
        images = set(re.findall(r"'image': '([^']*dpmpp[^']*)'", str(objects)))
        assert {image.rpartition(":")[2] for image in images} == {told["TAG"]}
        assert len(images) == 1


def test_the_model_to_promote_is_the_one_that_is_registered() -> None:
    for overlay in OVERLAYS:
        objects = rendered(overlay)
        command = get_object(objects, "RayJob", "dpmpp-promote")["spec"]["entrypoint"]
        text = get_config_text(objects) or ""
        named = re.search(r"model_name: (\S+?)}?$", text, re.MULTILINE)
        assert named is not None
        assert command.startswith(f"dpmpp promote {named[1]} ")


def options_of(command: str) -> set[str] | None:
    """Options of a subcommand, or None where there is no such one."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if command not in known:
        return None
    return {name for param in known[command].params for name in param.opts}


def test_every_entrypoint_is_a_command_with_these_options() -> None:
    for thing in rendered("local"):
        for _, job in iter_jobs(thing):
            program, command, *rest = shlex.split(job["entrypoint"])
            assert program == "dpmpp"
            options = options_of(command)
            if options is None:
                assert command in LATER
                continue
            given = {word for word in rest if word.startswith("-")}
            assert given <= options, job["entrypoint"]


def test_overlays_take_secrets_by_name_only() -> None:
    for overlay in OVERLAYS:
        text = str(rendered(overlay))
        assert "dpmpp-redis" in text
        assert not re.search(r"(?i)(password|secret_access_key)['\"]?: ?['\"]\w", text)


def test_a_submission_is_named_for_what_it_runs() -> None:
    objects = rendered("local")
    first = build_job(objects, "train", ["metric.epochs=5"])
    assert first == build_job(objects, "train", ["metric.epochs=5"])
    assert first["spec"]["entrypoint"].endswith("--json metric.epochs=5")
    assert "suspend" not in first["spec"]
    other = build_job(objects, "train", ["metric.epochs=6"])
    assert first["metadata"]["name"] != other["metadata"]["name"]
    with pytest.raises(ConfigError, match="no line breaks or control characters"):
        build_job(objects, "train", ["name=a\nb"])


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'gpuu'; did you mean 'gpu'"):
        render_overlay(MANIFESTS, "gpuu")
    with pytest.raises(ConfigError, match=r"'dpmpp-trian'; did you mean 'dpmpp-train'"):
        build_job(rendered("local"), "trian", [])
    with pytest.raises(ConfigError, match="holds no overlays"):
        render_overlay(tmp_path, "gpu")


def test_what_kustomize_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nothing.yaml]")
    with pytest.raises(ConfigError, match=r"kustomize refuses it: .*nothing\.yaml"):
        render_overlay(MANIFESTS, str(tmp_path))


def test_validate_ends_with_1_where_something_is_wrong(tmp_path: Path) -> None:
    bad: list[Object] = copy.deepcopy(rendered("local"))
    get_object(bad, "RayCluster")["spec"]["workerGroupSpecs"][1]["minReplicas"] = 9
    from pipelines.deploy.render import dump_yaml

    (tmp_path / "all.yaml").write_text(dump_yaml(bad))
    (tmp_path / "kustomization.yaml").write_text("resources: [all.yaml]")
    done = subprocess.run(
        [Path(sys.executable).with_name("dpmpp"), "deploy", "validate", "--overlay", tmp_path],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "RayCluster/dpmpp spec.workerGroupSpecs[1].minReplicas: 9 is not between" in done.stdout


def test_alerts_and_dashboard_ask_for_figures_that_there_are() -> None:
    """Ours are those of pipelines.runtime.telemetry; others are Ray's and the operator's."""
    from pipelines.runtime.telemetry import NAMES

    folder = MANIFESTS / "monitoring"
    text = (folder / "alerts.yaml").read_text() + (folder / "dashboard.json").read_text()
    asked = set(re.findall(r"ray_(dpmpp_\w+)", text))
    assert asked <= set(NAMES)
    assert {"dpmpp_train_step", "dpmpp_data_wait_share", "dpmpp_mask_std"} <= asked
    assert len(render_overlay(MANIFESTS, str(folder))) == 3


@pytest.mark.parametrize(
    "file, line, found",
    [
        ("versions.env", f"TAG=0.2.0@sha256:{'a' * 64}", ""),
        ("site.env", "IMAGE=registry.example.com:5000/dpmpp", ""),
        ("site.env", f"IMAGE=registry.example.com/dpmpp@sha256:{'a' * 64}", "is no image"),
    ],
)
def test_an_image_by_digest_is_right_or_found(
    file: str, line: str, found: str, tmp_path: Path
) -> None:
    manifests = tmp_path / "k8s"
    shutil.copytree(MANIFESTS, manifests)
    path, name = manifests / "base" / file, line.partition("=")[0]
    path.write_text(re.sub(f"(?m)^{name}=.*$", line, path.read_text()))
    problems = [str(problem) for problem in find_problems(render_overlay(manifests, "local"), None)]
    assert bool(problems) == bool(found) and all(found in problem for problem in problems)


def fill_in(text: str, labels: dict[str, str]) -> str:
    """A text of an alert with the labels put in."""
    return re.sub(r"{{ \$labels.(\w+) }}", lambda found: labels[found[1]], text)


def test_alerts_fire_where_they_should_and_nowhere_else(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (of Prometheus) is not installed")
    rules = yaml.safe_load((MANIFESTS / "monitoring" / "alerts.yaml").read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    tests = yaml.safe_load((Path(__file__).parent / "alerts_test.yaml").read_text())
    notes = {
        rule["alert"]: rule["annotations"] for group in rules["groups"] for rule in group["rules"]
    }
    for test in tests["tests"]:
        for case in test["alert_rule_test"]:
            for alert in case["exp_alerts"]:  # the texts are those of the rules
                alert["exp_annotations"] = {
                    key: fill_in(text, alert["exp_labels"])
                    for key, text in notes[case["alertname"]].items()
                }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
