"""Every code block of README and docs runs, or says why it does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import (
    MARKS,
    NOTEBOOKS,
    PAGES,
    Block,
    given,
    page_name,
    read_blocks,
    read_notebook,
    run_blocks,
)

# What a new user reads first; the blocks of guides that train take half an hour together.
FIRST_PAGES = ("README.md", "docs/get-started.md")
BLOCKS = {page: read_blocks(page) for page in PAGES}


@pytest.fixture(scope="module")
def things(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("things")
    (folder / "runs").mkdir()
    (folder / "given").mkdir()
    return given(folder / "given", small_demo)


@pytest.fixture
def folder(cluster: None, things: Path) -> Iterator[Path]:
    """A folder for the blocks of one page, with what pages name; indexing needs Ray.

    It has the same path for all pages, and keeps `runs`: what one has trained, another reuses.
    """
    page, runs = things.with_name("page"), things.with_name("runs")
    shutil.copytree(things, page, symlinks=True)
    runs.rename(page / "runs")
    yield page
    (page / "runs").rename(runs)
    shutil.rmtree(page)


def cheap(page: Path) -> list[Block]:
    return [block for block in BLOCKS[page] if block.mark in ("", "file")]


def runnable(page: Path) -> list[Block]:
    return [block for block in BLOCKS[page] if block.mark != "not run"]


def faults(blocks: list[Block]) -> list[str]:
    """What is wrong with how blocks are marked."""
    found = []
    for block in blocks:
        if block.mark not in ("", *MARKS):
            found.append(f"{block.place}: unknown mark {block.mark!r}")
        elif block.mark == "not run" and len(block.value.split()) < 2:
            found.append(f"{block.place}: no reason is given")
        elif block.mark in ("", "long") and block.language not in ("sh", "python"):
            found.append(f"{block.place}: {block.language or 'no language'} cannot be run")
    return found


def test_every_block_runs_or_says_why_not() -> None:
    blocks = [block for page in PAGES for block in BLOCKS[page]]
    fences = sum(page.read_text().count("```") for page in PAGES)
    assert fences == 2 * len(blocks) and len(blocks) > 50
    assert not faults(blocks)
    assert len([b for b in blocks if b.mark == "not run"]) < len(blocks) / 2


@pytest.mark.parametrize(
    "text",
    [
        "```\nls\n```",
        "```text\nls\n```",
        "<!-- not run: -->\n```sh\nls\n```",
        "<!-- maybe -->\n```sh\nls\n```",
    ],
)
def test_a_block_that_is_not_run_would_be_found(text: str, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "README.md"
    file = tmp_path / "page.md"
    file.write_text(text + "\n")
    (block,) = read_blocks(file)
    assert len(faults([Block(page, 1, block.language, block.text, block.mark, block.value)])) == 1


@pytest.mark.parametrize("page", [p for p in PAGES if cheap(p)], ids=page_name)
def test_blocks_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_blocks(cheap(page), folder, monkeypatch)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=pytest.mark.long if page_name(p) in FIRST_PAGES else pytest.mark.slow)
        for p in PAGES
        if any(block.mark == "long" for block in BLOCKS[p])
    ],
    ids=page_name,
)
def test_blocks_that_train_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_blocks(runnable(page), folder, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=page_name)
def test_notebooks_run(notebook: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run_blocks(read_notebook(notebook), folder, monkeypatch)


def test_a_command_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Block(PAGES[0], 1, "sh", "dpmpp index info --index NEW\n", "", "")
    with pytest.raises(AssertionError, match=r"README.md:1: dpmpp index info"):
        run_blocks([wrong], tmp_path, monkeypatch)
