"""What the shell offers at a press of Tab: recipes, configuration keys, choices.

The functions run at every press, so they load neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

# Copies of what the modules that need torch or Ray accept; a test compares them.
STORED_TYPES = ("float32", "float16", "bfloat16", "int8", "int8+float32")
SEARCHERS = ("tpe", "random")
SCHEDULERS = ("asha", "pbt", "fifo")
OBJECTIVES = ("occluded", "holistic", "occluded,holistic")
PARTS = ("any", "top", "bottom", "side")
SYNTHESIS_SPLITS = ("query", "query,train")
INDEX_SPLITS = ("all", "train", "query", "gallery")
ENGINES = ("torch", "onnx")
EQUALS = "="


def complete_from(*choices: str) -> Callable[[str], list[str]]:
    """Return a completer that offers the choices."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def complete_shipped(folder: str = "") -> Callable[[str], list[str]]:
    """Return a completer of the files that the package ships in a folder of recipes, by name."""

    def complete(incomplete: str) -> list[str]:
        from dpmpp_core.config.shipped import shipped_names

        return complete_from(*shipped_names(folder))(incomplete)

    return complete


def complete_layout(incomplete: str) -> list[str]:
    """Offer the layouts of a data folder."""
    from dpmpp_core.config import LAYOUTS

    return complete_from(*LAYOUTS)(incomplete)


def complete_dataset(incomplete: str) -> list[str]:
    """Offer the data sets whose counts are published."""
    from dpmpp_core.data.published import PUBLISHED

    return complete_from(*PUBLISHED)(incomplete)


def complete_key(incomplete: str) -> list[tuple[str, str]]:
    """Offer configuration keys and sections, with descriptions for shells that show them."""
    from dpmpp_core.config.describing import describe_keys

    keys = {one.key: one.description for one in describe_keys()}
    sections = {key.rsplit(".", 1)[0]: "section" for key in keys if "." in key}
    offered = sections | keys
    return [(key, text) for key, text in offered.items() if key.startswith(incomplete)]


def complete_override(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Offer `KEY=` for configuration keys, and after it the values that a key allows.

    Bash takes `KEY=VALUE` for three words, other shells for one.
    """
    from dpmpp_core.config.describing import describe_keys

    given = list(ctx.params.get("overrides") or [])
    split = given[-2] if given[-1:] == [EQUALS] and len(given) > 1 else ""
    key, equals, _ = incomplete.partition(EQUALS)
    described = describe_keys()
    if not split and not equals:
        offered = [(f"{one.key}{EQUALS}", one.description) for one in described]
    else:
        before = "" if split else f"{key}{EQUALS}"
        name = split or key
        offered = [
            (f"{before}{value}", one.description)
            for one in described if one.key == name for value in one.values
        ]  # fmt: skip
    return [(value, text) for value, text in offered if value.startswith(incomplete)]
