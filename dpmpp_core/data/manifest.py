"""The manifest: every usable image of a data set in one table, and why the others are not in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpmpp_core.data.files import Rejected
from dpmpp_core.data.inspection import inspect
from dpmpp_core.data.layouts import WITHOUT_TRAINING, scan
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
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # a file, a folder, or `list.txt:line`
        pa.field("reason", pa.string(), nullable=False),  # one word to count by
        pa.field("detail", pa.string(), nullable=False),  # a sentence for people
    ]
)
SPLITS = ("train", "query", "gallery")
SETS = ("train", "query_occluded", "query_holistic", "gallery")
FORMAT = 1  # of a saved manifest

# Images and identities (None: not stated) of each split, and cameras, as published.
PUBLISHED: dict[str, dict[str, tuple[int, int | None]]] = {
    "market1501": {"train": (12_936, 751), "query": (3_368, 750), "gallery": (15_913, None)},
    "dukemtmc_reid": {"train": (16_522, 702), "query": (2_228, None), "gallery": (17_661, None)},
    "occluded_duke": {"train": (15_618, 702), "query": (2_210, 519), "gallery": (17_661, 1_110)},
    "occluded_reid": {"query": (1_000, 200), "gallery": (1_000, 200)},
    "p_duke": {"train": (12_927, 665), "query": (2_163, 634), "gallery": (9_053, 634)},
    "partial_reid": {"query": (300, 60), "gallery": (300, 60)},
    "msmt17": {"train": (32_621, 1_041), "query": (11_659, None), "gallery": (82_161, None)},
}
CAMERAS = {"market1501": 6, "dukemtmc_reid": 8, "occluded_duke": 8, "msmt17": 15}

Row = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """Images and quarantine of one data folder; made by `build` or `load`, never changed."""

    root: str
    layout: str
    images: pa.Table  # IMAGE_SCHEMA; train, query, gallery, each by path
    quarantine: pa.Table  # QUARANTINE_SCHEMA, by path

    @classmethod
    def build(
        cls, root: str, layout: str, rows: Iterable[Row], rejected: Iterable[Rejected]
    ) -> Manifest:
        """Sort inspected rows (see `inspection.inspect`) into images and quarantine.

        The result does not depend on the order of `rows`. Of files with the same content in one
        split and query set the first by path is kept; if they name different persons, no label
        can be trusted and all are quarantined (`conflicting_label`; rule: ours). A person who
        loses every image gets a row `empty_identity`.
        Raises DataError if what is left cannot be trained on or evaluated.
        """
        rows = sorted(rows, key=lambda row: (SPLITS.index(row["split"]), row["path"]))
        rows = _mark_duplicates(rows)
        good = [row for row in rows if not row.get("reason")]
        bad = [
            Rejected(row["path"], row["reason"], row["detail"]) for row in rows if row.get("reason")
        ]
        bad = sorted({*bad, *rejected, *_lost_identities(rows)})
        columns = {name: [row[name] for row in good] for name in IMAGE_SCHEMA.names}
        images = pa.table(columns, schema=IMAGE_SCHEMA)
        names = QUARANTINE_SCHEMA.names
        quarantine = pa.table(
            {name: [row[i] for row in bad] for i, name in enumerate(names)}, QUARANTINE_SCHEMA
        )
        manifest = cls(os.fspath(root), layout, images, quarantine)
        _check_usable(manifest)
        return manifest

    @property
    def has_training(self) -> bool:
        """False for test-only layouts: train on another data set."""
        return self.layout not in WITHOUT_TRAINING

    def subset(self, split: str, occluded: bool | None = None) -> pa.Table:
        """Rows of one split (train, query, gallery), of one query set if `occluded` is given."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
        keep = pc.equal(self.images["split"], split)
        if occluded is not None:
            keep = pc.and_(keep, pc.equal(self.images["occluded"], occluded))
        return self.images.filter(keep)

    @cached_property
    def dataset_id(self) -> str:
        """SHA-256 (hex) of the images' rows: names, labels, content. The same wherever it lies."""
        digest = hashlib.sha256()
        for row in zip(
            *(self.images[name].to_pylist() for name in IMAGE_SCHEMA.names), strict=True
        ):
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Images, identities, cameras and distractors of each of SETS; `quarantined` by reason.

        Distractors are the gallery images of person 0 in the market1501 layout, who is no identity.
        """
        result = {}
        for name in SETS:
            rows = self._set(name)
            pids = rows["pid"].to_pylist()
            distractors = 0
            if self.layout == "market1501" and name == "gallery":
                distractors = pids.count(0)
            result[name] = {
                "images": len(pids),
                "identities": len(set(pids)) - bool(distractors),
                "cameras": len(set(rows["camid"].to_pylist())),
                "distractors": distractors,
            }
        reasons = Counter(self.quarantine["reason"].to_pylist())
        return {**result, "quarantined": dict(sorted(reasons.items()))}

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences on what is usable but should be known: gaps, lost identities, leaks."""
        found = []
        absent = sorted(_pids(self.subset("query")) - _pids(self.subset("gallery")))
        if absent:
            found.append(
                f"{len(absent)} query persons have no gallery image and are skipped by the "
                f"evaluation: {_some(absent)}"
            )
        blind = _queries_on_own_camera(self)
        if blind:
            found.append(
                f"{len(blind)} queries have gallery images of their person from their own camera "
                f"only and are skipped by the evaluation: {_some(blind)}"
            )
        lost = self.quarantine.filter(pc.equal(self.quarantine["reason"], "empty_identity"))
        names = [f"{row['path']} ({row['detail']})" for row in lost.to_pylist()]
        if names:
            found.append(f"{len(names)} identities have no usable image: {_some(names)}")
        trained = set(self.subset("train")["sha256"].to_pylist())
        leaked = [
            row["path"]
            for row in self.images.select(["path", "split", "sha256"]).to_pylist()
            if row["split"] != "train" and row["sha256"] in trained
        ]
        if leaked:
            found.append(f"{len(leaked)} test images are training images too: {_some(leaked)}")
        doubted = _queries_labelled_otherwise(self)
        if doubted:
            found.append(
                f"{len(doubted)} queries are gallery images too, of another person or camera, so "
                f"that one of the two labels is wrong: {_some(doubted)}"
            )
        return found

    def save(self, folder: Path) -> None:
        """Write images.parquet, quarantine.parquet and, last, manifest.json into `folder`.

        Each file appears whole or not at all; `load` notices files that do not belong together.
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
            temporary = folder / f".{name}.parquet.{os.getpid()}"
            pq.write_table(table, temporary, compression="zstd")
            temporary.replace(folder / f"{name}.parquet")
        temporary = folder / f".manifest.json.{os.getpid()}"
        temporary.write_text(json.dumps(head, indent=1) + "\n")
        temporary.replace(folder / "manifest.json")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read what `save` wrote; DataError if a file is missing, damaged or of another save."""
        folder = Path(folder)
        try:
            head = json.loads((folder / "manifest.json").read_text())
            if head["format"] != FORMAT:  # whose tables may be others too
                raise DataError(
                    f"the manifest in {folder} has format {head['format']}, this version reads "
                    f"{FORMAT}; prepare the data again"
                )
            images = pq.read_table(folder / "images.parquet", schema=IMAGE_SCHEMA)
            quarantine = pq.read_table(folder / "quarantine.parquet", schema=QUARANTINE_SCHEMA)
            manifest = cls(head["root"], head["layout"], images, quarantine)
            same = (manifest.dataset_id, quarantine.num_rows) == (
                head["dataset_id"],
                head["quarantined"],
            )
        except (
            OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException,
        ) as error:  # fmt: skip
            raise DataError(
                f"the manifest in {folder} cannot be read ({error}); prepare the data again"
            ) from error
        if not same:
            raise DataError(
                f"the files of the manifest in {folder} do not belong together; prepare the data "
                "again"
            )
        return manifest

    def _set(self, name: str) -> pa.Table:
        split, _, kind = name.partition("_")
        return self.subset(split, occluded=kind == "occluded" if kind else None)


