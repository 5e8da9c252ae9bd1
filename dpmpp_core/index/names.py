"""Names of persons and cameras in an index, whose rows hold numbers only.

A whole number is itself, never a name. So an index may have both, and no label means two things.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from dpmpp_core.data.sightings import Label, Sighting, to_label
from dpmpp_core.errors import DataError, suggest

FIRST_NUMBER = 1_000_000_000  # of a name: beyond the numbers that people give


class LabelNames(BaseModel):
    """Names of persons and of cameras, each with its number in the rows of an index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    persons: dict[str, int] = {}
    cameras: dict[str, int] = {}

    def extend(self, images: Collection[Sighting], rows: pa.Table) -> LabelNames:
        """Return these names and the new ones of images; `rows` are those of the index.

        Raises:
            DataError: as `number_names`.
        """
        used = {name: pc.unique(rows[name].drop_null()).to_pylist() for name in ("pid", "camid")}
        return LabelNames(
            persons=number_names(self.persons, [x.pid for x in images], used["pid"], "person"),
            cameras=number_names(self.cameras, [x.camid for x in images], used["camid"], "camera"),
        )


def number_names(
    names: Mapping[str, int],
    labels: Iterable[Label | None],
    used: Iterable[int] = (),
    kind: str = "label",
) -> dict[str, int]:
    """Return the names, and the new ones among labels, with numbers that nothing else has.

    Args:
        names: name -> number.
        labels: of images that are to be added; None = not known.
        used: further numbers that are taken.
        kind: of the labels, for the error.

    Raises:
        DataError: a label is the number of a name: it could mean either.
    """
    given = set(labels)
    by_number = invert(names)
    numbers = {label for label in given if isinstance(label, int)}
    for number in sorted(numbers & set(names.values())):
        raise DataError(
            f"{kind} {number} of the data is the number of {by_number[number]!r} in the index: "
            "write the name, or another number"
        )
    new = sorted({label for label in given if isinstance(label, str)} - names.keys())
    first = max([FIRST_NUMBER - 1, *names.values(), *numbers, *used]) + 1
    return {**names, **{name: first + place for place, name in enumerate(new)}}


def find_number(label: Label, names: Mapping[str, int], what: str) -> int:
    """Return the number of a label as a user writes it: a number, or a name of the index.

    Raises:
        DataError: the index has no such name; `what` is the option that gives it.
    """
    label = to_label(label) if isinstance(label, str) else label
    if not isinstance(label, str):
        return label
    if label not in names:
        raise DataError(f"{what} {label}: the index has no such name{suggest(label, names)}")
    return names[label]


def show_labels(numbers: Iterable[int], names: Mapping[str, int]) -> list[str]:
    """Return of each number its name, or itself where it has none."""
    by_number = invert(names)
    return [by_number.get(number, str(number)) for number in numbers]


def invert(names: Mapping[str, int]) -> dict[int | None, str]:
    """Return number -> name; None, of who is not known, is in no such mapping."""
    return {number: name for name, number in names.items()}
