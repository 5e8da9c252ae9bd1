"""Pictures that may show a whole scene, where pictures of one person each are expected."""

from __future__ import annotations


def scene_hint(wide: int, pictures: int, folder: str) -> str:
    """Return a question about pictures that are wider than high; empty if there are none.

    People stand in most pictures that are cut to one person. Some lie or sit: it is a hint only.

    Args:
        wide: how many are wider than high.
        pictures: how many there are.
        folder: where they are, for the command that the hint names.
    """
    if not wide:
        return ""
    subject = "the picture is" if pictures == 1 else f"{wide:,} of {pictures:,} pictures are"
    question = "is this a whole scene" if wide == 1 else "are these whole scenes"
    return (
        f"{subject} wider than high: {question}? `dpmpp crop --from {folder} --out CROPS` cuts "
        "persons out"
    )
