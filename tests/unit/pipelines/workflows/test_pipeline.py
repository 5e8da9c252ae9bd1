"""The stages that a pipeline runs, and the tables that are generated from their declaration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpmpp_core.config import load_config
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import STAGES, plan_stages

CONTRIBUTING = Path(__file__).parents[4] / "CONTRIBUTING.md"
TRAINED = ["prepare", "saliency", "features", "prompts", "metric", "evaluate"]
WITHOUT_TEXT = [name for name in TRAINED if name not in ("features", "prompts")]


def planned(until, config="demo", overrides=(), **options):
    loaded = load_config(config, list(overrides))
    return [spec.name for spec in plan_stages(loaded, Options(**options), until)]


@pytest.mark.parametrize(
    ("until", "stages"),
    [
        ("prepare", TRAINED[:1]),
        ("saliency", TRAINED[:2]),
        ("prompts", TRAINED[:4]),
        ("metric", TRAINED[:5]),
        ("evaluate", TRAINED),
        ("robustness", [*TRAINED, "robustness"]),
        ("register", [*TRAINED, "robustness", "report", "register"]),
        ("captions", ["prepare", "saliency", "pretrain", "evaluate", "captions"]),
        ("synthesis", ["prepare", "saliency", "synthesis"]),
    ],
)
def test_a_stage_comes_after_all_that_it_needs(until, stages):
    assert planned(until) == stages


def test_a_saved_model_is_measured_without_training():
    assert planned("evaluate", model="model") == ["prepare", "evaluate"]
    stages = ["prepare", "evaluate", "saliency", "robustness"]
    assert planned("robustness", model="model") == stages


def test_a_backbone_without_text_has_no_stage_1():
    assert planned("evaluate", "market1501_vit") == WITHOUT_TEXT


def test_robustness_is_left_out_of_the_report_when_it_is_off():
    off = ["evaluation.robustness=false"]
    assert planned("report", overrides=off) == [*TRAINED, "report"]
    assert "robustness" in planned("robustness", overrides=off)


def test_the_documented_stages_are_the_declared_ones():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", CONTRIBUTING.read_text(), re.M)
    assert rows == [(s.name, s.help, ", ".join(s.needs) or "-") for s in STAGES]
