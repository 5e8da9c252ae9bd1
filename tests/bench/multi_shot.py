"""Is a person found better with several occluded pictures than with one, and is fusing them by
their masks better than other ways to use them?

    python -m tests.bench.multi_shot --data DIR [--seeds 0 1 2] [--drawn-seeds 0 1 2]

writes `tests/bench/results/multi-shot.md`. Models are those of `dpmpp train` (reused if finished):
the demo recipe on DIR, real images in Market-1501 layout, and on its own drawn people. Of the
latter 24 test persons are drawn anew, many occluded pictures of each in each camera: other poses,
other occluders. Tracklets are the same for all training seeds.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpmpp_core.config import load_config
from dpmpp_core.data.images import decode
from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.demo.generate import draw_shots
from dpmpp_core.demo.plan import GALLERY, QUERY, plan_shots
from dpmpp_core.models.reid import ReidModel, load_model
from dpmpp_core.retrieval import (
    Difference,
    Embeddings,
    draw_tracklets,
    fuse,
    paired_difference,
    rank_features,
    rank_tracklets,
)
from pipelines.reporting.tables import FUSION_METHODS
from pipelines.runtime.tracking import environment
from pipelines.stages.evaluate import query_sets
from tests.bench.seeds import RESULTS, run, spread

SHOTS = (1, 2, 4, 8)
DRAW = 0  # seed of the tracklets
DRAWN = ["data.demo.query_images=48"]
PERSONS = 24
NOISY_OR = "union 1 - prod (1 - m)"
Found = dict[str, np.ndarray]  # way -> average precision of every tracklet


class Pictures(NamedTuple):
    """A query set or a gallery: paths or pictures, persons, cameras [N]."""

    images: Sequence[Any]
    pids: np.ndarray
    camids: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--drawn-seeds", type=int, nargs="+", help="default: those of --seeds")
    parser.add_argument("--storage", default="runs")
    arguments = parser.parse_args()
    name = Path(arguments.data).name
    train = ["dpmpp", "train", "--storage", arguments.storage, "--json"]
    real = [*train, "--config", "demo", "--data", arguments.data]
    demo = [*train, "--config", "demo"]
    text = page(
        f"python -m tests.bench.multi_shot --data {name}",
        [
            section(name, read(arguments.data), real, arguments.seeds),
            section(
                f"{PERSONS} drawn persons", drawn(), demo, arguments.drawn_seeds or arguments.seeds
            ),
        ],
    )
    (RESULTS / "multi-shot.md").write_text(text)
    print(text)


def section(
    name: str, sets: Mapping[str, Pictures], train: list[str], seeds: Sequence[int]
) -> list[str]:
    """Markdown of one data set."""
    query_sets = [query_set for query_set in sets if query_set != "gallery"]
    found: dict[str, dict[int, list[Found]]] = {s: {k: [] for k in SHOTS} for s in query_sets}
    pids: dict[str, dict[int, np.ndarray]] = {s: {} for s in query_sets}
    for seed in seeds:
        model = load_model(run([*train, f"seed={seed}"])["model"])
        gallery = embedded(model, sets["gallery"])
        for query_set in query_sets:
            query = embedded(model, sets[query_set])
            for k in SHOTS:
                rows = draw_tracklets(query.pids, query.camids, k, DRAW)
                found[query_set][k].append(ways(query, gallery, rows))
                pids[query_set][k] = query.pids[rows[:, 0]]
    shown = " ".join(part for part in train if part not in ("--json", "--storage"))
    lines = [
        f"## {name}",
        "",
        f"Trained by `{' '.join(train[:2])} {recipe(shown)} seed=S`, S = "
        f"{', '.join(map(str, seeds))}.",
        "",
    ]
    for query_set in query_sets:
        lines += table(query_set, found[query_set], pids[query_set])
    return lines


def recipe(shown: str) -> str:
    """The part of the command after the program that decides the model, without places."""
    words = shown.split()
    return " ".join(Path(w).name if "/" in w else w for w in words[words.index("--config") :])


def read(data: str) -> dict[str, Pictures]:
    """`occluded` and `holistic` queries, as far as there are such, and `gallery`."""
    manifest = read_manifest(data, "auto")
    sets = {**dict(query_sets(manifest)), "gallery": manifest.subset("gallery")}
    return {
        name: Pictures(
            [Path(manifest.root) / path for path in rows["path"].to_pylist()],
            rows["pid"].to_numpy(),
            rows["camid"].to_numpy(),
        )
        for name, rows in sets.items()
    }


def drawn() -> dict[str, Pictures]:
    """`occluded` queries and `gallery` of the first test persons of the demo recipe."""
    config = load_config("demo", DRAWN).data.demo
    first = config.train_identities + 1
    shots = [s for s in plan_shots(config) if first <= s.pid < first + PERSONS]
    sets = {}
    for name, folder in (("occluded", QUERY), ("gallery", GALLERY)):
        own = [shot for shot in shots if shot.folder == folder]
        cameras = sorted({shot.camid for shot in own})
        tasks = [(config, [shot for shot in own if shot.camid == camera]) for camera in cameras]
        made = [picture for task in tasks for picture in draw_shots(task)]
        ids = (np.array([picture.row[key] for picture in made]) for key in ("pid", "camid"))
        sets[name] = Pictures([decode(picture.jpeg) for picture in made], *ids)
    return sets


def embedded(model: ReidModel, pictures: Pictures) -> Embeddings:
    made = model.embed(pictures.images)
    names = [str(i) for i in range(len(pictures.images))]
    return Embeddings(made.features, made.masks, pictures.pids, pictures.camids, names)


def ways(query: Embeddings, gallery: Embeddings, rows: np.ndarray) -> Found:
    """Average precision by way; besides those of the product, no masks and the other union."""
    found = {way: precision for way, (precision, _) in rank_tracklets(query, gallery, rows).items()}
    features, _ = fuse(query.features, query.masks, rows)
    union = {s: 1 - (1 - m[rows]).prod(axis=1) for s, m in query.masks.items()}
    first = rows[:, 0]
    ids = query.pids[first], gallery.pids, query.camids[first], gallery.camids
    result = rank_features(features, union, gallery.features, *ids)
    return found | {NOISY_OR: result.average_precision}


def table(
    query_set: str, found: Mapping[int, list[Found]], pids: Mapping[int, np.ndarray]
) -> list[str]:
    names = {**FUSION_METHODS, NOISY_OR: NOISY_OR}
    lines = [
        f"### {query_set} queries",
        "",
        f"| pictures | tracklets (persons) | {' | '.join(names.values())} |",
        f"|---:|---:|{'---:|' * len(names)}",
    ]
    for k, by_seed in found.items():
        size = f"{len(pids[k])} ({len(np.unique(pids[k]))})"
        cells = [spread([float(np.nanmean(one[way])) for one in by_seed]) for way in names]
        lines.append(f"| {k} | {size} | {' | '.join(cells)} |")
    others = [way for way in names if way != "fused"]
    lines += [
        "",
        "What fusing gains, points of mAP:",
        "",
        f"| pictures | {' | '.join(f'over {names[way]}' for way in others)} |",
        f"|---:|{'---:|' * len(others)}",
    ]
    for k, by_seed in found.items():
        own = [one["fused"] for one in by_seed]
        gains = [
            shown(paired_difference(own, [one[way] for one in by_seed], pids[k])) for way in others
        ]
        lines.append(f"| {k} | {' | '.join(gains)} |")
    return [*lines, ""]


def shown(gain: Difference) -> str:
    deviation = f" ± {100 * gain.std:.1f}" if gain.n > 1 else ""
    text = f"{100 * gain.mean:+.1f}{deviation}"
    text = f"**{text}**" if gain.beyond_noise else text
    return f"{text} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def page(command: str, sections: list[list[str]]) -> str:
    versions: dict[str, Any] = environment()
    packages = ", ".join(f"{k} {v}" for k, v in versions["packages"].items())
    lines = [
        "# Several pictures as one query",
        "",
        f"`{command}`; {date.today().isoformat()}. mAP in percent, mean ± std over training seeds; "
        "differences are paired, tracklet by tracklet: mean ± std over seeds [95 % interval over "
        "persons]. **Bold**: further from zero than two standard deviations and than the whole "
        "interval.",
        "",
        "A tracklet is 1, 2, 4 or 8 queries of one person and camera, drawn without replacement. "
        "*fused*: features averaged by their masks, the largest mask of each dimension. *one "
        "frame*: each picture alone, mean of the tracklet's average precisions. *best frame*: the "
        "one with the largest mask on average. *plain mean*: of features and of masks. *mean "
        "score*: of the frames' own rankings.",
        "",
        *[line for lines in sections for line in lines],
        f"{versions['cpus']} cores ({platform.machine()}, no GPU); Python {versions['python']}; "
        f"{packages}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
