"""The code blocks of README and docs: found, and run in a folder that holds what they name.

A comment on the line before a block says how it is run; without one it is run as it stands:

    <!-- not run: REASON -->       it cannot be run here
    <!-- file: NAME -->            its text is written to NAME
    <!-- long: ARGUMENTS -->       by the long tests only, at a small size, with ARGUMENTS
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.support.cli import TIMEOUT_S, invoke_dpmpp
from tests.support.configs import SMALL

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
BLOCK = re.compile(r"(?:^<!-- ([^\n]+?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKS = ("not run", "file", "long")
# What pages call the reader's own things -> its name in the folder of `given`.
NAMES = {
    "DIR": "dir", "PEOPLE": "people", "PHOTOS": "photos", "PICTURE": "photos/one.jpg",
    "MODEL": "model", "GALLERY": "gallery", "OWN": "own", "NEW": "new",
    "VIDEOS": "videos", "CROPS": "crops",
}  # fmt: skip
REFUSED = 3  # by a gate: right for models that were trained in seconds


@dataclass(frozen=True)
class Block:
    """A code block: its page and line, language, text, mark and the mark's value."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    value: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[Block]:
    """Read the code blocks of a page, in order."""
    text = page.read_text()
    blocks = []
    for found in BLOCK.finditer(text):
        mark, _, value = (found[1] or "").partition(":")
        line = text.count("\n", 0, found.start()) + 1
        blocks.append(Block(page, line, found[2], found[3], mark.strip(), value.strip()))
    return blocks


def read_notebook(path: Path) -> list[Block]:
    """Read the code cells of a notebook; one that starts with `!` is of the shell."""
    blocks = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"], 1):
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            language = "sh" if text.startswith("!") else "python"
            text = re.sub(r"^!", "", text, flags=re.MULTILINE) + "\n"
            blocks.append(Block(path, number, language, text, "long", ""))
    return blocks


def given(folder: Path, demo: Path) -> Path:
    """Fill a folder with what pages name: data sets, photos, a model."""
    from tests.support.models import saved_model  # loads torch
    from tests.support.video import draw_video, plan_walk

    (folder / "dir").symlink_to(demo)
    (folder / "docs").symlink_to(ROOT / "docs")  # of a checkout
    pictures = sorted(p for p in demo.rglob("*.jpg") if re.match(r"\d+_c\d", p.name))
    for picture in pictures:
        person, camera = re.match(r"(\d+)_c(\d+)", picture.name).groups()  # type: ignore[union-attr]
        place = folder / "people" / person / f"cam{camera}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place / f"{picture.parent.name}-{picture.name}")
    (folder / "photos").mkdir()
    for picture in sorted((demo / "bounding_box_test").glob("*.jpg"))[:8]:
        shutil.copy(picture, folder / "photos" / picture.name)
    shutil.copy(sorted((demo / "query").glob("*.jpg"))[0], folder / "photos" / "one.jpg")
    for number, side in enumerate(("front", "back", "front", "back"), 1):
        (folder / "own" / side).mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures[number], folder / "own" / side / f"000{number}.jpg")
    (folder / "videos").mkdir()
    draw_video(folder / "videos" / "entrance.mp4", 1, plan_walk(1, range(100, 102), apart=5.6))
    saved_model(folder / "model")
    return folder


def run_blocks(blocks: list[Block], folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run blocks of one page in order, in a folder of `given`; AssertionError with the place."""
    names: dict[str, Any] = {"__name__": "__main__"}
    patch.chdir(folder)
    for block in blocks:
        text = _with_names(block.text)
        if block.mark == "file":
            Path(_with_names(block.value)).write_text(text)
        elif block.language == "python":
            exec(compile(text, block.place, "exec"), names)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                _run_line(line, block, patch)


def _with_names(text: str) -> str:
    return re.sub(rf"\b({'|'.join(NAMES)})\b", lambda found: NAMES[found[1]], text)


def _run_line(line: str, block: Block, patch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "export":
        name, _, value = words[1].partition("=")
        patch.setenv(name, value)
        return
    if words[0] == "dpmpp":
        arguments = words[1:] + (list(_smaller(words[1:], block)) if block.mark == "long" else [])
        done = invoke_dpmpp(*arguments)
    else:
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of this environment
        done = subprocess.run(
            ["bash", "-ec", line], capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env=os.environ | {"PATH": programs},
        )  # fmt: skip
    allowed = (0, REFUSED) if words[1:2] == ["promote"] else (0,)
    assert done.returncode in allowed, f"{block.place}: {line}\n{done.stdout}{done.stderr}"


def _smaller(arguments: list[str], block: Block) -> Iterator[str]:
    """Yield what makes a command small: what its block says, and `SMALL` where it has overrides."""
    from pipelines.cli import app

    command: Any = typer.main.get_command(app)
    for name in arguments:
        if not hasattr(command, "commands"):
            break
        command = command.commands[name]
    if any(parameter.name == "overrides" for parameter in command.params):
        yield from SMALL
    yield from shlex.split(block.value)
