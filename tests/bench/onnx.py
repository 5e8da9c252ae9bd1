"""Pictures a second: an exported model in onnxruntime against the model in torch, on the CPU.

    python -m tests.bench.onnx

writes `tests/bench/results/onnx.md`. Weights are random: they do not change the time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch

from dpmpp_core.config import load_config
from dpmpp_core.models.reid import ReidModel, load_model, save_model, start_clip
from pipelines.inference.onnx_export import export
from pipelines.inference.onnx_model import OnnxModel
from tests.bench.timing import describe_turns, interleaved, write

CASES = {  # recipe, batch
    "dpmpp-small (recipe demo)": ("demo", 64),
    "CLIP ViT-B/16 (recipe market1501)": ("market1501", 8),
}
ROUNDS = 5


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "| model | batch | torch, ms a picture | onnxruntime | torch / onnxruntime | pictures/s, "
        "onnxruntime | file, MB | largest difference |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (recipe, batch) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row(name, recipe, batch, Path(folder)))
    lines += [
        "",
        "Pictures are 256x128 already; features and masks of every space come out. The largest "
        "difference over all of them is that of the hundred pictures that `dpmpp export` compares. "
        f"{describe_turns()}",
    ]
    write("onnx", "python -m tests.bench.onnx", lines)


def row(name: str, recipe: str, batch: int, folder: Path) -> str:
    config = load_config(recipe, ["model.pretrained=null"])
    save_model(ReidModel(config.model, config.data, start_clip(config)), folder / "model")
    result = export(folder / "model", folder / "model.onnx")
    model, graph = load_model(folder / "model"), OnnxModel(folder / "model.onnx", threads=1)
    shape = batch, config.data.height, config.data.width, 3
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def by_torch() -> None:
        model.embed(images, batch)

    def by_onnx() -> None:
        graph.embed(images, batch)

    seconds = interleaved({"torch": by_torch, "onnx": by_onnx}, ROUNDS)
    least = {k: 1000 * min(values) / batch for k, values in seconds.items()}
    middle = {k: 1000 * median(values) / batch for k, values in seconds.items()}
    ratio = middle["torch"] / middle["onnx"]
    return (
        f"| {name} | {batch} | {least['torch']:.1f} / {middle['torch']:.1f} | "
        f"{least['onnx']:.1f} / {middle['onnx']:.1f} | {ratio:.2f} | {1000 / middle['onnx']:.0f} | "
        f"{result['bytes'] / 1e6:.1f} | {result['max_abs_difference']:.1e} |"
    )


if __name__ == "__main__":
    main()
