"""`dpmpp config`: what it explains, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path

from dpmpp_core.config import config_keys, load_config
from pipelines.workflows.pipeline import STAGES, list_readers
from tests.support.cli import assert_mistake, invoke_dpmpp


def test_a_key_is_explained_with_the_value_of_a_recipe_and_its_stages() -> None:
    done = invoke_dpmpp("config", "explain", "metric.epochs", "--config", "market1501")
    assert done.returncode == 0
    key, meaning, kind, values = done.stdout.splitlines()
    assert (key, kind.strip()) == ("metric.epochs", "whole number: above 0")
    assert "passes over the training data" in meaning
    epochs = load_config("market1501").metric.epochs
    assert values.strip() == f"default 60; market1501 has {epochs}; read by: metric"


def test_every_key_is_explained_as_json() -> None:
    done = invoke_dpmpp("config", "explain", "--json")
    explained = json.loads(done.stdout)["keys"]
    assert [one["key"] for one in explained] == list(config_keys())


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    assert_mistake(invoke_dpmpp("config", "explain", "metric.epoch"), "did you mean 'metric.epochs")


def test_what_is_shown_can_be_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(invoke_dpmpp("config", "show", "metric.epochs=3").stdout)
    assert load_config(str(file)) == load_config("demo", ["metric.epochs=3"])


def test_stages_read_keys_that_exist_and_every_result_has_its_stage() -> None:
    keys = list(config_keys())
    for spec in STAGES:
        for name in spec.reads:
            assert any(key == name or key.startswith(f"{name}.") for key in keys), name
    unread = {key.split(".")[0] for key in keys if not list_readers(key)}
    assert unread == {"name", "data", "cluster", "tracking"}
    assert [key for key in keys if key.startswith("data.") and not list_readers(key)] == [
        "data.pack"
    ]
