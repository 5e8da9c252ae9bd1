"""Write a command so that it reaches the driver word by word.

A RayJob's entrypoint passes two shells: the submitter's bash, which reads it as part of a script,
and the driver's sh, which reads what `ray job submit` joins from those words.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from subprocess import list2cmdline

from dpmpp_core.errors import ConfigError

_PLAIN = re.compile(r"[\w@%+=:,./{}-]+", re.ASCII)
_SPECIAL = re.compile(r"[^\w@%+=:,./\"-]", re.ASCII)
# Between the double quotes that `ray job submit` puts around a word with blanks.
_EXPANDED_IN_QUOTES = "$`\\"


def format_entrypoint(words: Sequence[str]) -> str:
    """Return the entrypoint of a RayJob whose driver gets exactly these words.

    Raises:
        ConfigError: a word that no quoting brings through both shells.
    """
    entrypoint = " ".join(_quote(_escape(word)) for word in words)
    for word, arrived in zip(words, _split(format_driver_command(entrypoint)), strict=True):
        if word != arrived:
            raise ConfigError(f"{word!r} would reach the job as {arrived!r}: write it otherwise")
    return entrypoint


def format_driver_command(entrypoint: str) -> str:
    """Return the command that `ray job submit` sends for an entrypoint."""
    return list2cmdline(_split(entrypoint))


def split_entrypoint(entrypoint: str) -> list[str]:
    """Return the words that the driver gets; raise ConfigError if a shell would change them."""
    words = _split(format_driver_command(entrypoint))
    written = format_entrypoint(words)
    if re.sub(" +", " ", written) != re.sub(" +", " ", entrypoint.strip(" ")):
        raise ConfigError(f"a shell on its way would change it; written as {written} it arrives")
    return words


def _is_plain(word: str) -> bool:
    """Return whether no shell changes the word; {a,b} and {1..3} are expanded, {date} is not."""
    expands = "{" in word and ("," in word or ".." in word)
    return bool(_PLAIN.fullmatch(word)) and not expands


def _quote(word: str) -> str:
    return word if _is_plain(word) else shlex.quote(word)


def _escape(word: str) -> str:
    """Return a word that the driver's shell reads as `word` once `ray job submit` joined it."""
    if any(ord(character) < ord(" ") for character in word):
        raise ConfigError(f"{word!r}: no line breaks or control characters in a job's command")
    if " " in word or not word:
        for character in _EXPANDED_IN_QUOTES:
            if character in word:
                raise ConfigError(f"{word!r}: {character} and blanks do not go together in a word")
        return word
    return word if _is_plain(word) else _SPECIAL.sub(lambda found: "\\" + found[0], word)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"no command line: {error}") from None
