"""What the attention mask is worth, and how well its head tells occluders from the body.

    python -m tests.bench.attention_mask NAME [KEY=VALUE ...] [--config proof] [--data DIR]
        [--storage runs] [--seeds 0 1 2 3 4] [--before 0 1 2 3 4]

Trains with each seed (finished stages are reused), and embeds the queries of the trained model
again, under other masks; the gallery stays the same unless a row says so. Writes
`results/attention-mask-NAME.md` and, next to the storage, `attention-mask-NAME.png`.

- own: the predicted mask. none: no patch masked, no mask of bands. permuted: masks of other
  queries, mean of five exchanges. truth: truly occluded patches masked, the ceiling.
- AUC: occluded against visible patches of the body. `before` is the head of version 0.1, by its
  only output: a patch that does not show the person.
- The truth of a generated set is in its annotations. Of `pku_reid` the pasted box is known; the
  body is where the head sees the person in the same photograph without the box.
"""

from __future__ import annotations

import argparse
import csv
import platform
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpmpp_core.data.given_masks import true_visibility
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.gallery.drawing import tint_patches
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel, load_model
from dpmpp_core.occlusion.saliency import resample_area
from dpmpp_core.occlusion.visibility import body_auc
from dpmpp_core.retrieval import Embeddings, paired_difference, rank_by_mode, rank_features
from pipelines.inference.embeddings_file import load_embeddings
from pipelines.reporting.ablation_table import format_gain, format_mean_std
from pipelines.reporting.figures import draw_contact_sheet, save_png
from pipelines.runtime.tracking import environment
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline
from tests.bench.timing import RESULTS

