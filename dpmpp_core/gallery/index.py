"""Photos that can be searched for a person."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpmpp_core.data.files import FileListing, Rejected
from dpmpp_core.data.sightings import Sightings
from dpmpp_core.errors import ArgumentError, DataError, WeightsError
from dpmpp_core.gallery.adding import (
    BATCH_IMAGES,
    Columns,
    add_sightings,
    embed_files,
    find_labelled_images,
)
from dpmpp_core.gallery.calibration import (
    CALIBRATION_FILE,
    check_calibration,
    describe_calibration,
)
from dpmpp_core.gallery.hits import list_hits
from dpmpp_core.gallery.matches import Matches
from dpmpp_core.gallery.pages import QueryAnswer
from dpmpp_core.gallery.queries import (
    SHOWN_FRAMES,
    QueryEmbeddings,
    embed_queries,
    fuse_queries,
    tile_frames,
)
from dpmpp_core.index import (
    GalleryIndex,
    ModelVersion,
    RowFilter,
    SearchResult,
    find_number,
    invert,
    refuse_no_rows,
    search,
)
from dpmpp_core.models.pictures import list_pictures, read_picture
from dpmpp_core.models.reid import ReidModel, load_model
from dpmpp_core.models.saved import weights_sha256
from dpmpp_core.models.sources import SHIPPED, is_remote
from dpmpp_core.retrieval import refuse_unusable, to_columns
from dpmpp_core.retrieval.calibration import Calibration

if TYPE_CHECKING:
    from dpmpp_core.models.pictures import Picture


class Index:
    """Photos with their features, in a folder, and the model that computed them.

    `build` and `open` create it; the folder is one of `dpmpp index`.

    Attributes:
        gallery: the rows on disk.
        model: computes the queries.
        rejected: files that the last `build` or `add` left out, and why.
    """

    def __init__(self, gallery: GalleryIndex, model: ReidModel) -> None:
        self.gallery, self.model = gallery, model
        self.rejected: list[Rejected] = []
        self._calibration = _read_calibration(gallery)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def build(
        cls,
        photos: str | Path,
        model: ReidModel | str | Path = SHIPPED,
        folder: str | Path | None = None,
        labels: str | Path | None = None,
    ) -> Index:
        """Build an index of the pictures in a folder, each cut to one person.

        Examples:
            >>> import dpmpp_core
            >>> index = dpmpp_core.Index.build("photos")
            >>> index
            Index(3 images, 0 persons; model shipped)
            >>> index.search("a.jpg", k=2)[0].image.endswith("a.jpg")
            True

        Args:
            photos: folder of pictures; folders below it count too.
            model: as of `load_model`, or a loaded one.
            folder: of the index, which is kept, and continued if it is there; None = a temporary
                one, removed with the object.
            labels: CSV file of persons, cameras and times; see `dpmpp index build --help`.

        Raises:
            UserError: the model, the photos, or a folder with something else in it.
        """
        loaded = model if isinstance(model, ReidModel) else load_model(model)
        source = "in memory" if isinstance(model, ReidModel) else _source(str(model))
        listing = _list_photos(photos, labels)
        temporary = None
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="dpmpp-index-")
        place = Path(temporary.name if temporary else str(folder)).expanduser().absolute()
        version = _version(loaded)
        if (place / "index.json").exists():
            gallery = GalleryIndex.open(place)
            gallery.check(version, "the model")
        else:
            gallery = GalleryIndex.create(place, version, source)
        index = cls(gallery, loaded)
        index._temporary = temporary
        index._add(*listing)
        return index

    @classmethod
    def open(cls, folder: str | Path, model: ReidModel | str | Path | None = None) -> Index:
        """Open an index that `build` or `dpmpp index build` wrote to a folder.

        Examples:
            >>> import dpmpp_core
            >>> built = dpmpp_core.Index.build("photos", folder="gallery")
            >>> dpmpp_core.Index.open("gallery")
            Index(3 images, 0 persons; model shipped)

        Args:
            folder: of the index.
            model: its model, if not where the index states it; as of `load_model`, or a loaded one.

        Raises:
            UserError: no index, no such model, or another model than that of the index.
        """
        gallery = GalleryIndex.open(Path(folder).expanduser().absolute())
        if isinstance(model, ReidModel):
            loaded = model
        else:
            try:
                loaded = load_model(model or gallery.manifest.source)
            except WeightsError as error:
                raise WeightsError(f"{error}; name the model of the index: model=...") from None
        gallery.check(_version(loaded), "the model")
        return cls(gallery, loaded)

    def add(self, photos: str | Path, labels: str | Path | None = None) -> Index:
        """Add the pictures of a folder that are new or have changed; return the index itself.

        Examples:
            >>> import dpmpp_core
            >>> index = dpmpp_core.Index.build("photos")
            >>> len(index.add("photos"))
            3

        Arguments and errors are those of `build`.
        """
        self._add(*_list_photos(photos, labels))
        return self

    def search(
        self,
        query: Picture | Sequence[Picture],
        k: int = 20,
        masked: bool = True,
        min_score: float | None = None,
        where: RowFilter | None = None,
        person: int | str | None = None,
    ) -> Matches:
        """Find the person of a picture.

        Examples:
            >>> import dpmpp_core
            >>> index = dpmpp_core.Index.build("photos")
            >>> index.search("a.jpg", k=2)  # doctest: +ELLIPSIS
            Matches(2 of a.jpg in 3 images; best 0... a.jpg)
            >>> len(index.search(["a.jpg", "b.jpg"], min_score=-1))  # two pictures of one person
            3

        Args:
            query: a picture of one person, or several of the same; as of `ReidModel.embed`.
            k: number of hits.
            masked: whether the query's mask is used; else the whole picture is trusted.
            min_score: hits below it are left out; None = none is.
            where: filter of cameras and times.
            person: number or name of the query's person, if known: hits are then marked as right
                or wrong.

        Raises:
            ArgumentError: k below 1, or no picture.
            DataError: a query that is no readable picture; a filter that no picture passes; a
                person or camera by a name that the index does not have.
            ValueError: a query of another type or shape.
        """
        if k < 1:
            raise ArgumentError(f"k={k}: at least 1 is needed")
        items = list_pictures(query)
        if not len(items):
            raise ArgumentError("no picture to search for")
        names = self.gallery.manifest.names
        pid = None if person is None else find_number(person, names.persons, "person")
        pictures = [read_picture(item, number) for number, item in enumerate(items)]
        titles = [str(x) if isinstance(x, (str, Path)) else f"picture {i}" for i, x in
                  enumerate(items)]  # fmt: skip
        embedded = embed_queries(self.model, pictures, masked)
        refuse_unusable(to_columns(embedded.features, embedded.masks), titles)
        picture = pictures[0]
        if len(pictures) > 1:
            picture, embedded = tile_frames(pictures[:SHOWN_FRAMES]), fuse_queries([embedded])
        results = self._search(embedded, k, where)
        if not results.scored:
            refuse_no_rows(where, self.gallery)
        rows = self.gallery.take(results.positions[results.positions >= 0])
        names = self.gallery.manifest.names  # maybe of an index that was opened again
        (hits,) = list_hits(results, rows, names, self._calibration, None, min_score)
        title = titles[0] if len(titles) == 1 else f"{titles[0]} and {len(titles) - 1} more"
        shown = invert(names.persons).get(pid)
        answer = QueryAnswer(title, picture, embedded, hits, pid, shown)
        return Matches(answer, self._facts(masked, min_score))

    def __len__(self) -> int:
        return len(self.gallery)

    def __repr__(self) -> str:
        persons = set(self.gallery.images(["pid"])["pid"].drop_null().to_pylist())
        source = self.gallery.manifest.source
        return f"Index({len(self):,} images, {len(persons):,} persons; model {source})"

    def _add(self, listing: FileListing, sightings: Sightings) -> None:
        def stream(paths: list[str]) -> Iterable[Columns]:
            for start in range(0, len(paths), BATCH_IMAGES):
                part = np.array(paths[start : start + BATCH_IMAGES], object)
                batch = {"row": np.arange(start, start + len(part)), "path": part}
                yield embed_files(self.model, listing.root, batch, masks=False)

        self.gallery, result = add_sightings(self.gallery, listing, sightings, stream)
        self.rejected = [Rejected(**row) for row in result["quarantined"]]

    def _search(self, query: QueryEmbeddings, k: int, where: RowFilter | None) -> SearchResult:
        try:
            return search(self.gallery, query.features, query.masks, k, where)
        except FileNotFoundError:  # compacted by another process since
            self.gallery = GalleryIndex.open(self.gallery.folder)
            return search(self.gallery, query.features, query.masks, k, where)

    def _facts(self, masked: bool, min_score: float | None) -> dict[str, str]:
        manifest = self.gallery.manifest
        stated = self._calibration.base_rate if self._calibration else None
        facts = {
            "index": str(self.gallery.folder),
            "images": f"{len(self):,}",
            "model": f"{manifest.source} ({manifest.model.weights_sha256[:16]})",
            "mask of the query": "used" if masked else "not used: the whole picture is trusted",
        }
        if min_score is not None:
            facts["score"] = f"{min_score:g} or more"
        return facts | {"probability": describe_calibration(self._calibration, stated)}


def _list_photos(photos: str | Path, labels: str | Path | None) -> tuple[FileListing, Sightings]:
    return find_labelled_images(str(photos), labels=None if labels is None else str(labels))


def _source(model: str) -> str:
    """Return a model's name as an index keeps it: a folder with its absolute path."""
    local = model != SHIPPED and not is_remote(model)
    return str(Path(model).expanduser().absolute()) if local else model


def _version(model: ReidModel) -> ModelVersion:
    return ModelVersion(weights_sha256=weights_sha256(model.state_dict()), spaces=model.spaces)


def _read_calibration(gallery: GalleryIndex) -> Calibration | None:
    file = gallery.folder / CALIBRATION_FILE
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}") from None
    return check_calibration(value, str(gallery.folder), gallery.manifest.model.weights_sha256)
