"""Train and measure with several seeds; write the table with its spread, versions and machine.

    python -m tests.bench.seeds NAME [KEY=VALUE ...] [--data DIR] [--storage runs] --seeds 0 1 2

writes `tests/bench/results/NAME.md` and `NAME.json`. Finished runs are reused.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from pipelines.runtime.tracking import environment

RESULTS = Path(__file__).parent / "results"
MODES = ("masked", "unmasked", "permuted", "static")
FIGURES = ("mAP", "rank1", "rank5", "rank10", "mINP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data")
    parser.add_argument("--storage", default="runs")
    arguments, overrides = parser.parse_known_args()
    command = ["dpmpp", "evaluate", "--storage", arguments.storage, "--json", *overrides]
    shown = ["dpmpp", "evaluate", *overrides]
    if arguments.data:
        command += ["--data", arguments.data]
        shown += ["--data", Path(arguments.data).name]
    results = [run([*command, f"seed={seed}"]) for seed in arguments.seeds]
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = table(arguments.name, " ".join(shown), arguments.seeds, results)
    (RESULTS / f"{arguments.name}.md").write_text(text)
    kept = ("metrics", "masks", "weights_sha256", "dataset_id", "counts")
    values = [
        {"seed": seed, **{key: result[key] for key in kept}}
        for seed, result in zip(arguments.seeds, results, strict=True)
    ]
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(values, indent=1) + "\n")
    print(text)


def run(command: list[str]) -> dict[str, Any]:
    program = str(Path(sys.executable).with_name(command[0]))
    done = subprocess.run([program, *command[1:]], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(name: str, command: str, seeds: list[int], results: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds, in percent."""
    lines = [
        f"# {name}",
        "",
        f"`{command} seed=S`, S = {', '.join(map(str, seeds))}; {date.today().isoformat()}. "
        f"Percent; mean and standard deviation over {len(seeds)} training seeds on the same data.",
        "",
        f"| queries | scoring | {' | '.join(FIGURES)} |",
        f"|---|---|{'---:|' * len(FIGURES)}",
    ]
    sets = [name for name in ("occluded", "holistic") if name in results[0]["metrics"]]
    for query_set in sets:
        for mode in MODES:
            cells = [
                spread([result["metrics"][query_set][mode][figure] for result in results])
                for figure in FIGURES
            ]
            lines.append(f"| {query_set} | {mode} | {' | '.join(cells)} |")
        for baseline, values in results[0]["metrics"]["baselines"][query_set].items():
            cells = [f"{100 * values[f]:.1f}" if f in values else "-" for f in FIGURES]
            lines.append(f"| {query_set} | {baseline} | {' | '.join(cells)} |")
    lines += ["", "Gain of the query's own mask, paired by seed (points of mAP):", ""]
    for query_set in sets:
        for other in MODES[1:]:
            gains = [
                result["metrics"][query_set]["masked"]["mAP"]
                - result["metrics"][query_set][other]["mAP"]
                for result in results
            ]
            lines.append(f"- {query_set}, over {other}: {spread(gains)}")
    seconds = [sum(stage["seconds"] for stage in result["stages"]) for result in results]
    versions = environment()
    packages = ", ".join(f"{k} {v}" for k, v in versions["packages"].items())
    lines += [
        "",
        f"Data: {results[0]['counts']}.",
        f"Seconds of all stages a seed: {', '.join(f'{s:.0f}' for s in seconds)} on "
        f"{versions['cpus']} cores ({platform.machine()}, no GPU); Python {versions['python']}; "
        f"{packages}.",
        "",
    ]
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


if __name__ == "__main__":
    main()
