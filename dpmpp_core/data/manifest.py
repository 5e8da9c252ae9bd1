"""The manifest: every usable image of a data set in one table, and why others are quarantined."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpmpp_core.data.files import Rejected, write_atomically
from dpmpp_core.data.inspection import inspect
from dpmpp_core.data.layouts import scan
from dpmpp_core.data.quarantine import Row, lost_identities, mark_duplicates, some
from dpmpp_core.errors import DataError

IMAGE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # relative to the root, `/` between parts
        pa.field("pid", pa.int64(), nullable=False),  # person, as numbered by the data set, >= 0
        pa.field("camid", pa.int64(), nullable=False),  # camera, as numbered there, >= 0
        pa.field("split", pa.string(), nullable=False),  # train, query or gallery
        pa.field("occluded", pa.bool_(), nullable=False),  # of queries: in the occluded query set
        pa.field("width", pa.int32(), nullable=False),  # pixels of the upright picture
        pa.field("height", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),  # size of the file
        pa.field("sha256", pa.string(), nullable=False),  # of the file, 64 hexadecimal digits
    ]
)
INSPECTED_SCHEMA = pa.schema(
    [
        *IMAGE_SCHEMA,
        pa.field("reason", pa.string(), nullable=False),  # empty for a good image
        pa.field("detail", pa.string(), nullable=False),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # a file, a folder, or `list.txt:line`
        pa.field("reason", pa.string(), nullable=False),  # one word to count by
        pa.field("detail", pa.string(), nullable=False),  # a sentence for people
    ]
)
SPLITS = ("train", "query", "gallery")
SETS = ("train", "query_occluded", "query_holistic", "gallery")
FORMAT = 2  # of a saved manifest
ROW_GROUP = 65_536  # rows of images.parquet that are read, or left out, as one


@dataclass(frozen=True)
class Manifest:
    """Images and quarantine of one data folder; created by `build` or `load`, never changed."""

    root: str
    layout: str
    images: pa.Table  # IMAGE_SCHEMA; train, query, gallery, each by path
    quarantine: pa.Table  # QUARANTINE_SCHEMA, by path
    dataset_id: str
    """SHA-256 (hex) of the images' rows: names, labels, content. The same wherever it lies."""

    @classmethod
    def build(
        cls, root: str, layout: str, rows: pa.Table | Iterable[Row], rejected: Iterable[Rejected]
    ) -> Manifest:
        """Sort inspected rows (INSPECTED_SCHEMA) into images and quarantine.

        The result does not depend on the order of `rows`. Of files with the same content in one
        split and query set the first by path is kept. If they name different persons, no label can
        be trusted and all are quarantined (`conflicting_label`; rule: ours). A person without a
        usable image gets a row `empty_identity`. Raises DataError if the images left do not allow
        training or evaluation.
        """
        if not isinstance(rows, pa.Table):
            rows = pa.Table.from_pylist(list(rows), INSPECTED_SCHEMA)
        rows = mark_duplicates(_in_order(rows))
        good = pc.equal(rows["reason"], "")
        images = rows.filter(good).select(IMAGE_SCHEMA.names).combine_chunks()
        refused = rows.filter(pc.invert(good)).select(QUARANTINE_SCHEMA.names)
        bad = {Rejected(**row) for row in refused.to_pylist()}
        bad |= {*rejected, *lost_identities(rows)}
        names = QUARANTINE_SCHEMA.names
        quarantine = pa.table(
            {name: [row[i] for row in sorted(bad)] for i, name in enumerate(names)},
            QUARANTINE_SCHEMA,
        )
        manifest = cls(os.fspath(root), layout, images, quarantine, rows_sha256(images))
        _check_usable(manifest, trains=pc.any(pc.equal(rows["split"], "train")).as_py())
        return manifest

    def with_images(self, images: pa.Table) -> Manifest:
        """Return the folder with other splits of its images (IMAGE_SCHEMA, any order).

        Raises DataError if the images do not allow training or evaluation.
        """
        images = _in_order(images.select(IMAGE_SCHEMA.names).cast(IMAGE_SCHEMA)).combine_chunks()
        nothing = QUARANTINE_SCHEMA.empty_table()
        result = Manifest(self.root, self.layout, images, nothing, rows_sha256(images))
        _check_usable(result, trains=True)
        return result

    @property
    def _numbers_shared(self) -> bool:
        """Whether a number means the same person in all splits."""
        return self.layout != "msmt17"

    def subset(self, split: str, occluded: bool | None = None) -> pa.Table:
        """Return rows of one split (train, query, gallery), or of one query set by `occluded`."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
        keep = pc.equal(self.images["split"], split)
        if occluded is not None:
            keep = pc.and_(keep, pc.equal(self.images["occluded"], occluded))
        return self.images.filter(keep)

    def counts(self) -> dict[str, dict[str, int]]:
        """Count images, identities, cameras, distractors of each of SETS; `quarantined` by reason.

        Distractors are the gallery images of person 0 in the market1501 layout, who is no identity.
        """
        result = {}
        for name in SETS:
            split, _, kind = name.partition("_")
            rows = self.subset(split, occluded=kind == "occluded" if kind else None)
            distractors = 0
            if self.layout == "market1501" and name == "gallery":
                distractors = pc.sum(pc.equal(rows["pid"], 0)).as_py() or 0
            result[name] = {
                "images": rows.num_rows,
                "identities": pc.count_distinct(rows["pid"]).as_py() - bool(distractors),
                "cameras": pc.count_distinct(rows["camid"]).as_py(),
                "distractors": distractors,
            }
        reasons = Counter(self.quarantine["reason"].to_pylist())
        return {**result, "quarantined": dict(sorted(reasons.items()))}

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences on gaps, lost identities and leaks, which do not prevent use."""
        sentences = []
        absent = sorted(_pids(self.subset("query")) - _pids(self.subset("gallery")))
        if absent:
            sentences.append(
                f"{len(absent)} query persons have no gallery image and are skipped by the "
                f"evaluation: {some(absent)}"
            )
        blind = _queries_on_own_camera(self)
        if blind:
            sentences.append(
                f"{len(blind)} queries have gallery images of their person from their own camera "
                f"only and are skipped by the evaluation: {some(blind)}"
            )
        lost = self.quarantine.filter(pc.equal(self.quarantine["reason"], "empty_identity"))
        names = [f"{row['path']} ({row['detail']})" for row in lost.to_pylist()]
        if names:
            sentences.append(f"{len(names)} identities have no usable image: {some(names)}")
        test = self.images.filter(pc.not_equal(self.images["split"], "train"))
        trained = self.subset("train")["sha256"].unique()
        leaked = test.filter(pc.is_in(test["sha256"], value_set=trained))["path"].to_pylist()
        if leaked:
            sentences.append(f"{len(leaked)} test images are training images too: {some(leaked)}")
        both = sorted(_pids(self.subset("train")) & _pids(test)) if self._numbers_shared else []
        if both:
            sentences.append(
                f"{len(both)} persons are in the training split and in query or gallery, so the "
                f"figures are too good: {some(both)}"
            )
        doubted = _queries_labelled_otherwise(self)
        if doubted:
            sentences.append(
                f"{len(doubted)} queries are gallery images too, of another person or camera, so "
                f"that one of the two labels is wrong: {some(doubted)}"
            )
        return sentences

    def save(self, folder: Path) -> None:
        """Write images.parquet, quarantine.parquet and, last, manifest.json into `folder`.

        Each file appears whole or not at all; `load` detects files that do not belong together.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        head = {
            "format": FORMAT,
            "root": self.root,
            "layout": self.layout,
            "dataset_id": self.dataset_id,
            "quarantined": self.quarantine.num_rows,
            "counts": self.counts(),
        }
        for name, table in (("images", self.images), ("quarantine", self.quarantine)):
            with write_atomically(folder / f"{name}.parquet") as file:
                pq.write_table(
                    table.replace_schema_metadata({"dataset_id": self.dataset_id}),
                    file,
                    compression="zstd",
                    row_group_size=ROW_GROUP,
                    write_page_checksum=True,
                )
        with write_atomically(folder / "manifest.json") as file:
            file.write_text(json.dumps(head, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read what `save` wrote; DataError if a file is missing, damaged or of another save."""
        head, images = _read_images(folder)
        quarantine = _read_table(folder, "quarantine", QUARANTINE_SCHEMA, head["dataset_id"])
        whole = quarantine.num_rows == head["quarantined"]
        if not whole or rows_sha256(images) != head["dataset_id"]:
            raise _mixed(folder)
        return cls(head["root"], head["layout"], images, quarantine, head["dataset_id"])


