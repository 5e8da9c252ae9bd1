"""Grids of variants: what they set, and what is refused."""

from __future__ import annotations

import pytest

from dpmpp_core.config import config_keys, load_config
from dpmpp_core.config.grid import Grid, load_grid
from dpmpp_core.config.shipped import shipped_names
from dpmpp_core.errors import ConfigError


@pytest.mark.parametrize("name", shipped_names("grids"))
@pytest.mark.parametrize("recipe", ("proof", "demo", "market1501"))
def test_every_shipped_variant_is_a_valid_configuration(name: str, recipe: str) -> None:
    grid = load_grid(name)
    made = [load_config(recipe, grid.overrides(variant)) for variant in grid.variants]
    assert len({config.model_dump_json(exclude={"name"}) for config in made}) == len(made)


def test_the_method_s_plain_variant_has_nothing_of_the_method() -> None:
    """Whatever a recipe or a default turns on: a new part must be named in the grid."""
    plain = load_config("proof", load_grid("method").overrides("plain"))
    loss = plain.metric.loss
    assert (loss.masked, loss.text, loss.text_transfer, loss.heads, loss.visibility) == (0,) * 5
    assert plain.model.bands == 0 and plain.model.mask_generator == "none"
    assert plain.occlusion.probability == plain.augment.erase == 0
    assert loss.identity > 0 and loss.triplet > 0


def test_each_variant_of_the_method_changes_what_it_says_and_keeps_the_rest() -> None:
    grid = load_grid("method")
    assert set(config_keys()) >= {key for v in grid.variants.values() for key in v.set}
    for name, variant in grid.variants.items():
        if variant.after is None:
            continue
        before = dict(o.split("=", 1) for o in grid.overrides(variant.after))
        after = dict(o.split("=", 1) for o in grid.overrides(name))
        assert {k for k in after if before.get(k) != after[k]} == set(variant.set), name


def test_a_later_variant_wins_over_an_earlier_one() -> None:
    variants = {
        "a": {"says": "one", "set": {"metric.epochs": 3, "metric.lr": 0.1}},
        "b": {"says": "two", "after": "a", "set": {"metric.epochs": 4}},
    }
    grid = Grid.model_validate({"full": "b", "plain": "a", "variants": variants})
    assert grid.overrides("b") == ["metric.epochs=4", "metric.lr=0.1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("full: b\nplain: aa\nvariants: {a: {says: x}, b: {says: y}}", "did you mean 'a'"),
        ("full: b\nplain: a\nvariants: {a: {says: x, after: b}, b: {says: y, after: a}}", "circle"),
        ("full: b\nplain: a\nvariants: {a: {says: x}, b: {sys: y}}", "variants.b"),
        ("full: b\nplain: a\nvariants: {a: {says: x}}", "variants"),
        ("full: [", "not valid YAML"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(tmp_path, text: str, problem: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_grid(str(path))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'method'"):
        load_grid("methd")
    with pytest.raises(ConfigError, match="did you mean 'rolling'"):
        load_grid("method").check(["roling"])
