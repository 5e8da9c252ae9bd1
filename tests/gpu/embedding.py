"""Embedding: from arrays and from files, float32 and bf16, against the CPU; time by part."""

from __future__ import annotations

import time

import numpy as np
import torch

from dpmpp_core.data.images import read_image, resize
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel, start_clip
from tests.gpu.setting import Row, Setting


def check_embed(setting: Setting) -> Row:
    """Embed drawn people again and again; time reading, copying and computing alone."""
    row, config = Row(), setting.config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ReidModel(config.model, config.data, start_clip(config)).eval()
    files = sorted(setting.people.rglob("*.jpg"))
    count, batch = setting.size(2048, 16), setting.size(64, 8)
    files = [files[i % len(files)] for i in range(count)]
    height, width = config.data.height, config.data.width
    start = time.perf_counter()
    read = [read_image(str(file.parent), file.name) for file in files]
    row.figures["read_images_a_second"] = round(count / (time.perf_counter() - start), 1)
    images = np.stack([resize(image, height, width) for image in read])
    some = images[: setting.size(64, 16)]
    wanted = model.embed(some, batch).features
    model = model.to(setting.device)
    least = {"fp32": 0.99999, "bf16": 0.999}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model.encoder.to(dtype)
        model.embed(some, batch)
        cosine = min(_cosine(x, wanted[s]) for s, x in model.embed(some, batch).features.items())
        figures = {"least_cosine_to_cpu": cosine}
        for source, given in (("arrays", images), ("files", files)):
            start = time.perf_counter()
            model.embed(given, batch)
            figures[f"{source}_images_a_second"] = round(count / (time.perf_counter() - start), 1)
        figures |= _by_part(setting, model, images[:batch])
        busy = figures["compute_ms"] / 1e3 * count / batch
        figures["share_computing"] = round(busy * figures["arrays_images_a_second"] / count, 3)
        row.figures[name] = figures
        row.require(cosine >= least[name], f"{name}: cosine to the CPU {cosine:.6f}")
    if setting.cuda:
        share = row.figures["bf16"]["share_computing"]
        row.expect(share >= 0.6, f"the GPU computes {share:.0%} of the time in bf16")
    return row


def _by_part(setting: Setting, model: ReidModel, images: np.ndarray) -> dict[str, float]:
    """Return milliseconds a batch: pixels to the device and normalised, the network, results."""
    data, rounds = model.data, setting.size(10, 1)

    def normalise() -> torch.Tensor:
        return to_tensor_batch(images, data.mean, data.std, setting.device)

    pixels = normalise()
    with torch.inference_mode():
        features = model(pixels).features
        calls = {
            "pixels_ms": normalise,
            "compute_ms": lambda: model(pixels),
            "results_ms": lambda: [x.float().cpu() for x in features.values()],
        }
        return {n: round(1e3 * setting.seconds(call, rounds), 3) for n, call in calls.items()}


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    products = (a.astype(np.float64) * b).sum(1)
    return float((products / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