BEFORE = "model.attention_mask_depth=null"
SHOWN = 12
Truth = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # body, and what is visible of it
Precisions = dict[str, NDArray[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--config", default="proof")
    parser.add_argument("--data")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    # The first of the seeds, which are trained without the attention mask too.
    parser.add_argument("--before", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    arguments, overrides = parser.parse_known_args()
    now = [Run(arguments, overrides, seed) for seed in arguments.seeds]
    before = [Run(arguments, [*overrides, BEFORE], seed) for seed in arguments.before]
    text = table(arguments, overrides, now, before)
    (RESULTS / f"attention-mask-{arguments.name}.md").write_text(text)
    now[0].draw(Path(arguments.storage) / f"attention-mask-{arguments.name}.png")
    print(text)


class Run:
    """One trained model, and the average precision of each query under every mask."""

    def __init__(self, arguments: argparse.Namespace, overrides: list[str], seed: int) -> None:
        overrides = [*overrides, f"seed={seed}"]
        options = Options(config=arguments.config, overrides=overrides, data=arguments.data,
                          storage=arguments.storage)  # fmt: skip
        result = run_pipeline(options, until="evaluate")
        keys = {stage["name"]: stage["key"] for stage in result["stages"]}
        folder = Path(arguments.storage) / keys["evaluate"]
        self.root = Manifest.load(Path(arguments.storage) / keys["prepare"]).root
        self.model: ReidModel = load_model(result["model"])
        self.gallery = load_embeddings(folder / "gallery.safetensors")
        self.sets = {
            name: load_embeddings(folder / f"{name}.safetensors")
            for name in ("occluded", "holistic")
        }
        self.auc = self._auc()
        self.precisions = {name: self._rank(name, seed) for name in self.sets}

    def images(self, paths: Any) -> NDArray[np.uint8]:
        size = self.model.data.height, self.model.data.width
        return np.stack([resize(read_image(self.root, path), *size) for path in paths])

    def truth(self, name: str) -> Truth | None:
        query = self.sets[name]
        annotated = true_visibility(self.root, query.paths, self.grid)
        if annotated is not None or name != "occluded":
            return annotated
        twins = [path.replace("query/", "query_holistic/") for path in query.paths]
        body = self.visible(twins) > 0.5
        return body, body & ~self.boxes(query.paths)

    @property
    def grid(self) -> tuple[int, int]:
        return self.model.data.height // 16, self.model.data.width // 16

    def visible(self, paths: Any) -> NDArray[np.float32]:
        """Probability that a patch shows the person, [N, rows, columns]."""
        pixels = to_tensor_batch(self.images(paths), self.model.data.mean, self.model.data.std)
        with torch.inference_mode():
            parts = [self.model(part).visibility.visible.sigmoid() for part in pixels.split(64)]
        return torch.cat(parts).numpy()

    def boxes(self, paths: Any) -> NDArray[np.bool_]:
        """Patches of the pasted box of `occlusion.csv`."""
        with (Path(self.root) / "occlusion.csv").open() as file:
            rows = {row["file"]: row for row in csv.DictReader(file)}
        masks = []
        for path in paths:
            height, width = read_image(self.root, path).shape[:2]
            box = np.zeros((height, width), np.float32)
            x0, y0, x1, y1 = (int(rows[path][key]) for key in ("x0", "y0", "x1", "y1"))
            box[y0:y1, x0:x1] = 1
            masks.append(resample_area(box[None], self.grid)[0] > 0.5)
        return np.stack(masks)

    def _auc(self) -> float:
        query, truth = self.sets["occluded"], self.truth("occluded")
        assert truth is not None
        if query.occluded is None:
            return body_auc(-self.visible(query.paths), *truth)
        return body_auc(query.occluded, *truth)

    def _rank(self, name: str, seed: int) -> Precisions:
        query = self.sets[name]
        found = {
            mode: result.average_precision
            for mode, result in rank_by_mode(query, self.gallery, seed).items()
        }
        if query.occluded is None:
            return found
        truth = self.truth(name)
        if truth is not None:
            body, visible = truth
            features = self.model.embed(self.images(query.paths), masked=body & ~visible).features
            found["truth"] = self._precision(replace(query, features=features), self.gallery)
        nothing = np.zeros((len(self.gallery), *self.grid), bool)
        open_ = self.model.embed(self.images(self.gallery.paths), masked=nothing)
        found["open gallery"] = self._precision(
            query, replace(self.gallery, features=open_.features)
        )
        return found

    def _precision(self, query: Embeddings, gallery: Embeddings) -> NDArray[np.float64]:
        ids = query.pids, gallery.pids, query.camids, gallery.camids
        return rank_features(query.features, query.masks, gallery.features, *ids).average_precision

    def draw(self, path: Path) -> None:
        query = self.sets["occluded"]
        assert query.occluded is not None
        rows = np.linspace(0, len(query) - 1, SHOWN).astype(int)
        cells, captions = [], []
        for row, image in zip(rows, self.images([query.paths[r] for r in rows]), strict=True):
            masked = query.occluded[row] > 0.5
            cells += [image, tint_patches(image, masked)]
            captions += [Path(query.paths[row]).stem[:12], f"{100 * masked.mean():.0f} % masked"]
        save_png(path, draw_contact_sheet(cells, captions, 8))


def table(
    arguments: argparse.Namespace, overrides: list[str], now: list[Run], before: list[Run]
) -> str:
    versions = environment()
    packages = ", ".join(f"{k} {v}" for k, v in versions["packages"].items())
    command = ["python -m tests.bench.attention_mask", arguments.name, *overrides]
    command += [f"--config {arguments.config}"] if arguments.config != "proof" else []
    command += [f"--data {Path(arguments.data).name}"] if arguments.data else []
    lines = [
        f"# The attention mask: {arguments.name}",
        "",
        f"`{' '.join(command)} --seeds {' '.join(map(str, arguments.seeds))}`; "
        f"{date.today().isoformat()}. mAP in percent, mean ± std over {len(now)} training seeds; "
        "differences are paired, in brackets the 95 % interval over seeds and identities; bold as "
        "in the ablation. The gallery is that of the default, masked by its own predictions.",
        "",
        "| | occluded queries | whole queries |",
        "|---|---:|---:|",
    ]
    for label, mode in [("own mask", "masked"), ("no mask", "unmasked"),
                        ("other queries' masks", "permuted"), ("true mask", "truth"),
                        ("own mask, gallery not masked", "open gallery")]:  # fmt: skip
        cells = [
            format_mean_std([float(np.nanmean(run.precisions[s][mode])) for run in now])
            if mode in now[0].precisions[s] else "-"
            for s in ("occluded", "holistic")
        ]  # fmt: skip
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if before:
        own = [
            format_mean_std([float(np.nanmean(run.precisions[s]["masked"])) for run in before])
            for s in ("occluded", "holistic")
        ]
        lines.append(
            f"| before: no attention mask, own mask of bands (n = {len(before)}) | "
            f"{' | '.join(own)} |"
        )
    for label, mode, other in [
        ("own over none", "unmasked", now), ("own over permuted", "permuted", now),
        ("own over truth", "truth", now), ("own over own, gallery not masked", "open gallery", now),
        ("own over before", "masked", before),
    ]:  # fmt: skip
        cells = [_gain(now, other, s, mode) for s in ("occluded", "holistic")]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    auc = " before: ".join(format_mean_std([r.auc for r in runs]) for runs in (now, before) if runs)
    lines += [
        "",
        f"AUC x 100, occluded against visible patches of the body, occluded queries: {auc}.",
        "",
        f"{versions['cpus']} cores ({platform.machine()}, no GPU); Python {versions['python']}; "
        f"{packages}.",
    ]
    return "\n".join(lines) + "\n"


def _gain(now: list[Run], other: list[Run], name: str, mode: str) -> str:
    if not other or mode not in other[0].precisions[name]:
        return "-"
    now = now[: len(other)]
    return format_gain(
        paired_difference(
            [run.precisions[name]["masked"] for run in now],
            [run.precisions[name][mode] for run in other],
            now[0].sets[name].pids,
        )
    )


if __name__ == "__main__":
    main()
