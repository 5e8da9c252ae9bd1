"""A run is named after its data, unless its configuration has a name."""

from __future__ import annotations

import pytest

from dpmpp_core.errors import ArgumentError
from pipelines.workflows.options import Options
from pipelines.workflows.session import load_run_config


@pytest.mark.parametrize(
    ("data", "name"),
    [("/photos/My people", "My-people"), ("s3://bucket/shop-2/", "shop-2"), ("/photos/人", "data"),
     (None, "demo")],
)  # fmt: skip
def test_the_demos_configuration_takes_the_name_of_the_data(data: str | None, name: str) -> None:
    config = load_run_config(Options(data=data))
    assert (config.name, config.tracking.model_name) == (name, f"dpmpp-{name}")


def test_a_name_that_somebody_chose_stays() -> None:
    overrides = ["name=mine", "tracking.model_name=people"]
    config = load_run_config(Options(data="/photos", overrides=overrides))
    assert (config.name, config.tracking.model_name) == ("mine", "people")
    config = load_run_config(Options(data="/photos", overrides=overrides[1:]))
    assert (config.name, config.tracking.model_name) == ("photos", "people")


def test_a_recipe_of_published_data_does_not_draw_people() -> None:
    with pytest.raises(ArgumentError, match="--data is needed: the configuration msmt17"):
        load_run_config(Options(config="msmt17"))
