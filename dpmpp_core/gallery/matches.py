"""The matches of one person in an index, for a user: a table, a data frame, a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import pyarrow as pa

from dpmpp_core.data.names import distinguish
from dpmpp_core.data.sightings import show_time
from dpmpp_core.errors import ConfigError
from dpmpp_core.gallery.hits import Hit, hit_fields
from dpmpp_core.gallery.pages import (
    QueryAnswer,
    format_probability,
    render_answer,
    write_search_page,
)

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Matches:
    """What `Index.search` returns: hits, best first; in a notebook their pictures are shown.

    Attributes:
        answer: the query and its hits.
        facts: of the search, label -> value.
    """

    answer: QueryAnswer
    facts: Mapping[str, str]

    def show(self) -> None:
        """Print the hits to standard output as a table, best first.

        `rank` starts at 1. `score` is in [-1, 1], larger = more alike. `same person` is a
        probability in percent. `person` and `camera` are names, or numbers where they have no name.
        `time` is UTC. `image` is the end of the path that tells it from the others. A column
        without any value is left out. Without hits, a sentence says so.

        Examples:
            >>> import dpmpp_core
            >>> dpmpp_core.Index.build("photos").search("a.jpg", k=1).show()  # doctest: +ELLIPSIS
            rank  score  image
            1     0...  a.jpg
        """
        print(self._table())

    def to_pandas(self) -> pandas.DataFrame:
        """Return the hits as a data frame: the fields of `Hit`, `time` as a timestamp in UTC.

        The columns `person` and `camera` are there only if a hit has a name.

        Examples:
            >>> import dpmpp_core
            >>> frame = dpmpp_core.Index.build("photos").search("a.jpg", k=2).to_pandas()
            >>> list(frame.columns)
            ['image', 'score', 'probability', 'pid', 'camid', 'time', 'sha256']

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise ConfigError("a data frame needs pandas: pip install pandas") from None
        types = [pa.string(), pa.float64(), pa.float64(), pa.int64(), pa.int64(),
                 pa.timestamp("s", "UTC"), pa.string(), pa.string(), pa.string()]  # fmt: skip
        whole = pa.schema(list(zip(Hit._fields, types, strict=True)))
        schema = pa.schema([whole.field(name) for name in hit_fields(self.answer.hits)])
        rows = [hit._asdict() for hit in self.answer.hits]
        return pa.Table.from_pylist(rows, schema).to_pandas(integer_object_nulls=True)

    def save_html(self, path: str | Path) -> Path:
        """Write a self-contained page with query, mask and hits; return its absolute path.

        Examples:
            >>> import dpmpp_core
            >>> matches = dpmpp_core.Index.build("photos").search("a.jpg")
            >>> matches.save_html("page.html").name
            'page.html'

        Raises:
            OSError: it cannot be written.
        """
        page = Path(path).expanduser().absolute()
        write_search_page(page, self.facts, [self.answer])
        return page

    def __len__(self) -> int:
        return len(self.answer.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.answer.hits)

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> list[Hit]: ...
    def __getitem__(self, place: int | slice) -> Hit | list[Hit]:
        """Return the hit of a rank, from 0, or those of a slice."""
        hits = list(self.answer.hits)
        return hits[place]

    def __repr__(self) -> str:
        name = Path(self.answer.image).name
        if not len(self):
            return f"Matches(none of {name} in {self.facts['images']} images)"
        best = distinguish([hit.image for hit in self])[0]
        return (
            f"Matches({len(self)} of {name} in {self.facts['images']} images; best "
            f"{self[0].score:.3f} {best})"
        )

    def _repr_html_(self) -> str:
        return render_answer(self.answer)

    def _table(self) -> str:
        hits = self.answer.hits
        names = distinguish([hit.image for hit in hits])
        columns: dict[str, list[str]] = {
            "rank": [str(rank) for rank in range(1, len(hits) + 1)],
            "score": [f"{hit.score:.3f}" for hit in hits],
            "same person": [
                "" if hit.probability is None else format_probability(hit.probability)
                for hit in hits
            ],
            "person": [hit.person_label for hit in hits],
            "camera": [hit.camera_label for hit in hits],
            "time": ["" if hit.time is None else show_time(hit.time) for hit in hits],
            "image": names,
        }
        shown = {title: cells for title, cells in columns.items() if any(cells)}
        if not shown:
            return "no image of the index meets the conditions"
        widths = {title: max(map(len, (title, *cells))) for title, cells in shown.items()}
        lines = [shown.keys(), *zip(*shown.values(), strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) for cell, width in zip(line, widths.values(), strict=True)
            ).rstrip()
            for line in lines
        )
