"""Published protocols: every file is whole, and what is said of them follows from it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpmpp_core.config import Config, load_config, parse_seeds
from dpmpp_core.data.published import PUBLISHED
from dpmpp_core.errors import ArgumentError, ConfigError
from dpmpp_core.protocols import (
    GPU_FLOPS,
    Protocol,
    load_protocol,
    needs,
    protocol_names,
)

NAMES = protocol_names()


def test_the_protocols_are_shipped() -> None:
    assert NAMES == [
        "dpm_market1501_to_occluded_reid",
        "dpm_occluded_duke",
        "market1501",
        "market1501_to_occluded_reid",
        "msmt17",
        "occluded_duke",
        "p_duke",
    ]
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["dpmpp_core"]
    assert "recipes/protocols/*.yaml" in shipped


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_names_recipes_and_counts_that_exist(name: str) -> None:
    protocol = load_protocol(name)
    config = load_config(protocol.recipe)
    assert config.data.layout not in ("occluded_reid", "partial_reid")  # only tested on
    images, identities = PUBLISHED[protocol.dataset]["train"]
    assert images and identities
    if protocol.test is not None:
        assert load_config(protocol.test.recipe).data.layout == protocol.test.recipe
        assert {"query", "gallery"} <= set(PUBLISHED[protocol.test.dataset])
    tested = load_config(protocol.test.recipe if protocol.test else protocol.recipe).data
    occluded = tested.occluded_queries or tested.layout in ("occluded_reid", "p_duke")
    assert protocol.queries == ("occluded" if occluded else "holistic")


@pytest.mark.parametrize("name", NAMES)
def test_needs_follow_from_counts_and_recipe(name: str) -> None:
    protocol = load_protocol(name)
    found = needs(protocol)
    images = PUBLISHED[protocol.dataset]["train"][0]
    epochs = load_config(protocol.recipe).metric.epochs
    stage_2 = 2 * 3 * 11.5e9 * images * epochs / GPU_FLOPS / 3600
    assert stage_2 < found.hours < 4 * stage_2  # and stage 0, which costs about as much
    assert 2 < found.gpu_gigabytes < 24


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_runs_the_published_form(name: str) -> None:
    """Masks of the class token's spaces, and none of our own."""
    config = load_config(load_protocol(name).recipe)
    assert config.model.mask_generator == "full"
    assert config.model.bands == 0 and config.model.attention_mask_depth is None
    assert config.augment.erase == 0.5 and config.metric.loss.heads > 0


@pytest.mark.parametrize("name", ["market1501", "occluded_duke", "msmt17", "p_duke"])
def test_the_published_recipes_switch_on_what_is_off_by_default(name: str) -> None:
    config, default = load_config(name), Config()
    for section, key in [
        ("model", "mask_generator"), ("augment", "erase"), ("occlusion", "min_oiou"),
        ("occlusion", "min_ratio"), ("occlusion", "max_ratio"), ("occlusion", "top_share"),
        ("occlusion", "rolling"), ("metric", "class_ignoring"),
        ("metric", "sampling"),
    ]:  # fmt: skip
        own, other = (getattr(getattr(c, section), key) for c in (config, default))
        assert own != other, key
    assert config.metric.loss.heads > default.metric.loss.heads


def test_the_ancestor_runs_in_two_passes_without_text() -> None:
    duke = load_config(load_protocol("dpm_occluded_duke").recipe)
    reid = load_config(load_protocol("dpm_market1501_to_occluded_reid").recipe)
    for config in (duke, reid):
        assert config.metric.update == "alternating" and config.occlusion.probability == 0
        assert config.model.backbone.startswith("timm/") and config.metric.optimiser == "sgd"
    assert duke.metric.loss.arcface_margin == 0.5 and reid.metric.loss.arcface_margin == 0.3
    assert reid.metric.loss.heads == pytest.approx(0.1 * duke.metric.loss.heads)
    assert reid.augment.camera > 0 == duke.augment.camera


def test_figures_inside_below_and_above_the_bracket() -> None:
    protocol = load_protocol("occluded_duke")
    assert protocol.bracket("rank1") == (66.4, 84.3) and protocol.bracket("mAP") == (59.2, 75.1)
    assert protocol.verdict(66.4, 75.1) == {"rank1": "inside", "mAP": "inside"}
    assert protocol.verdict(66.3, 75.2) == {"rank1": "below", "mAP": "above"}
    unpublished = load_protocol("msmt17")
    assert unpublished.bracket("mAP") is None
    assert unpublished.verdict(50, 50) == {"rank1": "no bracket", "mAP": "no bracket"}


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'ocluded_duke'; did you mean 'occluded_duke'\?"):
        load_protocol("ocluded_duke")
    with pytest.raises(ConfigError, match="protocols: dpm_market1501_to_occluded_reid, "):
        load_protocol("../market1501")


def test_a_file_with_another_key_or_a_fraction_for_percent_is_refused() -> None:
    plain = load_protocol("market1501").model_dump()
    with pytest.raises(ValidationError, match="hours"):
        Protocol.model_validate({**plain, "hours": 3})
    worse = {"method": "DPM", "rank1": 955, "mAP": 89.7}
    with pytest.raises(ValidationError, match="rank1"):
        Protocol.model_validate({**plain, "published": [worse]})


def test_seeds_are_read_and_mistakes_said() -> None:
    assert parse_seeds("0, 1,12") == (0, 1, 12)
    for text in ("", "1,x", "-1", "0,,1", "²"):
        with pytest.raises(ArgumentError, match="--seeds"):
            parse_seeds(text)
    with pytest.raises(ArgumentError, match="twice"):
        parse_seeds("1,2,1")
