"""Search an index for the person of a picture: on this machine, or over shards by Ray workers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dpmpp_core.data.files import Rejected, ensure_writable, list_files, resolve_path
from dpmpp_core.data.images import Image, is_wide
from dpmpp_core.data.inspection import inspect_picture
from dpmpp_core.data.layouts import MARKET_NAME
from dpmpp_core.data.scenes import scene_hint
from dpmpp_core.data.sightings import Label, find_sightings, show_time
from dpmpp_core.errors import ConfigError, DataError, WeightsError
from dpmpp_core.gallery.calibration import describe_calibration
from dpmpp_core.gallery.hits import Hit, hit_fields, list_hits
from dpmpp_core.gallery.queries import (
    SHOWN_FRAMES,
    QueryEmbeddings,
    embed_queries,
    fuse_queries,
    select_query,
    tile_frames,
)
from dpmpp_core.index import (
    GalleryIndex,
    RowFilter,
    SearchResult,
    find_number,
    invert,
    refuse_no_rows,
    search,
    show_labels,
)
from dpmpp_core.redaction import redact
from dpmpp_core.retrieval import refuse_unusable, to_columns
from pipelines.gallery.calibration import read_calibration
from pipelines.gallery.index import open_index, open_remote_index, resolve_local_folder
from pipelines.gallery.selection import require_cameras
from pipelines.gallery.shards import Shards
from pipelines.inference.onnx_model import default_graph_path
from pipelines.registry.models import load_source_model, read_model_version, resolve_model_source
from pipelines.registry.references import is_registered
from pipelines.runtime.progress import progress_bar

log = logging.getLogger(__name__)

BATCH_QUERIES = 64  # queries embedded and searched for at a time
ENGINES = ("torch", "onnx")


class Results(NamedTuple):
    """The results of queries.

    Attributes:
        hits: of each query, best first.
        scored: how many images each query was scored with; all that `where` admits if exact.
    """

    hits: list[list[Hit]]
    scored: int


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """The options of `dpmpp search`; see its `--help`."""

    index: str
    query: str
    top: int = 20
    where: RowFilter = field(default_factory=RowFilter)
    model: str | None = None
    shards: int = 0
    base_rate: float | None = None
    html: str | None = None
    address: str | None = None
    engine: str = "torch"
    tracklet: bool = False
    approximate: bool = False
    masked: bool = True
    min_score: float | None = None
    person: Label | None = None


def run_search(request: SearchRequest) -> dict[str, Any]:
    """Search for a picture, for each picture of a folder, or for the one person of a folder.

    Returns:
        index, images, scored (see `Results`), approximate, model, base_rate (None if not
        calibrated), queries: of each its image and its hits; quarantined: files of the folder that
        are no pictures.

    Raises:
        UserError: the index, the model, a filter that no image passes, or no query that is a
            picture.
    """
    if request.top < 1:
        raise DataError(f"--top {request.top}: at least 1 is needed")
    page = None if request.html is None else Path(resolve_path(request.html))
    if page is not None:
        if page.is_dir():
            raise DataError(f"--html {request.html}: is a folder; name the file to be written")
        ensure_writable(page.parent)
    root, paths, refused = _list_query_files(request.query)
    searcher = Searcher(request.index, request.model, request.base_rate, request.shards,
                        request.address, request.engine, request.approximate)  # fmt: skip
    if not searcher.is_remote:
        require_cameras(searcher.index, request.where)
    names = searcher.index.manifest.names.persons
    person = None if request.person is None else find_number(request.person, names, "--person")
    answers: list[tuple[str, Image, QueryEmbeddings, list[Hit]]] = []
    wide = read = 0
    scored = 0
    if request.tracklet:
        picture, query = searcher.embed_as_one(root, paths, refused, request.masked)
        (hits,), scored = searcher.find(query, request.top, request.where, request.min_score)
        answers, paths = [(root, picture, query, hits)], []
    with progress_bar("searched", len(paths)) as shown:
        for start in range(0, len(paths), BATCH_QUERIES):
            pictures = _read_pictures(root, paths[start : start + BATCH_QUERIES], refused)
            read += len(pictures)
            wide += sum(is_wide(picture) for picture in pictures.values())
            if pictures:
                query = searcher.embed(list(pictures.values()), list(pictures), request.masked)
                best, scored = searcher.find(query, request.top, request.where, request.min_score)
                answers += [
                    (f"{root}/{path}", picture, select_query(query, i), best[i])
                    for i, (path, picture) in enumerate(pictures.items())
                ]
            shown.update(min(start + BATCH_QUERIES, len(paths)))
    if not answers:
        raise _no_query(request.query, refused)
    result: dict[str, Any] = {
        "index": redact(request.index),
        "images": len(searcher.index),
        "scored": scored,
        "approximate": request.approximate,
        "model": redact(searcher.source),
        "base_rate": searcher.base_rate,
        "queries": [
            {
                "image": image,
                "hits": [{f: getattr(hit, f) for f in hit_fields([hit])} for hit in hits],
            }
            for image, _, _, hits in answers
        ],
        "quarantined": [row._asdict() for row in refused],
        "hint": scene_hint(wide, read, redact(request.query)),
    }
    if page is not None:
        from dpmpp_core.gallery.pages import QueryAnswer, write_search_page

        pids = [find_person(person, answer[0], request.tracklet) for answer in answers]
        by_number = invert(names)
        pages = [
            QueryAnswer(*answer, pid, by_number.get(pid))
            for answer, pid in zip(answers, pids, strict=True)
        ]
        facts = searcher.describe(request.where, scored, request.masked, request.min_score)
        try:
            write_search_page(page, facts, pages)
            result["html"] = str(page)
        except OSError as error:  # the answers are printed all the same
            log.warning("%s is not written: %s", request.html, error.strerror)
            result["failed"] = True
    return result


class Searcher:
    """An index opened for searching, with its model and its calibration.

    Args:
        uri: a folder or `s3://bucket/prefix`.
        model: where the index's model is now, if not where it was.
        base_rate: share of pairs of the same person, for the probabilities; None = as calibrated.
        shards: Ray workers that search the segments in parallel; 0 = this process.
        address: of a Ray cluster; None = one is started here for shards.
        engine: what runs the model: `torch`, or `onnx` = the file of `dpmpp export` in its folder.
        approximate: score only the images whose sketches score best; see `dpmpp_core.index.search`.

    Attributes:
        is_remote: whether the index's rows are on the nodes of the shards only.

    Raises:
        UserError: no index, another model, a bad base rate, no sketches to search by.
    """

    def __init__(
        self,
        uri: str,
        model: str | None = None,
        base_rate: float | None = None,
        shards: int = 0,
        address: str | None = None,
        engine: str = "torch",
        approximate: bool = False,
    ) -> None:
        if shards < 0:
            raise DataError(f"--shards {shards}: 0 or more are needed")
        self.uri = resolve_path(uri)
        self.is_remote = bool(shards) and "://" in uri
        self.index = open_remote_index(self.uri) if self.is_remote else open_index(self.uri)
        if approximate:
            require_sketches(self.index, uri)
        self._approximate = approximate
        manifest = self.index.manifest
        self.source = resolve_model_source(model or manifest.source)
        if engine not in ENGINES:
            raise ConfigError(f"--engine {engine}: one of {', '.join(ENGINES)} is needed")
        if engine == "onnx":
            if is_registered(self.source):
                raise ConfigError(
                    f"--engine onnx: {self.source} is in the registry, which keeps no graph: name "
                    "the file of `dpmpp export` with --model"
                )
            self.source = default_graph_path(self.source)
        self._check(self.source)
        self._model = load_source_model(self.source)
        self._calibration = read_calibration(self.uri, manifest.model.weights_sha256)
        if base_rate is not None and self._calibration is None:
            raise DataError(f"{uri} is not calibrated: `dpmpp index calibrate` does it")
        stated = self._calibration.base_rate if self._calibration else None
        self.base_rate = stated if base_rate is None else base_rate
        if self.base_rate is not None and not 0 < self.base_rate < 1:
            raise DataError(f"--base-rate {base_rate}: a share above 0 and below 1 is needed")
        self._count, self._address = shards, address
        self._shards = self._start_shards() if shards else None

    def _start_shards(self) -> Shards:
        return Shards(self.uri, self.index, self._count, self._address, self._approximate)

    def _check(self, source: str) -> None:
        try:
            version = read_model_version(source)
        except WeightsError as error:
            raise WeightsError(f"{error}; name the folder of the index's model: --model") from None
        self.index.check(version, f"the model {source}")

    def embed(
        self, pictures: Sequence[Image], names: Sequence[str], masked: bool = True
    ) -> QueryEmbeddings:
        """Return features and masks of pictures, uint8 [H, W, 3] RGB of any size.

        `masked` as of `embed_queries`.

        Raises:
            WeightsError: one without usable features; contains its name.
        """
        query = embed_queries(self._model, pictures, masked)
        refuse_unusable(to_columns(query.features, query.masks), names)
        return query

    def embed_as_one(
        self, root: str, paths: Sequence[str], refused: list[Rejected], masked: bool = True
    ) -> tuple[Image, QueryEmbeddings]:
        """Return the pictures of one person side by side, and what `fuse` makes of them.

        Files that are no pictures are added to `refused`; DataError if none is one.
        """
        pictures: list[Image] = []
        parts: list[QueryEmbeddings] = []
        for start in range(0, len(paths), BATCH_QUERIES):
            frames = _read_pictures(root, paths[start : start + BATCH_QUERIES], refused)
            if frames:
                parts.append(self.embed(list(frames.values()), list(frames), masked))
                pictures += list(frames.values())[: SHOWN_FRAMES - len(pictures)]
        if not parts:
            raise _no_query(root, refused)
        return tile_frames(pictures), fuse_queries(parts)

    def find(
        self,
        query: QueryEmbeddings,
        top: int,
        where: RowFilter,
        min_score: float | None = None,
    ) -> Results:
        """Return the best of the index, as it is now, for each query; see `list_hits`.

        Raises:
            DataError: no row passes the filter.
        """
        for last in (False, False, True):
            self._refresh()
            try:
                results, rows = self._search(query, top, where)
                if not results.scored:
                    refuse_no_rows(where, None if self.is_remote else self.index)
                hits = list_hits(results, rows, self.index.manifest.names, self._calibration,
                                 self.base_rate, min_score)  # fmt: skip
                return Results(hits, results.scored)
            except FileNotFoundError:  # compacted at this moment
                if last:
                    raise DataError(f"{self.uri} is compacted again and again") from None
        raise AssertionError

    def describe(
        self, where: RowFilter, scored: int, masked: bool = True, min_score: float | None = None
    ) -> dict[str, str]:
        """Return the facts of a search that a page shows; `scored` as of `Results`."""
        shown = {"index": redact(self.uri), "images": f"{len(self.index):,}"}
        if self._approximate:
            shown["search"] = f"approximate: {scored:,} images scored"
        version = self.index.manifest.model.weights_sha256[:16]
        shown["model"] = f"{redact(self.source)} ({version})"
        shown["mask of the query"] = "used" if masked else "not used: the whole picture is trusted"
        if min_score is not None:
            shown["score"] = f"{min_score:g} or more"
        if where.cameras is not None:
            names = self.index.manifest.names.cameras
            cameras = sorted(find_number(camera, names, "camera") for camera in where.cameras)
            shown["cameras"] = ", ".join(show_labels(cameras, names))
        if where.since is not None:
            shown["from (UTC)"] = show_time(where.since)
        if where.until is not None:
            shown["until (UTC)"] = show_time(where.until)
        shown["probability"] = describe_calibration(self._calibration, self.base_rate)
        return shown

    def _refresh(self) -> None:
        """Open the index again if it was changed; one on S3 stays as it was."""
        if "://" in self.uri:
            return
        now = GalleryIndex.open(resolve_local_folder(self.uri))
        now.check(self.index.manifest.model, "the query")
        if now.manifest != self.index.manifest:
            self.index = now
            self._shards = self._start_shards() if self._shards else None

    def _search(
        self, query: QueryEmbeddings, top: int, where: RowFilter
    ) -> tuple[SearchResult, pa.Table]:
        if self._shards is not None:
            return self._shards.search(query, top, where)
        results = search(
            self.index, query.features, query.masks, top, where, None, self._approximate
        )
        return results, self.index.take(results.positions[results.positions >= 0])


def find_person(given: int | None, image: str, tracklet: bool = False) -> int | None:
    """Return the person of a query: the given one, or that of a name like Market-1501's."""
    name = None if tracklet else MARKET_NAME.match(image.rpartition("/")[2])
    if given is not None or name is None:
        return given
    return int(name[1]) if int(name[1]) > 0 else None


