"""Descriptions of the configuration: none is missing, and the commented YAML is the same one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dpmpp_core.config import config_keys, load_config, recipe_names
from dpmpp_core.config.describing import describe_keys, render_commented
from dpmpp_core.errors import ConfigError

DESCRIBED = {one.key: one for one in describe_keys()}


def test_every_key_is_described_in_words_of_its_own() -> None:
    assert list(DESCRIBED) == list(config_keys())
    poor = [key for key, one in DESCRIBED.items() if len(one.description.split()) < 2]
    assert not poor


@pytest.mark.parametrize(
    ("key", "type", "allowed", "default"),
    [
        ("metric.epochs", "whole number", "above 0", 60),
        ("occlusion.probability", "number", "at least 0, at most 1", 0.5),
        ("metric.loss.arcface_margin", "number", "at least 0, below 1.57", 0.3),
        ("metric.optimiser", "text", "adam, sgd", "adam"),
        ("model.pretrained", "text or null", "", "openai"),
        ("cluster.gpu", "true or false or null", "", None),
        ("metric.milestones", "list of whole numbers or null", "each above 0", None),
        ("data.mean", "list of 3 numbers", "", [0.5, 0.5, 0.5]),
        ("data.std", "list of 3 numbers", "each above 0", [0.5, 0.5, 0.5]),
        ("cluster.train_nodes", "list of text values",
         r"each as the regular expression ^[^=\s]+=[^=\s]+$", []),
    ],
)  # fmt: skip
def test_types_and_bounds_are_told(key: str, type: str, allowed: str, default: object) -> None:
    one = DESCRIBED[key]
    assert (one.type, one.allowed, one.default) == (type, allowed, default)


def test_a_section_is_all_keys_in_it() -> None:
    loss = [one.key for one in describe_keys("metric.loss")]
    assert loss == [key for key in DESCRIBED if key.startswith("metric.loss.")]
    assert [one.key for one in describe_keys("seed")] == ["seed"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("metric.epoch", "; did you mean 'metric.epochs'"),
        ("triplet", "; did you mean 'metric.loss.triplet'"),
        ("metric.los", "; did you mean 'metric.loss"),
        ("", "'$"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"no configuration key or section '{name}'?{hint}"):
        describe_keys(name)


@pytest.mark.parametrize("recipe", recipe_names())
def test_commented_yaml_is_the_same_configuration(recipe: str, tmp_path: Path) -> None:
    config = load_config(
        recipe,
        ["tracking.intended_use='two\n\nlines: # of it'", "cluster.train_nodes=[a=b, c=d]"]
    )  # fmt: skip
    text = render_commented(config)
    assert max(map(len, text.splitlines())) <= 120
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert load_config(str(file)) == config
    assert yaml.safe_load(text) == yaml.safe_load(config.to_yaml())


def test_every_key_stands_below_its_description() -> None:
    lines = render_commented(load_config("demo")).splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r" *\w+:( |$)", line)]
    assert len(keys) > len(DESCRIBED)  # sections too
    assert all(lines[i - 1].lstrip().startswith("#") for i in keys)
