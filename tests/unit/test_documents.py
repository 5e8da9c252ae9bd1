"""README and docs: short, their links lead somewhere, what they name exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import dpmpp_core
from dpmpp_core.config import config_keys
from pipelines.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [*PAGES, ROOT / "CONTRIBUTING.md"]
COMMAND = typer.main.get_command(app)
LONGEST_SENTENCE = 25  # words


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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
        if name.startswith("--"):  # an option of the program itself
            words = [name, *words]
            break
        if name not in command.commands:
            return name
        command = command.commands[name]
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    missing = [word for word in words if word.startswith("--") and word not in options]
    return " ".join(missing)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in headings}


def broken(document: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a page's prose: no code, tables, headings or comments."""
    text = re.sub(r"```.*?```|<!--.*?-->", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^(#|\||!|:::).*$", "", text, flags=re.MULTILINE)
    parts = re.split(r"\n\s*\n|^\s*(?:-|\d+\.) ", text, flags=re.MULTILINE)
    return [one for part in parts for one in re.split(r"(?<=[.!?])\s+", " ".join(part.split()))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=page_name)
def test_links_lead_to_files_and_commands_exist(document: Path) -> None:
    assert not broken(document)
    assert not [words for words in commands(document.read_text()) if unknown(list(words))]


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](page.md#one-two) [c](gone.md) [d](#three)\n")
    assert broken(page) == ["gone.md", "#three"]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_sentences_are_short(page: Path) -> None:
    long = [one for one in sentences(page.read_text()) if len(one.split()) > LONGEST_SENTENCE]
    assert not long


def test_a_long_sentence_would_be_found() -> None:
    text = f"# {'w ' * 30}\n\n- {'w ' * 26}.\n- w.\n\n| {'w ' * 30} |\n"
    assert [len(one.split()) > LONGEST_SENTENCE for one in sentences(text) if one] == [True, False]


def test_the_readme_is_read_in_five_minutes() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 1000


@pytest.mark.parametrize("words", [["serach"], ["search", "--no-such"], ["index", "made"]])
def test_a_wrong_command_would_be_found(words: list[str]) -> None:
    assert unknown(list(words))


def literals() -> str:
    """All texts of the code, those that are written in parts joined."""
    texts = []
    for file in [*(ROOT / "dpmpp_core").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                values = [getattr(part, "value", "") for part in node.values]
                texts.append("".join(v if isinstance(v, str) else "\0" for v in values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_errors_of_the_troubleshooting_page_are_said_somewhere() -> None:
    page = (ROOT / "docs" / "help" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (`.+?) \|", page.partition("## Of the operating system")[0], re.M)
    texts = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    said = literals() + (ROOT / "tests" / "bench" / "results" / "bad_input.md").read_text()
    parts = [part.strip() for text in texts for part in text.split("...")]
    assert len(texts) >= 25 and not [part for part in parts if part not in said]


def test_files_of_the_glossary_exist_and_are_read_from_a_to_z() -> None:
    rows = re.findall(
        r"^\| ([^|]+?) \| [^|]+ \| ([^|]+) \|$",
        (ROOT / "docs" / "concepts" / "glossary.md").read_text(),
        re.M,
    )[1:]
    words = [word.lower() for word, _ in rows]
    assert words == sorted(words) and len(words) > 40
    for _, files in rows:
        for name in re.findall(r"`([^`]+)`", files):
            assert (ROOT / ("" if name.startswith("pipelines/") else "dpmpp_core") / name).is_file()


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The hooks of the site's build."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_references_name_every_command_key_and_public_name(hooks: ModuleType) -> None:
    configuration, listed, names = hooks.configuration(), hooks.commands(), hooks.python()
    assert not [key for key in config_keys() if f"| `{key}` |" not in configuration]
    todo, leaves = [("dpmpp", COMMAND)], []
    while todo:
        name, command = todo.pop()
        children = getattr(command, "commands", {})
        todo += [(f"{name} {key}", child) for key, child in children.items()]
        leaves += [] if children else [(name, command)]
    assert len(leaves) > 20
    for name, command in leaves:
        part = listed.partition(f"## {name}\n")[2].partition("\n## ")[0]
        options = [p.opts[0] for p in command.params if p.param_type_name == "option"]
        assert not [one for one in options if one != "--help" and f"`{one}" not in part], name
    assert not [name for name in dpmpp_core.__all__ if not re.search(rf"\.{name}$", names, re.M)]


def test_a_key_is_described_with_its_type_bounds_and_default(hooks: ModuleType) -> None:
    text = hooks.configuration()
    assert "| `model.bands_depth` | number: at least 0, at most 1 | `0.67` | share of" in text
    assert '| `metric.update` | text: joint, alternating | `"joint"` |' in text


def test_the_site_has_every_page_in_its_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r": ([\w/-]+\.md)$", text.partition("\nnav:")[2], re.M)
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]]
    assert sorted(listed) == sorted(pages)
    assert yaml.safe_load(text)["strict"] is True
