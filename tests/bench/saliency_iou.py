"""How well each provider of stage 0 finds the persons of the demo set, patch by patch.

    python -m tests.bench.saliency_iou [--data DIR] [--storage runs] [--providers ...] [key=value]

Runs `dpmpp saliency` for each provider on the demo set (or any data with true masks in
`annotations.parquet`) and writes `results/saliency.md`. Finished stages are reused.

Persons stand in the middle of a crop, so a mask that never looks at the picture scores high too.
Two controls tell what a provider sees: its masks permuted among the pictures, and, as `static`,
the one fixed mask of the patches that most often are person, of the provider's own mean size.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpmpp_core.config import load_config
from dpmpp_core.data.given_masks import GivenMasks
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.occlusion.saliency import mask_iou
from pipelines.runtime.tracking import environment
from pipelines.training.masks import load_masks, transfer_grid
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline

RESULTS = Path(__file__).parent / "results"
PROVIDERS = ("spectral", "attention", "sps", "given")
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """A provider's masks beside the true ones, both bool [N, gh, gw], and what they cost."""

    masks: Masks
    truth: Masks
    occluded: npt.NDArray[np.bool_]
    training: npt.NDArray[np.bool_]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--config", default="demo")
    parser.add_argument("--providers", nargs="+", default=list(PROVIDERS), choices=PROVIDERS)
    parser.add_argument("--note", default="", help="a sentence that the table begins with")
    arguments, overrides = parser.parse_known_args()
    found = {name: find(arguments, overrides, name) for name in arguments.providers}
    lines = [f"| {name} | {row(masks)} |" for name, masks in found.items()]
    shown = " ".join(["python -m tests.bench.saliency_iou", *overrides])
    text = table(shown, arguments.note, lines)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "saliency.md").write_text(text)
    print(text)


def find(arguments: argparse.Namespace, overrides: list[str], provider: str) -> Found:
    overrides = [*overrides, f"saliency.provider={provider}"]
    options = Options(
        data=arguments.data,
        config=arguments.config,
        overrides=overrides,
        storage=arguments.storage,
    )
    result = run_pipeline(options, until="saliency")
    stages = {stage["name"]: stage for stage in result["stages"]}
    storage = Path(arguments.storage)
    manifest = Manifest.load(storage / stages["prepare"]["key"])
    paths = manifest.images["path"].to_pylist()
    grid = transfer_grid(load_config(arguments.config, overrides))
    return Found(
        load_masks(storage / stages["saliency"]["key"], paths, grid),
        GivenMasks(manifest.root, grid)(np.empty(0, np.uint8), paths),
        np.array([query == "query" for query in manifest.images["split"].to_pylist()])
        & manifest.images["occluded"].to_numpy(zero_copy_only=False),
        np.array([split == "train" for split in manifest.images["split"].to_pylist()]),
        stages["saliency"]["seconds"],
    )


def row(found: Found) -> str:
    """Cells of one provider, without the first."""
    masks, truth = found.masks, found.truth
    iou = mask_iou(masks, truth)
    order = np.random.default_rng(0).permutation(len(masks))
    permuted = mask_iou(masks[order], truth)
    static = mask_iou(np.broadcast_to(_static(masks, truth), truth.shape), truth)
    values = (iou, permuted, static, iou[found.training], iou[found.occluded])
    cells = [f"{value.mean():.3f}" for value in values]
    cells += [f"{value[found.occluded].mean():.3f}" for value in (permuted, static)]
    hit = (masks & truth).sum()
    cells += [f"{hit / max(1, masks.sum()):.2f}", f"{hit / truth.sum():.2f}"]
    cells += [f"{masks.mean():.2f}", str(int((~masks.any(axis=(1, 2))).sum()))]
    return " | ".join([*cells, f"{found.seconds:.0f}"])


def _static(masks: Masks, truth: Masks) -> Masks:
    """The patches that are person most often, as many as `masks` have on average; knows `truth`."""
    often = truth.mean(axis=0).ravel()
    mask = np.zeros(often.size, bool)
    mask[np.argsort(-often, kind="stable")[: round(masks.mean() * often.size)]] = True
    return mask.reshape(truth.shape[1:])


def table(command: str, note: str, lines: list[str]) -> str:
    versions = environment()
    packages = ", ".join(f"{name} {version}" for name, version in versions["packages"].items())
    heads = ["IoU", "permuted", "static", "IoU, training images", "IoU, occluded queries"]
    heads += ["permuted", "static", "precision", "recall", "share", "empty", "seconds"]
    return "\n".join(
        [
            "# Person masks",
            "",
            f"`{command}`; {date.today().isoformat()}. {note}",
            "",
            "Mean IoU of the patch masks with the true ones: a patch is person if half of its "
            "pixels are.",
            "",
            "permuted: the provider's masks, dealt to other pictures. static: one mask for all, "
            "chosen with knowledge of the truth. Precision, recall and share are over all images.",
            "",
            f"| provider | {' | '.join(heads)} |",
            f"|---|{'---:|' * len(heads)}",
            *lines,
            "",
            f"{versions['cpus']} cores ({platform.machine()}, no GPU); Python "
            f"{versions['python']}; {packages}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
