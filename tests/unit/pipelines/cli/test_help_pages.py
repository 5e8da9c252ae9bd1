"""Help pages: panels, `-h`, and examples that the command line really takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dpmpp_core.config import load_config, recipe_names
from pipelines.cli import app
from pipelines.cli.help_pages import HEADING, PANELS
from tests.support.cli import invoke_dpmpp, parse_command
from tests.support.documents import PAGES, page_name, read_blocks

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


def parse_with_config(line: str) -> tuple[str, ...]:
    """The command that a line calls, after its recipe was loaded with its overrides."""
    called, values = parse_command(line)
    recipe = values.get("config")
    if recipe in recipe_names():
        load_config(str(recipe), values.get("overrides") or [])
    return called


@pytest.mark.parametrize(("words", "line"), EXAMPLES, ids=str)
def test_the_command_line_takes_every_example(words: tuple[str, ...], line: str) -> None:
    assert len(line) <= 78
    assert parse_with_config(line)[: len(words)] == words


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_command_line_takes_what_no_test_runs(page: Path) -> None:
    """Blocks that are marked `not run`: their configurations load."""
    for block in read_blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.mark == "not run" and line.startswith("dpmpp "):
                parse_with_config(line.partition(" #")[0])


@pytest.mark.parametrize(
    "line",
    [
        "dpmpp serach",
        "dpmpp index build --index GALLERY",
        "dpmpp tune --trials many",
        "dpmpp train --config market1501 metric.epoch=30",
    ],
)
def test_a_stale_example_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"No such command|Missing parameter|valid integer|epoch"):
        parse_with_config(line)
