"""What the weights in the package are worth: against random ones, before and after training.

    python -m tests.bench.pretrained --data DIR [--seeds 0 1 2] [--storage runs]

writes `tests/bench/results/pretrained.md`. Zero-shot is the encoder as it comes, without masks;
fine-tuned are whole runs of `dpmpp evaluate`, each start with the rates that suit it. Finished
runs are reused.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

from dpmpp_core.config import load_config
from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.models.reid import ReidModel, start_clip
from dpmpp_core.models.weights import RECIPES
from dpmpp_core.retrieval import Embeddings, evaluate
from pipelines.runtime.tracking import environment
from pipelines.stages.evaluate import query_sets
from tests.bench.seeds import RESULTS, run, spread

# Training from random weights wants high rates, a long schedule, and no batch-hard triplets.
STARTS = {
    "random": [
        "model.pretrained=null",
        "metric.epochs=24",
        "metric.warmup_epochs=2",
        "metric.encoder_lr=1e-3",
        "metric.loss.triplet=0",
    ],
    "generated": [],
}
SETS = ("occluded", "holistic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--storage", default="runs")
    arguments = parser.parse_args()
    rows = []
    for start, overrides in STARTS.items():
        before = [zero_shot(arguments.data, overrides, seed) for seed in arguments.seeds]
        rows.append((start, "zero-shot", before))
        command = ["dpmpp", "evaluate", "--data", arguments.data, "--storage", arguments.storage]
        after = [
            run([*command, "--json", *overrides, f"seed={seed}"])["metrics"]
            for seed in arguments.seeds
        ]
        rows.append((start, "fine-tuned", after))
    text = table(Path(arguments.data).name, arguments.seeds, rows)
    (RESULTS / "pretrained.md").write_text(text)
    print(text)


def zero_shot(data: str, overrides: list[str], seed: int) -> dict[str, Any]:
    """Figures of the encoder that training starts from."""
    config = load_config("demo", [*overrides, f"seed={seed}"])
    model = ReidModel(config.model, config.data, start_clip(config)).eval()
    manifest = read_manifest(data, "auto")

    def embedded(rows: Any) -> Embeddings:
        paths = rows["path"].to_pylist()
        made = model.embed([Path(manifest.root) / path for path in paths])
        pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
        return Embeddings(made.features, made.masks, pids, camids, paths)

    gallery = embedded(manifest.subset("gallery"))
    return {name: evaluate(embedded(rows), gallery, seed) for name, rows in query_sets(manifest)}


def table(data: str, seeds: list[int], rows: list[tuple[str, str, list[dict[str, Any]]]]) -> str:
    card = json.loads((RECIPES / "weights" / "dpmpp-small.json").read_text())
    versions = environment()
    packages = ", ".join(f"{k} {v}" for k, v in versions["packages"].items())
    lines = [
        "# Weights of generated people against random ones",
        "",
        f"`python -m tests.bench.pretrained --data {data}`; {date.today().isoformat()}. mAP / "
        f"rank-1 in percent with the query's mask, mean ± std over {len(seeds)} training seeds "
        "(the random start's weights vary with the seed; of the generated weights there is one "
        f"set, seed {card['seed']}, made from {card['images']:,} pictures of "
        f"{card['identities']:,} drawn persons).",
        "",
        "| start | | occluded mAP | occluded rank-1 | holistic mAP | holistic rank-1 |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for start, when, measured in rows:
        cells = [
            spread([figures[name]["masked"][figure] for figures in measured])
            for name in SETS
            for figure in ("mAP", "rank1")
        ]
        lines.append(f"| {start} | {when} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Random start: {' '.join(STARTS['random'])}. Generated start: the demo recipe.",
        "",
        f"{versions['cpus']} cores ({platform.machine()}, no GPU); Python {versions['python']}; "
        f"{packages}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
