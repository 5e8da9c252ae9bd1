"""What the help pages have in common: panels of commands, and examples below the options."""

from __future__ import annotations

START, TRAIN, MEASURE, RELEASE, CLUSTER = PANELS = (
    "Start", "Train", "Measure", "Release", "Cluster",
)  # fmt: skip
HEADING = "[bold]Examples[/bold]"
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def examples(*lines: str) -> str:
    """Return the end of a help page: a heading and one command line per line, as Rich markup.

    A test parses every line that a command lists here.
    """
    return "\n".join([HEADING, *(line.replace("[", r"\[") for line in lines)])