def read_manifest(
    root: str,
    layout: str = "auto",
    occluded_queries: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Scan, inspect and build in this process. `progress` gets (images done, images in all)."""
    found = scan(root, layout, occluded_queries)
    rows = []
    for entry in found.entries:
        rows.append(inspect(root, entry))
        if progress:
            progress(len(rows), len(found.entries))
    return Manifest.build(root, found.layout, rows, found.rejected)


def compare_counts(manifest: Manifest, dataset: str) -> list[str]:
    """Sentences on where a manifest differs from the published counts; empty if nowhere.

    dataset: one of PUBLISHED; DataError if it is not. Person 0 of a market1501 gallery is no
    identity. Quarantined duplicates are missing from the counts as they are from the manifest.
    """
    if dataset not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise DataError(f"no published counts of {dataset!r}; known are {known}")
    found = []
    counts = manifest.counts()
    counts["query"] = {
        "images": manifest.subset("query").num_rows,
        "identities": len(_pids(manifest.subset("query"))),
    }
    for split, (images, identities) in PUBLISHED[dataset].items():
        for what, published in (("images", images), ("identities", identities)):
            here = counts[split][what]
            if published is not None and here != published:
                more = f"{abs(here - published):,} {'more' if here > published else 'fewer'}"
                found.append(f"{split}: {here:,} {what}, published are {published:,} ({more})")
    cameras = len(set(manifest.images["camid"].to_pylist()))
    if cameras != CAMERAS.get(dataset, cameras):
        found.append(f"{cameras} cameras, published are {CAMERAS[dataset]}")
    return found


def _mark_duplicates(rows: Sequence[Row]) -> list[Row]:
    """Give `reason` and `detail` to rows whose content came before in the same set, by path."""
    groups: dict[tuple[str, bool, str], list[Row]] = defaultdict(list)
    for row in rows:
        if not row.get("reason"):
            groups[(*_set_of(row), row["sha256"])].append(row)
    marked: dict[int, tuple[str, str]] = {}
    for group in groups.values():
        first = group[0]
        pids = sorted({row["pid"] for row in group})
        if len(pids) > 1:
            detail = "the same picture is labelled as persons " + _some(pids)
            marked |= {id(row): ("conflicting_label", detail) for row in group}
        else:
            detail = f"the same content as {first['path']}, which is kept"
            marked |= {id(row): ("duplicate", detail) for row in group[1:]}
    return [
        {**row, "reason": marked[id(row)][0], "detail": marked[id(row)][1]}
        if id(row) in marked
        else row
        for row in rows
    ]


def _lost_identities(rows: Sequence[Row]) -> list[Rejected]:
    """One `empty_identity` for every person of a set none of whose images is usable."""
    persons: dict[tuple[str, bool, int], list[Row]] = defaultdict(list)
    for row in rows:
        persons[(*_set_of(row), row["pid"])].append(row)
    lost = []
    for (split, _, pid), images in persons.items():
        if all(row.get("reason") for row in images):
            folder = images[0]["path"].rpartition("/")[0]
            reasons = Counter(row["reason"] for row in images).most_common()
            why = ", ".join(f"{count} {reason}" for reason, count in reasons)
            detail = f"person {pid} of {split} lost every image: {why}"
            lost.append(Rejected(folder, "empty_identity", detail))
    return lost


def _set_of(row: Row) -> tuple[str, bool]:
    """The split of a row and, for queries, which query set."""
    return row["split"], row["occluded"] and row["split"] == "query"


def _check_usable(manifest: Manifest) -> None:
    """Raise DataError if the images do not allow training and evaluation."""
    query, gallery = manifest.subset("query"), manifest.subset("gallery")
    missing = sorted(_pids(query) - _pids(gallery))
    persons = Counter(manifest.subset("train")["pid"].to_pylist())
    if manifest.has_training and max(persons.values(), default=0) < 2:
        fault = "no person of the training split has 2 images, which training needs"
    elif not query.num_rows:
        fault = "there is no query image, which the evaluation needs"
    elif not gallery.num_rows:
        fault = "there is no gallery image, which the evaluation needs"
    elif len(missing) == len(_pids(query)):
        fault = (
            f"none of the {len(missing)} query persons has a gallery image (persons "
            f"{_some(missing)}); the two must share person numbers"
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
    """Paths of queries whose person is in the gallery, but from no other camera."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for row in manifest.subset("gallery").select(["pid", "camid"]).to_pylist():
        cameras[row["pid"]].add(row["camid"])
    queries = manifest.subset("query").select(["path", "pid", "camid"]).to_pylist()
    return [row["path"] for row in queries if cameras.get(row["pid"]) == {row["camid"]}]


def _queries_labelled_otherwise(manifest: Manifest) -> list[str]:
    """Paths of queries whose very file is in the gallery, not as their junk but as something else.

    The same person on the same camera is left out of the ranking and does no harm.
    """
    labels: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for row in manifest.subset("gallery").select(["sha256", "pid", "camid"]).to_pylist():
        labels[row["sha256"]].add((row["pid"], row["camid"]))
    queries = manifest.subset("query").select(["path", "sha256", "pid", "camid"]).to_pylist()
    return [row["path"] for row in queries if labels[row["sha256"]] - {(row["pid"], row["camid"])}]


def _pids(rows: pa.Table) -> set[int]:
    return set(rows["pid"].to_pylist())


def _some(items: Sequence[object]) -> str:
    """The first few of many, for a sentence."""
    rest = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(str(item) for item in items[:5]) + rest
