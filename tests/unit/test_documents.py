"""README and docs: short, their links lead somewhere, their commands and options exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from pipelines.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = typer.main.get_command(app)


def commands(text: str) -> list[list[str]]:
    """The words of each command of the code blocks, without comments; continued lines joined."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].split()[1:] for line in lines if line.startswith("dpmpp ")]


def unknown(words: list[str]) -> str:
    """What a command names that does not exist; empty if nothing."""
    command: Any = COMMAND
    while hasattr(command, "commands"):
        name = words.pop(0) if words else ""
        if name not in command.commands:
            return name
        command = command.commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    missing = [word for word in words if word.startswith("--") and word not in options]
    return " ".join(missing)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_commands_exist(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    gone = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not gone
    found = commands(text)
    assert found or document.name in ("CONTRIBUTING.md", "evidence.md")
    assert not [words for words in found if unknown(list(words))]


def test_the_readme_is_read_in_five_minutes() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 1000


@pytest.mark.parametrize("words", [["serach"], ["search", "--no-such"], ["index", "made"]])
def test_a_wrong_command_would_be_found(words: list[str]) -> None:
    assert unknown(list(words))
