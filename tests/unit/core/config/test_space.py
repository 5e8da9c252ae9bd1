"""Search spaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpmpp_core.config import recipe_names
from dpmpp_core.config.shipped import shipped_names
from dpmpp_core.config.space import load_space
from dpmpp_core.errors import ConfigError

# `dpm_*` cannot be without a mask generator: its update is alternating.
SEARCHED = [n for n in recipe_names() if n != "pretrain" and not n.startswith("dpm_")]


@pytest.mark.parametrize("space", shipped_names("spaces"))
@pytest.mark.parametrize("recipe", SEARCHED)
def test_every_shipped_space_fits_every_recipe_with_text(space: str, recipe: str) -> None:
    load_space(space).check(recipe, [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metric.ler: {low: 1, high: 2}", "unknown configuration key 'metric.ler'; did you mean"),
        ("seed: {low: 1, high: 2}", "must be the same for all trials"),
        ("data.height: {choices: [128, 256]}", "must be the same for all trials"),
        ("metric.lr: {low: 2, high: 1}", "low 2.0 is not below high 1.0"),
        ("metric.lr: {low: 0, high: 1, log: true}", "has no logarithm"),
        ("metric.epochs: {low: 1.5, high: 4, whole: true}", "whole bounds"),
        ("metric.lr: {choices: [0.1]}", "choices"),
        ("metric.lr: {low: 1, high: 2, step: 1}", "step"),
        ("metric.lr: 3", "metric.lr"),
        ("{}", "at least 1"),
        ("[", "not valid YAML"),
    ],
)
def test_what_makes_no_space_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_space(str(tmp_path / "space.yaml"))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        load_space("defualt")


def test_a_bound_that_the_configuration_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("occlusion.probability: {low: 0.5, high: 1.5}")
    space = load_space(str(tmp_path / "space.yaml"))
    with pytest.raises(ConfigError, match=r"search space, occlusion\.probability"):
        space.check("demo", [])