def require_sketches(index: GalleryIndex, uri: str) -> None:
    """Raise DataError if an index holds images, but no sketches to search by."""
    if len(index) and not index.sketched:
        raise DataError(
            f"{uri} has no sketches for --approximate: `dpmpp index compact --approximate` writes "
            "them"
        )


def _list_query_files(query: str) -> tuple[str, list[str], list[Rejected]]:
    """Return a root, the images below it - one, or all of a folder - and what is no image."""
    path = resolve_path(query)
    if "://" in path or Path(path).is_dir():
        listing = list_files(path)
        found = find_sightings(listing)
        return listing.root.rstrip("/"), [x.path for x in found.images], list(found.rejected)
    if not Path(path).is_file():
        raise DataError(f"{query}: no such picture or folder")
    return str(Path(path).parent), [Path(path).name], []


def _read_pictures(root: str, paths: Sequence[str], refused: list[Rejected]) -> dict[str, Image]:
    """Return pictures by path; those that are none are added to `refused`."""
    pictures = {}
    for path in paths:
        row, picture = inspect_picture(root, path)
        if picture is None:
            refused.append(Rejected(path, row["reason"], row["detail"]))
        else:
            pictures[path] = picture
    return pictures


def _no_query(query: str, refused: Sequence[Rejected]) -> DataError:
    named = "; ".join(f"{row.path}: {row.detail}" for row in refused[:3])
    return DataError(f"{query}: no picture to search for: {named}")
