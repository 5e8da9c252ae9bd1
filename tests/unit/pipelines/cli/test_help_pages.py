"""Help pages: panels, `-h`, and examples that the command line really takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from dpmpp_core.config import load_config, recipe_names
from pipelines.cli import app
from pipelines.cli.help_pages import HEADING, PANELS
from tests.support.cli import invoke_dpmpp, parse_command

COMMAND = typer.main.get_command(app)


def walk(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group, with the words that call it."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from walk(child, *words, name)
        else:
            yield (*words, name), child


COMMANDS = list(walk(COMMAND))
EXAMPLES = [
    (words, line)
    for words, command in [((), COMMAND), *COMMANDS]
    for line in (command.epilog or "").splitlines()
    if line != HEADING
]


@pytest.mark.parametrize("name", [words[0] for words, _ in COMMANDS])
def test_every_command_stands_in_a_panel(name: str) -> None:
    assert COMMAND.commands[name].rich_help_panel in PANELS


def test_the_panels_come_in_the_order_of_the_work() -> None:
    page = invoke_dpmpp("-h").stdout
    places = [page.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=str)
def test_every_help_page_has_examples_and_a_short_option(
    words: tuple[str, ...], command: Any
) -> None:
    own = [line for owner, line in EXAMPLES if owner == words]
    assert 1 <= len(own) <= 3 and (len(own) >= 2 or not command.params)
    done = invoke_dpmpp(*words, "-h")
    assert done.returncode == 0 and done.stdout == invoke_dpmpp(*words, "--help").stdout
    shown = [line.strip() for line in done.stdout.strip().splitlines()]
    assert [line.replace(r"\[", "[") for line in own] == shown[-len(own) :]


@pytest.mark.parametrize(("words", "line"), EXAMPLES, ids=str)
def test_the_command_line_takes_every_example(words: tuple[str, ...], line: str) -> None:
    assert len(line) <= 78
    called, values = parse_command(line)
    assert called[: len(words)] == words
    recipe = values.get("config")
    if recipe in recipe_names():
        load_config(str(recipe), values.get("overrides") or [])


@pytest.mark.parametrize(
    "line", ["dpmpp serach", "dpmpp index build --index GALLERY", "dpmpp tune --trials many"]
)
def test_a_stale_example_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"No such command|Missing parameter|valid integer"):
        parse_command(line)
