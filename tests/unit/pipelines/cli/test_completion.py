"""What the shell offers: recipes, keys, values and choices, through the shells' own protocols."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from dpmpp_core.config import config_keys, recipe_names
from dpmpp_core.data.synthesis import PARTS
from dpmpp_core.index.segments import STORED
from dpmpp_core.retrieval.objectives import OBJECTIVES
from pipelines.cli import app, completion
from pipelines.gallery.search import ENGINES
from pipelines.tuning.spaces import SCHEDULERS, SEARCHERS


def offer_in_bash(*words: str) -> list[str]:
    """What Tab offers in place of the last word."""
    return _offer("bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))


def offer_in_fish(*words: str) -> list[str]:
    """The same of a shell that takes KEY=VALUE for one word; with descriptions."""
    line = " ".join(words)
    return _offer("fish", _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args")


def _offer(shell: str, **environment: str) -> list[str]:
    environment["_DPMPP_COMPLETE"] = f"complete_{shell}"
    shown = CliRunner().invoke(app, env=environment, prog_name="dpmpp").stdout
    return [line for line in shown.splitlines() if line]


def test_recipes_and_other_shipped_files_are_offered() -> None:
    assert offer_in_bash("dpmpp", "run", "--config", "") == recipe_names()
    markets = offer_in_bash("dpmpp", "run", "--config", "mark")
    assert markets == [name for name in recipe_names() if name.startswith("mark")] != []
    assert offer_in_bash("dpmpp", "promote", "dpmpp", "--gate", "de") == ["default", "demo"]
    assert "occluded_duke" in offer_in_bash("dpmpp", "reproduce", "o")


def test_keys_are_offered_with_an_equals_sign() -> None:
    offered = offer_in_bash("dpmpp", "train", "metric.loss.tri")
    assert offered == ["metric.loss.triplet=", "metric.loss.triplet_margin="]
    assert len(offer_in_bash("dpmpp", "config", "show", "")) == len(list(config_keys()))


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("metric.schedule=", ["step", "cosine"]),
        ("metric.schedule=c", ["cosine"]),
        ("cluster.gpu=", ["true", "false", "null"]),
        ("metric.epochs=", []),
        ("metric.epoch=", []),
    ],
)
def test_values_are_offered_after_the_equals_sign(given: str, values: list[str]) -> None:
    key, _, begun = given.partition("=")
    shown = offer_in_fish("dpmpp", "run", "seed=1", given)
    assert [line.split("\t")[0] for line in shown] == [f"{key}={value}" for value in values]
    if begun:  # bash splits the word at the sign
        assert offer_in_bash("dpmpp", "run", "seed", "=", "1", key, "=", begun) == values


def test_descriptions_are_shown_where_the_shell_can() -> None:
    (line,) = offer_in_fish("dpmpp", "run", "metric.epochs")
    assert line == "metric.epochs=\tpasses over the training data"


def test_a_key_to_explain_may_be_a_section() -> None:
    offered = offer_in_bash("dpmpp", "config", "explain", "metric.lo")
    assert offered[0] == "metric.loss" and "metric.loss.triplet" in offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("data", "check", "DIR", "--layout", "ma"), ["market1501"]),
        (("data", "check", "DIR", "--dataset", "msmt"), ["msmt17"]),
        (("index", "build", "--stored", "int8"), ["int8", "int8+float32"]),
        (("index", "add", "--split", "g"), ["gallery"]),
        (("search", "--engine", ""), list(ENGINES)),
        (("tune", "--scheduler", ""), list(SCHEDULERS)),
        (("synthesize", "--part", "t"), ["top"]),
        (("robustness", "--parts", "s"), ["side"]),
        (("tune", "--space", "r"), ["rates"]),
        (("ablate", "--grid", "m"), ["method"]),
    ],
)
def test_choices_are_offered(words: tuple[str, ...], offered: list[str]) -> None:
    assert offer_in_bash("dpmpp", *words) == offered


def test_copied_choices_are_those_that_are_accepted() -> None:
    copies = (completion.STORED_TYPES, completion.SEARCHERS, completion.SCHEDULERS)
    assert copies == (STORED, SEARCHERS, SCHEDULERS)
    assert (completion.PARTS, completion.ENGINES) == (PARTS, ENGINES)
    assert {name for pair in completion.OBJECTIVES for name in pair.split(",")} == set(OBJECTIVES)
