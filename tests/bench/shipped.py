"""What the package's own model is worth on photographs of persons that it has not learnt from.

    python -m tests.bench.shipped --data DIR

writes `tests/bench/results/shipped.md`; `dpmpp_core.models.sources.SHIPPED_WORTH` repeats its mAP.
"""

from __future__ import annotations

import argparse
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from dpmpp_core import Embeddings, load_model
from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.retrieval import compute_chance, compute_intervals, rank_by_mode
from pipelines.runtime.tracking import environment
from pipelines.stages.evaluate import query_sets
from tests.bench.timing import RESULTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    data = parser.parse_args().data
    manifest = read_manifest(data, "auto")
    model = load_model()

    def embedded(rows: Any) -> Embeddings:
        paths = rows["path"].to_pylist()
        result = model.embed([Path(manifest.root) / path for path in paths])
        pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
        return Embeddings(result.features, result.masks, pids, camids, paths)

    gallery = embedded(manifest.subset("gallery"))
    rows = []
    for name, images in query_sets(manifest):
        query = embedded(images)
        figures = compute_intervals(rank_by_mode(query, gallery, 0), query.pids)
        chance = compute_chance(query.pids, gallery.pids, query.camids, gallery.camids)
        for mode, label in (("masked", "with mask"), ("unmasked", "no mask")):
            rows.append((name, label, *(written(figures[mode][f]) for f in ("mAP", "rank1"))))
        rows.append((name, "chance", *(f"{100 * share:.1f}" for share in chance)))
    persons = len(np.unique(gallery.pids))
    text = table(Path(data).name, len(gallery), persons, rows)
    (RESULTS / "shipped.md").write_text(text)
    print(text)


def written(bounds: dict[str, float | None]) -> str:
    return "{mean:.1f} [{low:.1f}, {high:.1f}]".format(
        **{name: 100 * value for name, value in bounds.items() if value is not None}
    )


def table(data: str, images: int, persons: int, rows: list[tuple[str, ...]]) -> str:
    versions = environment()
    packages = ", ".join(f"{k} {v}" for k, v in versions["packages"].items())
    lines = [
        "# The package's own model, on photographs",
        "",
        f"`python -m tests.bench.shipped --data {data}`; {date.today().isoformat()}. Percent; in "
        "brackets the 95 % interval over persons. The model of `dpmpp_core.load_model()` has "
        f"learnt from drawn people only; the gallery: {images} photographs of {persons} persons.",
        "",
        "| queries | | mAP | rank-1 |",
        "|---|---|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"{versions['cpus']} cores ({platform.machine()}, no GPU); Python {versions['python']}; "
        f"{packages}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
