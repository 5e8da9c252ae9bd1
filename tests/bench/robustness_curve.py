"""How the default falls as more of a person is hidden, next to a plain fine-tuned CLIP.

    python -m tests.bench.robustness_curve [--config proof] [--storage runs] [--seeds 0 1 2]
        [--bands 10-20,30-40,60-70]

Trains both with each seed (finished stages are reused), occludes the clean queries part by part and
band by band, and ranks them in the clean gallery. Writes `results/robustness.md` and
`robustness.jpg`; the picture is of the first seed.
"""

from __future__ import annotations

import argparse
import platform
from datetime import date
from typing import Any

import cv2
import numpy as np

from dpmpp_core.config.grid import load_grid
from dpmpp_core.data.synthesis import BANDS, CLEAN_QUERIES, PARTS, parse_bands
from pipelines.reporting.ablation_table import format_mean_std
from pipelines.reporting.figures import draw_robustness_comparison
from pipelines.runtime.tracking import environment
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline
from tests.bench.timing import RESULTS

Curve = dict[str, Any]  # part -> band -> figures; see `measure_robustness`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="proof")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bands", type=parse_bands, default=BANDS)
    arguments = parser.parse_args()
    arms: dict[str, list[str]] = {"default": [], "plain": load_grid("method").overrides("plain")}
    curves = {
        name: [measure(arguments, changes, seed) for seed in arguments.seeds]
        for name, changes in arms.items()
    }
    picture = draw_robustness_comparison({name: runs[0] for name, runs in curves.items()})
    cv2.imwrite(str(RESULTS / "robustness.jpg"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    text = table(arguments, curves)
    (RESULTS / "robustness.md").write_text(text)
    print(text)


def measure(arguments: argparse.Namespace, changes: list[str], seed: int) -> Curve:
    options = Options(
        config=arguments.config, overrides=[*changes, f"seed={seed}"], storage=arguments.storage,
        bands=arguments.bands,
    )  # fmt: skip
    return dict(run_pipeline(options, until="robustness")["robustness"])


def table(arguments: argparse.Namespace, curves: dict[str, list[Curve]]) -> str:
    versions = environment()
    packages = ", ".join(f"{k} {v}" for k, v in versions["packages"].items())
    seeds = " ".join(map(str, arguments.seeds))
    bands = ",".join(map(str, arguments.bands))
    lines = [
        "# Robustness: the default against a plain fine-tuned CLIP",
        "",
        f"`python -m tests.bench.robustness_curve --config {arguments.config} --seeds {seeds} "
        f"--bands {bands}`; {date.today().isoformat()}. mAP in percent of clean queries, occluded "
        "by the share of the person in the first column; mean ± std over "
        f"{len(arguments.seeds)} training seeds. `no mask`: the default's features without its "
        "masks. `queries`: how many could be occluded that much, in the first seed.",
    ]
    for part in PARTS:
        lines += ["", f"## {part}", "", "| hidden (%) | queries | default | no mask | plain |",
                  "|---|---:|---:|---:|---:|"]  # fmt: skip
        for band in (CLEAN_QUERIES, *map(str, arguments.bands)):
            lines.append(f"| {band} | {' | '.join(row(curves, part, band))} |")
    lines += ["", f"{versions['cpus']} cores ({platform.machine()}, no GPU); Python "
              f"{versions['python']}; {packages}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def row(curves: dict[str, list[Curve]], part: str, band: str) -> list[str]:
    def figures(arm: str) -> list[dict[str, Any]]:
        return [c[CLEAN_QUERIES] if band == CLEAN_QUERIES else c[part][band] for c in curves[arm]]

    cells = [str(figures("default")[0]["queries"])]
    for arm, key in (("default", "mAP_masked"), ("default", "mAP_unmasked"),
                     ("plain", "mAP_masked")):  # fmt: skip
        values = [f[key] for f in figures(arm) if f[key] is not None]
        cells.append(format_mean_std([float(np.mean(v)) for v in values]) if values else "-")
    return cells


if __name__ == "__main__":
    main()
