"""The record of a registered version: its figures, the images they are of, its origin.

It is a folder next to the model's own files, inside the version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpmpp_core.data.manifest import IMAGE_SCHEMA
from dpmpp_core.errors import WeightsError
from dpmpp_core.retrieval import QueryFigures
from dpmpp_core.retrieval.queries import from_table
from pipelines.stages.evaluate import METRICS_FILE, QUERIES_FILE

FOLDER, FACTS, IMAGES, CARD, CONFIG = (
    "record", "facts.json", "images.parquet", "model_card.md", "config.yaml",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """The record of one version.

    Attributes:
        facts: `dataset_id`, `evaluation_id`, `root`, `layout`, `counts`, `weights_sha256`,
            `config` (its name), `seed`, `run_id`, keys of `stages`, `saliency`, `environment`.
        measured: content of METRICS_FILE of the evaluation.
        queries: by query set, the figures of each query.
        images: IMAGE_SCHEMA, queries and gallery.
    """

    facts: Mapping[str, Any]
    measured: Mapping[str, Any]
    queries: Mapping[str, QueryFigures]
    images: pa.Table

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read a record from its folder; raise WeightsError if there is none."""
        try:
            facts = json.loads((folder / FACTS).read_text())
            measured, queries = read_evaluation(folder)
            images = pq.read_table(folder / IMAGES, schema=IMAGE_SCHEMA)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            problem = " ".join(str(error).split())
            raise WeightsError(
                f"the version has no record of its evaluation ({problem}): register it again with "
                "`dpmpp run`"
            ) from None
        return cls(facts, measured, queries, images)

    def write(self, folder: Path, evaluated: Path) -> None:
        """Write it, with the tables copied from the folder of the evaluation."""
        folder.mkdir(parents=True)
        (folder / FACTS).write_text(json.dumps(self.facts, indent=2, sort_keys=True) + "\n")
        for name in (METRICS_FILE, QUERIES_FILE):
            (folder / name).write_bytes((evaluated / name).read_bytes())
        pq.write_table(self.images, folder / IMAGES)


def read_evaluation(folder: Path) -> tuple[dict[str, Any], dict[str, QueryFigures]]:
    """Return the metrics of an evaluation, and by query set the figures of each query."""
    measured = json.loads((folder / METRICS_FILE).read_text())
    return measured, from_table(pq.read_table(folder / QUERIES_FILE))
