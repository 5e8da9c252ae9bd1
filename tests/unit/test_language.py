"""Words that our prose does without: docstrings, comments, messages, documentation."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROSE = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
# What the generator of the demo set draws has eyes and stands in rooms and before walls.
DRAWN = ("dpmpp_core/demo/", "dpmpp_core/data/captions.py")

WORDS = {
    "anew": r"anew",
    "gone on with": r"gone on with",
    "whatever": r"whatever",
    "by lot": r"by lot",
    "told": r"told",
    "gained nothing": r"what gained nothing",
    "eye": r"eyes?",
    "wall": r"walls?(?![- ](clock|time))",
    "room": r"rooms?",
    "beside": r"beside",
    # Only where another word is plainly meant: created or written; results.
    "made": r"(is|are|was|were|be|been|being|once|already|as) made|"
    r"made (from|here|once|in|with|out|when|at|on|again)",
    "found": r"(what|all that|those|who) (was|is|were|are) found|the found|found ones",
}
PATTERNS = {word: re.compile(rf"\b(?:{regex})\b", re.IGNORECASE) for word, regex in WORDS.items()}


def files() -> list[Path]:
    code = [f for name in ("dpmpp_core", "pipelines", "infra") for f in (ROOT / name).rglob("*.py")]
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "infra").rglob("*.md")]
    return sorted([*code, *texts])


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line of prose; of a program, comments and string literals alone."""
    text = file.read_text()
    if file.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in PROSE:
            yield from enumerate(token.string.splitlines(), token.start[0])


def avoided(file: Path) -> list[str]:
    name = file.relative_to(ROOT).as_posix()
    left_out = {"eye", "wall", "room"} if name.startswith(DRAWN) else set()
    return [
        f"{name}:{number}: {match[0]!r} in {line.strip()!r}"
        for number, line in prose(file)
        for word, pattern in PATTERNS.items()
        if word not in left_out and (match := pattern.search(line))
    ]


def test_words_to_avoid_are_avoided() -> None:
    lines = [line for file in files() for line in avoided(file)]
    assert not lines, "\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("# Written anew by lot.", 2),
        ("the made-up surface was not found", 0),
        ('x = "told"; told = 1', 1),
        ("eyelid = wallet  # besides", 0),
    ],
)
def test_only_prose_counts(line: str, count: int, tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(line + "\n" if line[0] in "#xe" else f'"""{line}"""\n')
    found = [m for _, text in prose(file) for p in PATTERNS.values() for m in p.findall(text)]
    assert len(found) == count