def read_manifest(
    root: str,
    layout: str = "auto",
    occluded_queries: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Scan, inspect and build in this process. `progress` gets (images done, images in all)."""
    scanned = scan(root, layout, occluded_queries)
    rows = []
    for entry in scanned.entries:
        rows.append(inspect(root, entry))
        if progress:
            progress(len(rows), len(scanned.entries))
    return Manifest.build(root, scanned.layout, rows, scanned.rejected)


def load_split(folder: Path, split: str) -> tuple[str, pa.Table]:
    """Return root and rows (IMAGE_SCHEMA) of one split of a saved manifest; as `Manifest.load`."""
    head, rows = _read_images(folder, [("split", "==", split)])
    return head["root"], rows


def _check_usable(manifest: Manifest, trains: bool) -> None:
    """Raise DataError if nothing can be measured or, with `trains`, nothing learnt."""
    query, gallery = manifest.subset("query"), manifest.subset("gallery")
    missing = sorted(_pids(query) - _pids(gallery))
    persons = manifest.subset("train")["pid"].value_counts().field("counts")
    if trains and (pc.max(persons).as_py() or 0) < 2:
        fault = "no person of the training split has 2 images, which training needs"
    elif not query.num_rows:
        fault = "there is no query image, which the evaluation needs"
    elif not gallery.num_rows:
        fault = "there is no gallery image, which the evaluation needs"
    elif len(missing) == len(_pids(query)):
        fault = (
            f"none of the {len(missing)} query persons has a gallery image (persons "
            f"{some(missing)}); the two must share person numbers"
        )
    elif len(_queries_on_own_camera(manifest)) == query.num_rows:
        fault = (
            "every query finds its person on its own camera only, which the evaluation leaves "
            "out; give queries and gallery different camera numbers"
        )
    else:
        return
    reasons = Counter(manifest.quarantine["reason"].to_pylist()).most_common()
    refused = ", ".join(f"{count} {reason}" for reason, count in reasons) or "nothing"
    examples = [f"{row['path']}: {row['detail']}" for row in manifest.quarantine[:2].to_pylist()]
    raise DataError(
        f"{manifest.root} (layout {manifest.layout}) cannot be used: {fault}. Images kept: "
        f"{manifest.images.num_rows}. Quarantined: {refused}"
        + (f" ({'; '.join(examples)})" if examples else "")
    )


def _queries_on_own_camera(manifest: Manifest) -> list[str]:
    """Return paths of queries whose person is in the gallery, but from no other camera."""
    gallery, queries = manifest.subset("gallery"), manifest.subset("query")
    cameras = [("camid", "count_distinct"), ("camid", "min")]
    persons = gallery.group_by("pid").aggregate(cameras)
    seen_once = persons.filter(pc.equal(persons["camid_count_distinct"], 1))
    place = pc.index_in(queries["pid"], value_set=seen_once["pid"])
    only = pc.take(seen_once["camid_min"], place)  # null where there are others, or none
    return queries.filter(pc.equal(only, queries["camid"]))["path"].to_pylist()


def _queries_labelled_otherwise(manifest: Manifest) -> list[str]:
    """Return paths of queries whose file is in the gallery as another person or camera."""
    labels: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for row in manifest.subset("gallery").select(["sha256", "pid", "camid"]).to_pylist():
        labels[row["sha256"]].add((row["pid"], row["camid"]))
    queries = manifest.subset("query").select(["path", "sha256", "pid", "camid"]).to_pylist()
    return [row["path"] for row in queries if labels[row["sha256"]] - {(row["pid"], row["camid"])}]


def _pids(rows: pa.Table) -> set[int]:
    return set(rows["pid"].unique().to_pylist())


def _in_order(rows: pa.Table) -> pa.Table:
    place = pc.index_in(rows["split"], value_set=pa.array(SPLITS))
    if place.null_count:
        raise ValueError(f"splits are {', '.join(SPLITS)}, not {rows['split'].unique()}")
    keys = pa.table({"split": place, "path": rows["path"]})
    order = pc.sort_indices(keys, [("split", "ascending"), ("path", "ascending")])
    return rows.take(order)


def rows_sha256(images: pa.Table) -> str:
    """Return the SHA-256 (hex) of the rows, each as `json.dumps` of its values and a line feed."""
    digest = hashlib.sha256()
    for batch in images.to_batches(max_chunksize=ROW_GROUP):
        cells = [_json_cells(column) for column in batch.columns]
        rows = pc.binary_join_element_wise(
            "[", pc.binary_join_element_wise(*cells, ", "), "]\n", ""
        )
        digest.update("".join(rows.to_pylist()).encode())
    return digest.hexdigest()


def _json_cells(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        return column.cast(pa.string())
    if pc.all(pc.match_substring_regex(column, r"^[ !#-\[\]-~]*$")).as_py():  # nothing to escape
        return pc.binary_join_element_wise('"', column, '"', "")
    return pa.array([json.dumps(value) for value in column.to_pylist()], pa.string())


def _read_images(folder: Path, filters: Any = None) -> tuple[dict[str, Any], pa.Table]:
    """Read manifest.json and rows of images.parquet; DataError if they are no saved manifest's."""
    try:
        head = json.loads((Path(folder) / "manifest.json").read_text())
        if head["format"] != FORMAT:
            raise DataError(
                f"the manifest in {folder} has format {head['format']}, this version reads "
                f"{FORMAT}; prepare the data again"
            )
        expected = {"root", "layout", "dataset_id", "quarantined"}
        if missing := expected - set(head):
            raise ValueError(f"manifest.json has no {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(folder, error) from error
    return head, _read_table(folder, "images", IMAGE_SCHEMA, head["dataset_id"], filters)


def _read_table(
    folder: Path, name: str, schema: pa.Schema, dataset_id: str, filters: Any = None
) -> pa.Table:
    file = Path(folder) / f"{name}.parquet"
    try:
        owner = (pq.read_schema(file).metadata or {}).get(b"dataset_id", b"")
        table = pq.read_table(file, schema=schema, filters=filters, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(folder, error) from error
    if owner.decode() != dataset_id:
        raise _mixed(folder)
    return table


def _unreadable(folder: Path, error: Exception) -> DataError:
    return DataError(f"the manifest in {folder} cannot be read ({error}); prepare the data again")


def _mixed(folder: Path) -> DataError:
    return DataError(
        f"the files of the manifest in {folder} do not belong together; prepare the data again"
    )
