"""What the attention mask costs where images are embedded, queries and gallery alike.

    python -m tests.bench.attention_cost [--rounds 5] [--batch 16] [--threads 1]

ViT-B/16 with random weights, 256x128, evaluation. Bar: a query at most 2.0 times one plain pass.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from dpmpp_core.config import load_config
from dpmpp_core.models.reid import ReidModel, start_clip
from tests.bench.timing import describe_turns, interleaved, write

OFF = "model.mask_generator=none"
VARIANTS = {
    "plain": [OFF],
    "bands": [OFF, "model.bands=8"],
    "attention": [OFF, "model.bands=8", "model.attention_mask_depth=0.33"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = torch.randn(arguments.batch, 3, 256, 128)
    seconds = interleaved(
        {name: embedder(overrides, images) for name, overrides in VARIANTS.items()},
        arguments.rounds,
    )
    rows = [
        f"| {name} | {min(values):.3f} | {statistics.median(values):.3f} | "
        f"{min(values) / min(seconds['plain']):.3f} |"
        for name, values in seconds.items()
    ]
    write(
        "attention-cost",
        f"python -m tests.bench.attention_cost --rounds {arguments.rounds} --batch "
        f"{arguments.batch} --threads {arguments.threads}",
        [
            describe_turns(),
            "",
            "| embedding | least s | median s | x plain |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"ViT-B/16, {arguments.batch} images of 256x128, float32, evaluation. `plain`: encoder "
            "and necks. `bands`: with the visibility head on all taps, and bands. `attention`: the "
            "default, the head on early taps, and a mask of keys in the later blocks. One pass: "
            "the head needs 0.02 G multiply-adds an image, the encoder 11.3 G. Bar for queries: "
            "2.0.",
        ],
    )


def embedder(overrides: list[str], images: torch.Tensor) -> Callable[[], None]:
    config = load_config("market1501", ["model.pretrained=null", *overrides])
    model = ReidModel(config.model, config.data, start_clip(config)).eval()

    @torch.inference_mode()
    def embed() -> None:
        model.retrieval_features(model(images).features)

    return embed


if __name__ == "__main__":
    main()
